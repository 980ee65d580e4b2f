"""The one order of the stages: what a build, a stage alone and a dry run make of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from retro_db.config import load_config
from retro_db.encoder.models import CUDA, EncoderModel
from retro_db_pipelines.builds.folders import checked_output
from retro_db_pipelines.builds.prepare import prepare
from retro_db_pipelines.builds.stage_order import Recipe
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.engine.completing import Running
from retro_db_pipelines.engine.console import Console
from retro_db_pipelines.engine.context import Action
from retro_db_pipelines.engine.dry_run import DryRun
from retro_db_pipelines.engine.runner import Engine
from retro_db_pipelines.stages import STAGES, embed
from support.projects import Project, make_project
from support.texts import python_sources


def recipe_of(project: Project, action: Action, **model: Any) -> Recipe:
    config = load_config(project.config)
    folder = checked_output(config)
    prepared = prepare(config, folder, engine=Engine(), console=Console(), action=action)
    described = EncoderModel(**vars(prepared.model) | model)
    return Recipe(prepared.build, prepared.queries, described)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    built = make_project(tmp_path, python_sources(6))
    assert built.build() == 0
    return built


def add_queries(project: Project) -> None:
    path = project.folder / "late.jsonl"
    shutil.copyfile(project.folder / "corpus.jsonl", path)
    project.settings["queries"] = [{"name": "late", "paths": [str(path)], "id": "id"}]


def test_the_names_of_stages_are_those_of_the_recipe(project: Project) -> None:
    alone = [name for name, stages in STAGES.items() if stages == (name,)]
    assert list(recipe_of(project, DryRun()).stages()) == alone
    together = [stages for name, stages in STAGES.items() if stages != (name,)]
    assert together == [("train", "encode", "assemble", "tune")]


def test_a_gpu_is_tried_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine of the tests has one: its encoder and the search for a budget are stood in for."""
    budgets = iter([4096, 512])
    monkeypatch.setattr(embed, "_open_encoder", lambda *arguments: object())
    monkeypatch.setattr(embed, "find_budget", lambda encoder: next(budgets))
    for _ in range(2):
        recipe = recipe_of(project, Running(), device=CUDA, batch_tokens=None)
        recipe.probe()
        recipe.probe()
        assert recipe.model.batch_tokens == 4096
    assert next(budgets) == 512
    # A complete stage is told as such.
    recipe = recipe_of(project, DryRun(), device=CUDA, batch_tokens=None)
    recipe.probe()
    assert recipe.model.batch_tokens == 4096


def test_a_new_query_corpus_is_not_in_the_way_of_the_index(project: Project, capsys: Any) -> None:
    add_queries(project)
    assert run(["stage", "index", str(project.config)]) == 0
    capsys.readouterr()
    for stage in ("embed", "neighbors"):
        assert run(["stage", stage, str(project.config)]) == 2
        error = capsys.readouterr().err
        assert "late: 1 of 1 tasks of the stage chunk are not done" in error
        assert "run retro-db stage chunk with the same configuration first" in error
    for stage in ("chunk", "embed", "neighbors"):
        assert run(["stage", stage, str(project.config)]) == 0
    assert project.build() == 0
    assert list(project.open().queries) == ["late"]


def test_a_dry_run_goes_on_behind_a_new_query_corpus(project: Project, capsys: Any) -> None:
    add_queries(project)
    capsys.readouterr()
    assert project.build("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "chunk      late: 0 of 1 tasks done; 1 not done yet" in lines
    assert "neighbors  1 of 1 tasks done" in lines
    assert lines[-1].startswith("dry run    chunk of late to do")


def test_a_dry_run_where_embeddings_were_not_kept(tmp_path: Path, capsys: Any) -> None:
    project = make_project(tmp_path, python_sources(6), embeddings={"keep": False})
    assert project.build() == 0
    capsys.readouterr()
    assert project.build("--dry-run") == 0
    assert "dry run    nothing to do" in capsys.readouterr().out
    add_queries(project)
    assert project.build("--dry-run") == 0
    assert "dry run    chunk of late, embed to do" in capsys.readouterr().out
