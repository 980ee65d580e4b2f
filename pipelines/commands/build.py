"""The command `build`: a whole build, a sample, an append, or only what it would do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import orjson

import retro_db
from retro_db.config import Config
from retro_db.corpus.formats.raw import DAMAGED
from retro_db.manifest.model import Manifest
from retro_db.manifest.sealing import generation_path
from retro_db.store.folder import Folder

from ..builds.append import append
from ..builds.build import build_database, dry_run
from ..engine.console import Console
from ..engine.runner import Engine
from ..stages.chunk import REJECTS
from .opening import show_report
from .show import show_built
from .smoke import run_smoke

# Damaged files that are named, those first that took most records.
_DAMAGED_FILES = 5


@dataclass(frozen=True)
class BuildOptions:
    """What of a build the command line asks for.

    Attributes:
        smoke: Documents of a sample that is built in place of the corpus; None for the corpus.
        dry_run: Whether it is only said what would be done.
        adds: Whether the corpus is added to a finished database.
        refresh: Whether the chunks that are there find neighbors among the added ones, too.
        overwrite: Whether a finished database may be replaced of which no embedding would be kept.
        opens: Whether the report is written and opened afterwards.
    """

    smoke: int | None
    dry_run: bool
    adds: bool
    refresh: bool
    overwrite: bool
    opens: bool


def build_as_told(
    settings: Config,
    options: BuildOptions,
    workers: int | None,
    beam_options: tuple[str, ...],
    console: Console,
) -> None:
    """Does what the options ask for, and shows what was built.

    Args:
        settings: What to build.
        options: What of it.
        workers: Tasks that run side by side on a machine; None for the runner's default.
        beam_options: Options of Beam.
        console: What people see.
    """
    engine = Engine(workers, beam_options)
    if options.adds:
        manifest = append(settings, engine, console, refresh=options.refresh)
        _show(settings.output, manifest, console)
    elif options.dry_run:
        dry_run(settings, engine, console)
    elif options.smoke is not None:
        run_smoke(settings, engine, console, options.smoke)
    else:
        manifest = build_database(settings, engine, console, overwrite=options.overwrite)
        _show(settings.output, manifest, console)
    if options.opens:
        show_report(retro_db.open(settings.output), None, None, console, opens=True)


def _show(output: str, manifest: Manifest, console: Console) -> None:
    show_built(output, manifest, console)
    _say_damaged(output, manifest, console)


def _say_damaged(output: str, manifest: Manifest, console: Console) -> None:
    """Names the damaged files of the generation that was built."""
    place = "" if manifest.generation == 1 else f"{generation_path(manifest.generation)}/"
    try:
        rejects = [orjson.loads(line) for line in Folder(output).read(place + REJECTS).splitlines()]
    except FileNotFoundError:
        return
    lost = Counter[tuple[str, str]]()
    for reject in rejects:
        if reject["reason"] == DAMAGED:
            lost[reject["source"], reject["file"]] += reject["count"]
    for (source, file), count in lost.most_common(_DAMAGED_FILES):
        console.say(f"           {source}: {file} is damaged, about {count:,} records lost")
    if (more := len(lost) - _DAMAGED_FILES) > 0:
        console.say(f"           {more:,} more damaged files are in {output}/{place}{REJECTS}")
