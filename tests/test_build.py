"""Whole builds through the command line."""

from __future__ import annotations

from conftest import Project

from retro_db_pipelines.cli import run


def test_a_small_build_verifies(small: Project) -> None:
    assert run(["verify", str(small.output)]) == 0
    database = small.open()
    assert len(database) == len(database.neighbors) > 100
    assert database.neighbors[0].shape == (20,)
