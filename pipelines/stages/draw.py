"""Draws the chunks that train the index, and those that it is tuned with, from every part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from retro_db.index.drawing import DRAWN, Drawing, Drawn, draw_part, drawn_path
from retro_db.manifest.parts import Part, contents_of
from retro_db.meter import Meter
from retro_db.store.folder import FileEntry, Folder
from retro_db.store.serialize import to_json

from ..engine.context import Build
from ..engine.jobs import Job, Stage, Task, fingerprint

VERSION = 1


@dataclass
class DrawJob(Job):
    """Draws chunks of one part, or takes over what was drawn while it was embedded."""

    stage: ClassVar[str] = "draw"
    part_of: ClassVar[str | None] = "train"
    home: Folder
    drawing: Drawing

    def run(self, shared: None, item: tuple[Part, Drawn | None], meter: Meter, /) -> Drawn:
        part, ahead = item
        meter(part.rows)
        return ahead or draw_part(part, self.home, self.folder, self.drawing)

    def files(self, result: Drawn) -> list[FileEntry]:
        return [result.sliced.file]


def draw_stage(
    build: Build, parts: list[Part], drawing: Drawing, ahead: Sequence[Drawn | None] = ()
) -> list[Drawn]:
    """Draws chunks of every part.

    Args:
        build: The build.
        parts: All parts, their files as the database sees them.
        drawing: Which chunks are drawn.
        ahead: What was drawn of each part while it was embedded, if anything.

    Returns:
        What was drawn from each part.
    """
    decides = {"drawing": to_json(drawing)}
    standing = _standing(build, parts, drawing, ahead or [None] * len(parts))
    tasks = [
        Task(
            part.name,
            fingerprint(VERSION, decides | {"embed": [part.first_id, *contents_of(part)]}),
            (part, drawn),
        )
        for part, drawn in zip(parts, standing, strict=True)
    ]
    total = sum(part.rows for part in parts)
    job = DrawJob(build.folder, build.home, drawing)
    results = build.run(Stage(job, tasks, Drawn, "chunks", total))
    kept = {Path(drawn.sliced.file.path).name for drawn in results}
    for name in set(build.folder.list(DRAWN)) - kept:
        build.action.discard(build.folder, f"{DRAWN}/{name}")
    return results


def _standing(
    build: Build, parts: list[Part], drawing: Drawing, ahead: Sequence[Drawn | None]
) -> list[Drawn | None]:
    """What was drawn ahead of each part, if it is what is to be drawn now, and is still there."""
    missing = build.folder.missing(drawn.sliced.file for drawn in ahead if drawn)
    standing = {drawn_path(part, drawing) for part in parts} - missing
    return [drawn if drawn and drawn.sliced.file.path in standing else None for drawn in ahead]
