"""What is looked at by the sample is another choice each time, and is told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import retro_db
from retro_db.verify import verify_database, verifying
from retro_db.verify.sampling import Sample
from retro_db_pipelines.commands.cli import run
from support.hostile import rewrite
from support.projects import Project

SHARE = 0.5


@pytest.fixture
def partly(six: Project, db: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database half of whose distances are looked at."""
    database = retro_db.open(str(db))
    rows = sum(e.rows for c in (database, *database.queries.values()) for e in c.tables.chunks)
    values = rows * database.manifest.neighbors.k * database.manifest.encoder.dimension
    monkeypatch.setattr(verifying, "_DISTANCE_VALUES", round(SHARE * values))
    return db


def test_all_distances_are_looked_at_where_that_is_soon_done(db: Path) -> None:
    def alter(columns: dict[str, np.ndarray]) -> None:
        columns["distances"][:, -1] *= 1.01

    checked = verify_database(str(db))
    assert not any("distances were checked on" in note for note in checked.notes)
    rewrite(db, "neighbors", alter)
    wrong = [p for p in verify_database(str(db)).problems if "are not those of the embeddings" in p]
    rows = retro_db.open(str(db)).manifest.counts.chunks
    assert len(wrong) == 11
    assert f"distances of {rows - 10} more rows" in wrong[-1]


def test_a_seed_that_is_known_hides_nothing_from_the_next(
    partly: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spared = Sample(SHARE, 0)

    def alter(columns: dict[str, np.ndarray]) -> None:
        distances = columns["distances"]
        distances[~spared.takes(np.arange(len(distances))), -1] *= 1.01

    rewrite(partly, "neighbors", alter)
    assert run(["verify", str(partly), "--seed", "0"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"note: distances were checked on 5\d\.\d\d% of \d+ rows \(seed 0\)", shown)
    assert "the chance to have missed all of them is" in shown
    assert run(["verify", str(partly)]) == 1
    assert "are not those of the embeddings" in capsys.readouterr().out


def test_documents_that_are_computed_again_are_others_each_time(
    small: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = set()
    for _ in range(2):
        assert run(["verify", str(small.output), "--recompute", "0.05"]) == 0
        [note] = re.findall(
            r"note: (\d+ of 40 documents were computed .*)", capsys.readouterr().out
        )
        notes.add(note)
    assert len(notes) == 2


def test_the_chance_to_miss_is_that_of_the_sample() -> None:
    rng = np.random.default_rng(0)
    ids, wrong = np.arange(4000), 4
    missed = []
    for seed in range(400):
        taken = Sample(SHARE, seed).takes(ids)
        missed.append(not taken[rng.choice(4000, wrong, replace=False)].any())
    chance = float(Sample(SHARE, 0).missing(4000).rsplit(" ", 1)[1])
    assert chance == pytest.approx(0.0625, abs=0.005)
    assert np.mean(missed) == pytest.approx(0.0625, abs=0.04)
