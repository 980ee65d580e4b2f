"""A project for Megatron-LM, and what it is exported from."""

from __future__ import annotations

from pathlib import Path

import orjson

from retro_db_pipelines.commands.cli import run
from support.projects import Project, make_project
from support.texts import python_sources

M, SEQ_LEN, K = 16, 128, 20
SAMPLES = {"an epoch": [], "several epochs": ["--samples", "420"]}
OPTIONS = ["--seq-len", str(SEQ_LEN), "-k", str(K), "--batch-size", "5", "--eval-interval", "40"]


def export(project: Project, out: Path, *options: str) -> int:
    return run(["export", str(project.output), "--to", "megatron", str(out), *options])


def make_two_sources(folder: Path) -> Project:
    """Two sources of other weights and other shares of validation, with removed documents."""
    texts = [*python_sources(28), "", "tiny", " ", "one more"]
    project = make_project(folder, texts, chunk={"tokens": M}, split={"validation": 0.2})
    project.settings["corpus"][0]["weight"] = 0.3
    other = folder / "other.jsonl"
    lines = [
        orjson.dumps({"id": f"o-{i}", "text": t}) for i, t in enumerate(python_sources(46)[28:])
    ]
    other.write_bytes(b"\n".join(lines) + b"\n")
    second = {"name": "other source", "paths": [str(other)], "id": "id", "weight": 0.9}
    project.settings["corpus"].append(second)
    return project
