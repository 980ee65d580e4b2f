"""Documents left out for their content: evaluation texts, names, and duplicates."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_db.errors import CorpusError
from retro_db.screening.duplicates import keep_first
from retro_db.screening.grams import Bands, gram_hashes, jaccard
from retro_db.store.contracts import contract
from retro_db.verify import verify_database
from retro_db_pipelines.commands.cli import run
from support.projects import Project, make_project
from support.soak import amount
from support.texts import python_sources, wikitext

Grams = frozenset[tuple[str, ...]]
PAIRS = amount(quick=1000, soak=5000)


def grams_of(text: str, n: int = 13) -> Grams:
    """Word grams as tuples of words: the rule once more, without hashes."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return frozenset()
    return frozenset(tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


def similarity(one: Grams, other: Grams) -> float:
    return len(one & other) / len(one | other) if one and other else 0.0


@given(st.text(), st.text(), st.integers(1, 14))
def test_similarity_is_that_of_sets_of_grams(one: str, other: str, n: int) -> None:
    first, second = gram_hashes(one, n), gram_hashes(other, n)
    assert len(first) == len(grams_of(one, n))
    assert jaccard(first, second) == pytest.approx(similarity(grams_of(one, n), grams_of(other, n)))
    assert jaccard(first, second) == jaccard(second, first)


def test_a_short_text_is_one_gram() -> None:
    assert jaccard(gram_hashes("Hello, World!", 13), gram_hashes("hello world", 13)) == 1.0
    assert jaccard(gram_hashes("hello world", 13), gram_hashes("hello there", 13)) == 0.0
    assert len(gram_hashes("... !!", 13)) == 0


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8, 0.95, 1.0])
def test_bands_miss_hardly_any_pair_at_their_threshold(threshold: float) -> None:
    bands = Bands.for_threshold(threshold)
    assert bands.count * bands.rows <= 128
    assert (1 - threshold**bands.rows) ** bands.count <= 1e-4


def planted(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of texts whose similarity spreads over 0 to 1."""
    source = random.Random(seed)
    words = " ".join(python_sources(300)).split()
    return [_pair(words, source) for _ in range(count)]


def _pair(words: Sequence[str], source: random.Random) -> tuple[str, str]:
    size = source.randrange(15, 400)
    start = source.randrange(len(words) - size)
    copy = [*words[start : start + size]]
    for _ in range(source.choice([0, 0, 1, 1, 1, 2, 3, 5, 9])):
        place, span = source.randrange(len(copy)), source.randrange(1, max(2, len(copy) // 10))
        new = source.choices(words, k=source.randrange(span + 1))
        copy[place : place + source.randrange(span + 1)] = new
        copy = copy or ["nothing"]
    return " ".join(words[start : start + size]), " ".join(copy)


def chunk(project: Project) -> None:
    for stage in ("tokenizer", "screen", "chunk"):
        assert run(["stage", stage, str(project.config)]) == 0


def dropped(project: Project) -> dict[str, dict]:
    """The table of documents left out, by id."""
    folder = project.output / "dropped"
    rows = [row for path in sorted(folder.glob("*")) for row in pq.read_table(path).to_pylist()]
    return {row["id"]: row for row in rows}


def write_lines(path: Path, texts: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [orjson.dumps({"id": name, "text": text}) for name, text in texts.items()]
    path.write_bytes(b"\n".join(lines))
    return path


def test_documents_close_to_evaluation_texts_are_left_out(tmp_path: Path) -> None:
    pairs = planted(PAIRS, seed=1)
    evaluation = {f"eval-{i}": text for i, (text, _) in enumerate(pairs)}
    project = make_project(tmp_path, [text for _, text in pairs])
    project.settings |= {
        "tokenizer": {"train": {"vocab_size": 400, "sample": "100KB"}},
        "chunk": {"shard_size": 1_000_000},
        "leakage": {"paths": [str(write_lines(tmp_path / "eval/a.jsonl", evaluation))], "id": "id"},
    }
    chunk(project)
    found = dropped(project)
    sets = [grams_of(text) for text in evaluation.values()]
    owners: dict[tuple[str, ...], list[int]] = {}
    for number, grams in enumerate(sets):
        for gram in grams:
            owners.setdefault(gram, []).append(number)
    closest = np.zeros(len(pairs))
    for number, (_, text) in enumerate(pairs):
        grams = grams_of(text)
        near = {other for gram in grams for other in owners.get(gram, ())}
        closest[number] = max((similarity(grams, sets[other]) for other in near), default=0.0)
    spread = np.histogram(closest, 10, (0, 1))[0]
    assert spread.min() > amount(quick=15, soak=100), "the pairs spread over all similarities"
    caught = np.array([f"doc-{number}" in found for number in range(len(pairs))])
    assert not caught[closest < 0.8].any()
    assert caught[closest >= 0.8].mean() >= 0.999
    for name, row in found.items():
        text, by = grams_of(pairs[int(name[4:])][1]), sets[int(row["by"][5:])]
        assert row["reason"] == "leakage"
        assert row["similarity"] == pytest.approx(similarity(text, by))


def test_duplicates_are_left_out_and_what_they_are_close_to_stays(tmp_path: Path) -> None:
    pairs = planted(PAIRS // 2, seed=2)
    texts = [text for pair in pairs for text in pair]
    order = list(range(len(texts)))
    random.Random(3).shuffle(order)
    folder = tmp_path / "corpus"
    for number in range(5):
        part = {f"doc-{i}": texts[i] for i in order[number::5]}
        write_lines(folder / f"{number}.jsonl", part)
    project = make_project(tmp_path, ["unused"])
    project.settings |= {
        "corpus": [{"name": "test", "paths": [str(folder)], "id": "id"}],
        "tokenizer": {"train": {"vocab_size": 400, "sample": "100KB"}},
        "chunk": {"shard_size": 1_000_000},
        "dedup": {"jaccard": 0.8},
    }
    chunk(project)
    found = dropped(project)
    sets = {f"doc-{i}": grams_of(text) for i, text in enumerate(texts)}
    for name, row in found.items():
        kept = row["by"].removeprefix("test:")
        assert kept not in found, "it stays"
        assert row["similarity"] == pytest.approx(similarity(sets[name], sets[kept]))
        assert row["similarity"] >= 0.8
    close = [
        similarity(sets[f"doc-{2 * i}"], sets[f"doc-{2 * i + 1}"]) >= 0.8 for i in range(len(pairs))
    ]
    gone = [f"doc-{2 * i}" in found or f"doc-{2 * i + 1}" in found for i in range(len(pairs))]
    assert sum(close) > 0.16 * PAIRS
    assert np.mean([gone[i] for i in range(len(pairs)) if close[i]]) >= 0.999

    again = project.settings | {"output": str(tmp_path / "again")}
    other = Project(project.folder, [], again)
    for stage in ("tokenizer", "screen", "chunk"):
        assert run(["stage", stage, str(other.config), "--workers", "2"]) == 0
    assert dropped(other) == found
    for path in sorted((project.output / "chunks").iterdir()):
        assert path.read_bytes() == (other.output / "chunks" / path.name).read_bytes()


pairs_of_documents = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.8, 0.9, 1.0])),
    max_size=30,
)


@given(pairs_of_documents)
def test_every_document_left_out_is_close_to_one_that_stays(
    pairs: list[tuple[int, int, float]],
) -> None:
    ordered = {(min(a, b), max(a, b)): s for a, b, s in pairs if a != b}
    found = keep_first((a, b, s) for (a, b), s in ordered.items())
    for kept, _ in found.values():
        assert kept not in found
    for first, second in ordered:
        assert first in found or second in found, "of a close pair one is left out"
    assert found == keep_first((a, b, s) for (a, b), s in reversed(ordered.items()))


def test_many_copies_of_one_text_keep_one(tmp_path: Path) -> None:
    texts = ["the same words again and again in this one text of many words, twice"] * 3000
    texts += [f"a text of its own, number {number}, unlike all others" for number in range(20)]
    project = make_project(tmp_path, texts, dedup={"jaccard": 0.8})
    chunk(project)
    found = dropped(project)
    assert len(found) == 2999
    assert {row["by"] for row in found.values()} == {"test:doc-0"}


def test_copies_are_found_among_any_number_of_like_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retro_db.screening.duplicates._MOST_COMPARED", 10)
    frame = " ".join(f"word{number}" for number in range(200))
    texts = [f"{frame} {' '.join(f'own{page}x{n}' for n in range(50))}" for page in range(60)]
    project = make_project(tmp_path, [*texts, *texts[40:]], dedup={"jaccard": 0.9})
    chunk(project)
    assert sorted(dropped(project)) == sorted(f"doc-{60 + number}" for number in range(20))


def test_wikitext_splits_lose_nothing_to_each_other(tmp_path: Path) -> None:
    for corpus, evaluation in (("valid.txt", "test.txt"), ("test.txt", "valid.txt")):
        texts, others = wikitext(corpus), wikitext(evaluation)
        project = make_project(tmp_path / corpus, texts)
        lines = write_lines(
            tmp_path / corpus / "eval.jsonl", {str(i): text for i, text in enumerate(others)}
        )
        project.settings["leakage"] = {"paths": [str(lines)]}
        project.settings["tokenizer"] = {"train": {"vocab_size": 400, "sample": "100KB"}}
        chunk(project)
        assert dropped(project) == {}
        records = (project.output / "state/records/chunk.jsonl").read_text()
        [record] = [orjson.loads(line) for line in records.splitlines()]
        rows = [part["documents"]["rows"] for part in record["result"]["parts"]]
        assert sum(rows) == len(texts) == (60 if corpus == "valid.txt" else 62)


def test_a_whole_build_tells_what_was_left_out_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = python_sources(20)
    texts = [*sources, sources[3] + " one more word", sources[5]]
    project = make_project(tmp_path, texts, dedup={"jaccard": 0.8})
    evaluation = write_lines(tmp_path / "eval" / "e.jsonl", {"secret": sources[0] + " at its end"})
    project.settings["leakage"] = {
        "paths": [str(evaluation)],
        "id": "id",
        "names": ["doc-1", "doc-2", "of no document"],
    }
    assert project.build() == 0
    assert "dropped 2 duplicate, 1 leakage, 2 name" in capsys.readouterr().out
    database = project.open()
    [source] = database.manifest.sources
    assert source.dropped_by == {"name": 2, "leakage": 1, "duplicate": 2}
    assert (source.read, source.documents, source.dropped) == (22, 17, 5)
    [entry] = database.manifest.tables.dropped
    table = pq.read_table(project.output / entry.path)
    assert table.schema.equals(contract("dropped").schema())
    rows = table.to_pylist()
    assert [(row["id"], row["reason"], row["by"]) for row in rows] == [
        ("doc-0", "leakage", "secret"),
        ("doc-20", "duplicate", "test:doc-3"),
        ("doc-21", "duplicate", "test:doc-5"),
    ]
    names = set(database.documents["id"].to_pylist())
    assert names == {f"doc-{i}" for i in range(3, 20)}
    assert not verify_database(str(project.output)).problems
    assert str(evaluation) not in (project.output / "manifest.json").read_text()

    # What is close to what is chosen anew; only the shard whose verdicts change is chunked again.
    project.settings["leakage"]["names"] = []
    project.settings["dedup"] = {"jaccard": None}
    assert project.build() == 0
    [source] = project.open().manifest.sources
    assert source.dropped_by == {"leakage": 1}
    project.settings["leakage"] = {}
    assert project.build() == 0
    assert project.open().manifest.tables.dropped == []
    assert not (project.output / "dropped").exists()
    assert not verify_database(str(project.output)).problems
    # Evaluation texts that come later count, though the manifest names no paths.
    project.settings["leakage"] = {"paths": [str(evaluation)]}
    assert project.build() == 0
    [source] = project.open().manifest.sources
    assert source.dropped_by == {"leakage": 1}


def test_evaluation_texts_that_cannot_be_read_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path, ["some text"])
    bad = tmp_path / "eval.jsonl"
    bad.write_bytes(b'{"text": "fine"}\nnot json\n')
    for paths, words in ((str(bad), "eval.jsonl at 17: not JSON"), ("gone.txt", "does not exist")):
        project.settings["leakage"] = {"paths": [paths]}
        assert project.build() == CorpusError.exit_code
        error = capsys.readouterr().err
        assert "leakage.paths" in error
        assert words in error
    assert not (project.output / "manifest.json").exists()
