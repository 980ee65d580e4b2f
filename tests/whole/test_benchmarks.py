"""Benchmarks that need no other environment run, on little, and print the figures that they are there for."""

from __future__ import annotations

from pathlib import Path

from support.benchmarks import printed_by
from support.projects import Project
from support.texts import wikitext


def test_chunking(tmp_path: Path) -> None:
    told = printed_by("chunking.py", "--megabytes=1", "--rounds=1", folder=tmp_path)
    assert "one worker of one thread beside encode_batch: " in told
    assert "two workers beside one: " in told
    assert "peak memory, ten times the corpus beside one: " in told


def test_embedding(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.write_text(wikitext("valid.txt")[0][:5000], "utf-8")
    told = printed_by("embedding.py", "--rounds=1", f"--texts={texts}", folder=tmp_path)
    assert "| a bare loop, its own matrix products | " in told
    assert "padding: " in told


def test_index(tmp_path: Path) -> None:
    options = ["--synthetic=3000", "--rounds=1", "--peers=autofaiss"]
    assert "queries/s at recall 0.99, ours" in printed_by("index.py", *options, folder=tmp_path)


def test_neighbors(tmp_path: Path) -> None:
    options = ["--synthetic=3000", "--rounds=1", "--peers=faiss", "--partitions", "1", "3"]
    told = printed_by("neighbors.py", *options, folder=tmp_path)
    assert "keys/s at recall 0.99; " in told
    assert "the whole stage in 3 partitions" in told


def test_exchange(tmp_path: Path) -> None:
    printed = printed_by("exchange.py", "--tasks=3", "--kilobytes=10", folder=tmp_path)
    for way in ("files of slices", "GroupByKey"):
        assert f"{way}: 0 MB in " in printed


def test_recall(tmp_path: Path, small: Project) -> None:
    told = printed_by("recall.py", str(small.output), folder=tmp_path)
    assert "recall@10 against exact search over other documents: " in told


def test_reading(tmp_path: Path) -> None:
    told = printed_by("reading.py", "--chunks=20000", "--rounds=2", folder=tmp_path)
    assert "[N, F] beside np.memmap: " in told
    assert "sequences of 2,048 tokens with k=2 a second: " in told
    assert "memory of a reader, ten times the database beside one: " in told


def test_stores(tmp_path: Path) -> None:
    options = ["--chunks=20000", "--rounds=2", "--seconds=0.05", "--peers=np.memmap,Parquet"]
    told = printed_by("stores.py", *options, folder=tmp_path)
    for store in ("retro-db", "np.memmap", "Parquet"):
        assert f"| {store} | " in told


def test_run_all(tmp_path: Path, small: Project) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\n| by hand |\n", "utf-8")
    for _ in range(2):
        options = [str(small.output), "recall.py", f"--results={results}"]
        printed_by("run_all.py", *options, folder=tmp_path)
        page = results.read_text("utf-8")
        assert page.startswith("# Results\n\n| by hand |\n\n## What `make bench` last printed\n")
        assert page.count("### `python benchmarks/recall.py DATABASE`") == 1
        assert page.count("recall@10 against exact search over other documents: ") == 1
