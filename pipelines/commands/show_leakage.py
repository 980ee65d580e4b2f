"""What `retro-db leakage` prints."""

from __future__ import annotations

import retro_db
from retro_db.report.leakage import BINS, SHARES, measure_leakage
from retro_db.store.serialize import to_json

from ..engine.console import Console

_BAR = 30  # characters of the longest


def show_leakage(
    url: str, queries: str | None, k: int, save: str | None, console: Console, *, as_json: bool
) -> None:
    """How r(C) is distributed over an evaluation set."""
    measured = measure_leakage(retro_db.open(url), queries, k, save)
    if as_json:
        console.show_json(to_json(measured))
        return
    of = f"the query corpus {queries}" if queries else "the validation split"
    alone = f"; {measured.without_neighbors:,} have none" if measured.without_neighbors else ""
    console.say(f"leakage    {measured.chunks:,} chunks of {of}, {k} neighbors of each{alone}")
    console.say(f"           r(C) is {measured.mean:.3f} on average")
    shares = [
        (f"at most {share:.1%}", f"{count:,}", f"{count / measured.chunks:.1%}")
        for share, count in zip(SHARES, measured.at_most, strict=True)
    ]
    console.show_table(("r(C)", "chunks", "share"), shares)
    most = max(measured.histogram)
    bins = [
        (
            f"over {(number - 1) / BINS:.2%} up to {number / BINS:.2%}" if number else "0%",
            f"{count:,}",
            "#" * -(-_BAR * count // most),
        )
        for number, count in enumerate(measured.histogram)
    ]
    console.show_table(("r(C)", "chunks", ""), bins, texts={2})
