"""What lies beside the code for GitHub, pre-commit and those who cite agrees with the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from support.pins import pins
from support.places import ROOT

GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def loaded(path: Path) -> Any:
    # In YAML 1.1 the key `on` is true.
    return yaml.load(path.read_text("utf-8"), yaml.BaseLoader)  # noqa: S506 - makes texts alone


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_every_change_is_tested_as_ci_run_tells() -> None:
    workflow = loaded(GITHUB / "workflows" / "ci.yml")
    assert set(workflow["on"]) == {"push", "pull_request"}
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert ".ci/run" in commands
    assert "make docs" in commands
    assert any(command.startswith("make dist") for command in commands)
    given = [step.get("with", {}) for step in steps(workflow)]
    pythons = {values["python-version"] for values in given if "python-version" in values}
    pythons -= {"${{ matrix.python }}"}
    [java] = {values["java-version"] for values in given if "java-version" in values}
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert all(f"Python {python}" in script for python in pythons)
    assert f"Java {java}" in script


def test_tests_run_on_every_python_that_is_named() -> None:
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    jobs = loaded(GITHUB / "workflows" / "ci.yml")["jobs"]
    assert named == {"3.11", *jobs["pythons"]["strategy"]["matrix"]["python"]}
    assert all(f"{python}.0" in SpecifierSet(PROJECT["requires-python"]) for python in named)


def test_workflows_use_official_actions_and_may_do_little() -> None:
    for path in (GITHUB / "workflows").glob("*.yml"):
        workflow = loaded(path)
        assert workflow["permissions"] == {"contents": "read"}
        for step in steps(workflow):
            assert "uses" not in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step
        may_write = [name for name, job in workflow["jobs"].items() if "permissions" in job]
        assert may_write == ["publish"]
        assert "refs/heads/main" in workflow["jobs"]["publish"]["if"]


def test_pre_commit_has_the_ruff_of_the_project() -> None:
    [hooks] = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [hook["id"] for hook in hooks["hooks"]] == ["ruff-check", "ruff-format"]
    version = hooks["rev"].removeprefix("v")
    assert version == pins()["ruff"]
    needed = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
    [ruff] = [requirement for requirement in needed if requirement.name == "ruff"]
    assert Version(version) in ruff.specifier


def test_the_citation_is_of_this_version() -> None:
    citation = loaded(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["keywords"] == PROJECT["keywords"]
    [paper] = citation["references"]
    assert paper["url"].removeprefix("https://") in (ROOT / "README.md").read_text("utf-8")
    assert len(paper["authors"]) == 28


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_forms_for_issues_ask_something(name: str) -> None:
    form = loaded(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len(asked)
    assert any(field.get("validations", {}).get("required") == "true" for field in asked)


def test_weaknesses_are_not_reported_as_issues() -> None:
    [link] = loaded(GITHUB / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]
    assert "private" in link["about"]
    assert "SECURITY.md" in link["about"]
