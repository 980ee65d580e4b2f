"""r(C), against difflib and by hand."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_db.report.leakage import BINS, SHARES, longest_common
from retro_db_pipelines.commands.cli import run
from support.projects import Project, make_project, remove_documents
from support.texts import python_sources


def longest(first: list[int], second: list[int]) -> int:
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return matcher.find_longest_match(0, len(first), 0, len(second)).size


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 64), st.integers(2, 6))
def test_the_longest_common_substring_is_difflibs(n: int, k: int, m: int, words: int) -> None:
    chance = np.random.default_rng(n)
    chunks = chance.integers(0, words, (5, m)).astype(np.uint16)
    values = chance.integers(0, words, (5, k, 2 * m)).astype(np.uint16)
    lengths = chance.integers(1, m + 1, 5)
    # F stands behind a whole N alone.
    value_lengths = np.stack([chance.integers(0, m + 1, (5, k)), np.zeros((5, k), int)], axis=-1)
    whole = chance.random((5, k)) < 0.5
    value_lengths[whole] = [m, chance.integers(0, m + 1)]
    found = longest_common(chunks, lengths, values, value_lengths)
    for row in range(5):
        own = chunks[row, : lengths[row]].tolist()
        for rank in range(k):
            other = values[row, rank, : value_lengths[row, rank].sum()].tolist()
            assert found[row, rank] == longest(own, other)


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A query corpus of a copied text, a text with a copied passage, and a text of its own."""
    texts = python_sources(24)
    folder = tmp_path_factory.mktemp("leaking")
    asked = folder / "asked"
    asked.mkdir()
    (asked / "copied.txt").write_text(texts[0])
    (asked / "passage.txt").write_text("A tale of whales and of iron. " * 8 + texts[1][:150])
    (asked / "own.txt").write_text("Whales sang about the iron bread of rain. " * 20)
    queries = [{"name": "asked", "paths": [str(asked / "*.txt")]}]
    project = make_project(folder, texts, queries=queries, split={"validation": 0.15})
    assert project.build() == 0
    return project


@pytest.mark.parametrize("queries", ["asked", None])
def test_every_chunks_figures_are_those_of_difflib(
    leaking: Project, tmp_path: Path, capsys: Any, queries: str | None
) -> None:
    database = leaking.open()
    corpus = database if queries is None else database.queries[queries]
    options = [] if queries is None else ["--queries", queries]
    saved = tmp_path / "figures.parquet"
    assert run(["leakage", str(leaking.output), *options, "--save", str(saved), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    figures = pq.read_table(saved).to_pylist()
    splits = np.array(corpus.documents["split"].to_pylist())
    expected = np.arange(len(corpus))
    if queries is None:
        expected = expected[splits[corpus.chunks.documents(expected)] == "validation"]
    assert [one["chunk"] for one in figures] == expected.tolist()
    ratios = []
    for one in figures:
        own = corpus.chunks[one["chunk"]][: one["length"]].tolist()
        assert one["length"] == corpus.chunks.lengths([one["chunk"]])[0]
        near = [int(i) for i in corpus.neighbors[one["chunk"]][:10] if i >= 0]
        values = database.chunks.values(near)
        lengths = database.chunks.value_lengths(near).sum(axis=1)
        common = [longest(own, v[:c].tolist()) for v, c in zip(values, lengths, strict=True)]
        assert one["common"] == max(common, default=0)
        if one["common"]:
            assert one["neighbor"] == near[common.index(one["common"])]
        ratios.append(one["common"] / one["length"])
    assert told["chunks"] == len(ratios) > 3
    assert told["at_most"] == [sum(r <= share for r in ratios) for share in SHARES]
    assert told["mean"] == pytest.approx(np.mean(ratios))
    bins = [sum(r == 0 for r in ratios)]
    bins += [sum(i / BINS < r <= (i + 1) / BINS for r in ratios) for i in range(BINS)]
    assert told["histogram"] == bins


def test_what_was_copied_is_seen(leaking: Project, capsys: Any) -> None:
    database = leaking.open()
    corpus = database.queries["asked"]
    assert run(["leakage", str(leaking.output), "--queries", "asked"]) == 0
    shown = capsys.readouterr().out
    assert f"{len(corpus)} chunks of the query corpus asked, 10 neighbors of each" in shown
    assert "at most 12.5%" in shown
    assert "over 93.75% up to 100.00%" in shown


def test_mistakes_are_named(leaking: Project, tmp_path: Path, capsys: Any) -> None:
    assert run(["leakage", str(leaking.output), "--queries", "other"]) == 2
    assert "queries: other is not in the database; known: asked" in capsys.readouterr().err
    assert run(["leakage", str(leaking.output), "-k", "21"]) == 2
    assert "k: 21 is not between 1 and the 20 neighbors stored" in capsys.readouterr().err
    whole = make_project(tmp_path, ["one text that is short", "another one"])
    assert whole.build() == 0
    capsys.readouterr()
    assert run(["leakage", str(whole.output)]) == 2
    assert "has no validation split; name a query corpus" in capsys.readouterr().err


def test_removed_documents_are_not_measured(tmp_path: Path, capsys: Any) -> None:
    project = make_project(tmp_path, python_sources(12), split={"validation": 0.4})
    assert project.build() == 0
    documents = project.open().documents.to_pylist()
    held_out = [one for one in documents if one["split"] == "validation"]
    assert len(held_out) > 1
    assert remove_documents(project.output, [held_out[0]["id"]]) == 0
    capsys.readouterr()
    assert run(["leakage", str(project.output), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["chunks"] == sum(one["chunk_count"] for one in held_out[1:])
