"""The Dockerfile, as far as it can be proved without building it: no Docker engine is needed here."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import runpy
import shlex
import sys
import tomllib
from dataclasses import dataclass, field

import pytest

from support.pins import pins
from support.places import ROOT

TARGETS = ("dataflow", "worker", "runtime")
BUILD_TOOLS = re.compile(r"build-essential|\b(gcc|g\+\+|make|cmake|apt-get|pip|git)\b")


@dataclass
class Stage:
    """What one FROM begins."""

    name: str
    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def read_stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()))
    stages: dict[str, Stage] = {}
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]
            stages[name] = Stage(name, parent)
        elif stages:
            list(stages.values())[-1].instructions.append((word, rest))
    return stages


def lineage(name: str, device: str) -> list[tuple[str, str]]:
    """Every instruction that makes a target, first to last."""
    stages, chain = read_stages(), []
    while name in stages:
        chain.insert(0, stages[name])
        name = stages[name].parent.replace("${DEVICE}", device)
    return [instruction for stage in chain for instruction in stage.instructions]


def test_boot_is_of_the_pinned_beam() -> None:
    [(python, beam)] = re.findall(
        r"apache/beam_python([\d.]+)_sdk:(\S+)", (ROOT / "Dockerfile").read_text()
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert beam == pins()["apache-beam"] == importlib.metadata.version("apache-beam")
    bases = re.findall(r"FROM python:([\d.]+)-", (ROOT / "Dockerfile").read_text())
    assert set(bases) == {python}
    assert f">={python}" in project["requires-python"]
    assert f"python{python.replace('.', '')}-template-launcher" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("target", TARGETS)
def test_targets_hold_no_build_tools(target: str, device: str) -> None:
    made = lineage(target, device)
    assert ("COPY", f"--from=venv-{device} /opt/venv /opt/venv") in made
    assert ("COPY", "--from=model / /models/encoder") in made
    for word, rest in made:
        assert word != "RUN" or not BUILD_TOOLS.search(rest), rest


@pytest.mark.parametrize("target", TARGETS)
def test_all_but_dataflow_run_as_a_user(target: str) -> None:
    users = [rest for word, rest in lineage(target, "cpu") if word == "USER"]
    # Dataflow mounts folders of root's into its workers.
    assert users == ([] if target == "dataflow" else ["1000:1000"])


def test_every_pip_install_is_bound_by_the_constraints() -> None:
    installs = [
        rest
        for stage in read_stages().values()
        for word, rest in stage.instructions
        if word == "RUN" and "pip install" in rest
    ]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in rest for rest in installs)


def test_everything_that_is_copied_is_in_the_build_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    copied = []
    for stage in read_stages().values():
        for word, rest in stage.instructions:
            if word == "COPY" and not rest.startswith("--from="):
                copied += shlex.split(rest)[:-1]
    assert "pipelines/dataflow/launch.py" in copied
    for source in copied:
        assert (ROOT / source).exists(), source
        left_out = False
        for rule in rules:  # the last that matches decides
            pattern = rule.removeprefix("!")
            if fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/"):
                left_out = not rule.startswith("!")
        assert not left_out, source


def test_every_stage_that_is_copied_from_is_there() -> None:
    stages = read_stages()
    for stage in stages.values():
        for word, rest in stage.instructions:
            if word == "COPY" and (found := re.match(r"--from=(\S+)", rest)):
                assert found[1] in stages or ":" in found[1]


def test_the_launchers_file_is_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launch.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "pipelines" / "dataflow" / "launch.py"), run_name="__main__")
    assert ended.value.code == 0
