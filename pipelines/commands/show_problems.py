"""What `retro-db verify` prints."""

from __future__ import annotations

from retro_db.config import load_config
from retro_db.store.serialize import to_json
from retro_db.verify import silent, verify_database

from ..engine.console import Console


def show_problems(
    url: str,
    recompute: float,
    encoder: str | None,
    console: Console,
    *,
    inputs: str | None,
    seed: int | None,
    as_json: bool,
) -> int:
    """What verify found.

    Returns:
        The exit code: 0 where nothing is wrong.
    """
    stage = silent if as_json else console.stage
    config = load_config(inputs, of_database=True) if inputs else None
    checked = verify_database(url, recompute, encoder, stage, inputs=config, seed=seed)
    if as_json:
        console.show_json(to_json(checked))
    else:
        for problem in checked.problems:
            console.say(f"wrong: {problem}")
        for note in checked.notes:
            console.say(f"note: {note}")
        console.say(
            f"{url}: {checked.files:,} files, {checked.chunks:,} chunks: "
            + (f"{len(checked.problems):,} problems" if checked.problems else "sound")
        )
    return 1 if checked.problems else 0
