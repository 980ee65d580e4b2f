"""The check before an expensive build: every stage on a sample, and what the whole would take."""

from __future__ import annotations

import json

from retro_db.config import Config
from retro_db.corpus.listing import SMOKE
from retro_db.errors import ConfigError, DatabaseError
from retro_db.manifest.model import QUERIES
from retro_db.manifest.sealing import SAMPLING
from retro_db.report.stage_report import STAGE_REPORT, StageReport
from retro_db.store.folder import Folder
from retro_db.store.serialize import from_json
from retro_db.verify import verify_database

from ..builds.build import build_database
from ..builds.folders import check_output
from ..engine.console import Console
from ..engine.runner import Engine
from .show import show_built

# Settings and evaluation texts bound the work of these stages, not the corpus; so do query corpora.
_BOUNDED = ("tokenizer", "evaluation", "train", "sample")


def run_smoke(config: Config, engine: Engine, console: Console, documents: int) -> None:
    """Builds from a sample beside the output folder, verifies it, and extrapolates.

    Raises:
        DatabaseError: What was built is not sound.
        ConfigError: The folder beside the output holds something else.
    """
    output = config.output.rstrip("/") + SMOKE
    config = config.model_copy(update={"output": output})
    folder = Folder(output)
    check_output(folder)
    # What --smoke made, it may replace.
    if folder.list() and not folder.exists(SAMPLING):
        raise ConfigError(
            f"output: {output} was not made by --smoke, which would replace it; move it, or delete it"
        )
    folder.remove("")
    folder.write(SAMPLING, b"")
    manifest = build_database(config, engine, console, sample=documents)
    show_built(output, manifest, console)
    checked = verify_database(output)
    if checked.problems:
        raise DatabaseError(f"{output}: {checked.problems[0]}")
    console.say(f"verified   {checked.files:,} files: sound")
    report = from_json(StageReport, json.loads(folder.read(STAGE_REPORT)))
    _show_extrapolated(report, console)
    console.say(
        f"The corpus is about {report.scale:,.1f} times the sample. For the whole, divide the figures above "
        "by the workers; stages without a figure are bounded by the settings."
    )


def _show_extrapolated(report: StageReport, console: Console) -> None:
    """Work of each stage, measured and for the whole corpus."""
    rows = []
    for stage, took in report.stages.items():
        bounded = stage in _BOUNDED or stage.startswith(f"{QUERIES}/")
        whole = "-" if bounded else _duration(took.seconds * report.scale)
        rows.append((stage, f"{took.seconds:,.1f}", whole))
    console.show_table(("stage", "sample, s", "whole, about"), rows)


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"
