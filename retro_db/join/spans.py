"""Spans: chunks that are routed, or whose neighbors are gathered, at a time; consecutive by their ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retro_db.manifest.parts import Part


@dataclass(frozen=True)
class PartRows:
    """Rows start to stop - 1 of a part."""

    part: Part
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of the rows."""
        return self.stop - self.start

    @property
    def first_id(self) -> int:
        """Global id of the first row."""
        return self.part.first_id + self.start


@dataclass(frozen=True)
class Span:
    """Consecutive rows of one or more parts.

    Attributes:
        number: Number of the span.
        pieces: The rows, part by part.
    """

    number: int
    pieces: list[PartRows]

    @property
    def name(self) -> str:
        """Name of the span, as in its file names."""
        return f"span-{self.number:07d}"

    @property
    def rows(self) -> int:
        """Number of its chunks."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def first_id(self) -> int:
        """Global id of its first chunk."""
        return self.pieces[0].first_id


def cut_spans(parts: Sequence[Part], least: int, most: int) -> list[Span]:
    """Gathers small parts, and cuts large ones.

    Args:
        parts: All parts, in order.
        least: Chunks of a span, at the least, where whole parts allow it.
        most: Chunks of a span, at the most, where rows of one part allow it.

    Returns:
        Spans of all chunks; none is of pieces of a part and of other parts.
    """
    spans: list[list[PartRows]] = []
    gathered: list[PartRows] = []
    for part in parts:
        rows = sum(piece.rows for piece in gathered)
        if gathered and (rows >= least or rows + part.rows > most):
            spans.append(gathered)
            gathered = []
        if part.rows > most:
            cuts = [*range(0, part.rows, most), part.rows]
            spans += [[PartRows(part, *cut)] for cut in itertools.pairwise(cuts)]
        else:
            gathered.append(PartRows(part, 0, part.rows))
    if gathered:
        spans.append(gathered)
    return [Span(number, pieces) for number, pieces in enumerate(spans)]


def of_whole_parts(spans: Iterable[Span]) -> list[list[Span]]:
    """Groups spans, so that the rows of a part are in one group."""
    groups = itertools.groupby(spans, key=lambda span: span.pieces[0].part.first_id)
    return [list(group) for _, group in groups]
