"""Plans agree with themselves, with the databases that are built, and with the paper's size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retro_db.config import load_config
from retro_db.corpus.estimating import expected_chunks
from retro_db.index.keys import choose_key, parse_key
from retro_db.index.training import training_points
from retro_db.plan import estimated_facts, make_plan
from retro_db.store.folder import Folder
from retro_db.store.packing import pack_numbers, unpack_numbers
from retro_db.store.records import StageRecords
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.plan import parse_count
from support.paper_size import RECORDS
from support.places import TESTS
from support.projects import Project, make_project
from support.soak import amount
from support.texts import python_sources

PAPER = ["--tokens", "1.75T"]
CHUNKS = 28_000_000_000


def planned(capsys: Any, *arguments: str) -> dict[str, Any]:
    """The command's JSON."""
    capsys.readouterr()
    assert run(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def sizes_by_table(project: Project) -> dict[str, tuple[int, int]]:
    """Files and bytes of a built database, as its manifest lists them, and the manifest's own."""
    manifest = project.open().manifest
    listed = {
        **vars(manifest.tables),
        "index": manifest.index_files,
        "tokenizer": manifest.tokenizer_files,
        "queries": [file for query in manifest.queries for file in query.tables.files],
    }
    sizes = {
        name: (len(files), sum(file.bytes for file in files))
        for name, files in listed.items()
        if files
    }
    return sizes | {"manifest": (1, (project.output / "manifest.json").stat().st_size)}


def check_sums(plan: dict[str, Any]) -> None:
    """Every total is the sum of its parts."""
    totals, chunks = plan["totals"], plan["chunks"]
    assert totals["files"] == sum(table["files"] for table in plan["tables"])
    assert totals["bytes"] == sum(table["bytes"] for table in plan["tables"])
    assert totals["temporary_bytes"] == sum(table["bytes"] for table in plan["temporary"])
    assert totals["peak_bytes"] == totals["bytes"] + totals["temporary_bytes"]
    for name in ("tasks", "descriptor_bytes", "list_requests"):
        assert totals[name] == sum(stage[name] for stage in plan["stages"])
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    sizes = {table["table"]: table["bytes"] for table in plan["tables"]}
    joined = [stages[name] for name in ("route", "home", "visit", "neighbors") if name in stages]
    written = sum(stage["needs"]["written"] for stage in joined)
    assert plan["join"]["written_bytes"] == written - stages["neighbors"]["needs"]["written"]
    read = sum(stage["needs"]["read"] for stage in joined)
    # The headers of files are left out of the join's own figure.
    assert read == pytest.approx(plan["join"]["read_bytes"], rel=0.01)
    assert stages["embed"]["needs"]["read"] == sizes["chunks"]
    assert [
        name for name, stage in stages.items() if (stage["needs"] or {}).get("random_reads")
    ] == ["tune"]
    each = sum(table["bytes_per_chunk"] for table in plan["tables"])
    assert totals["bytes_per_chunk"] == pytest.approx(each, abs=0.01)
    for table in [*plan["tables"], *plan["temporary"]]:
        assert table["bytes_per_chunk"] == pytest.approx(table["bytes"] / chunks, abs=0.001)
    for hours in plan["hours"]:
        seconds = hours["chunks"] / hours["chunks_per_second"]
        assert hours["hours"] == pytest.approx(seconds / 3600, abs=0.001)


def test_the_papers_corpus(capsys: Any) -> None:
    plan = planned(capsys, *PAPER)
    check_sums(plan)
    assert plan["chunks"] == pytest.approx(CHUNKS, rel=0.02)
    assert plan["shards"] == -(-7 * 10**12 // 256_000_000)
    assert plan["parts"] == plan["shards"]
    assert plan["largest_part"] <= 1_048_576
    tables = {table["table"]: table for table in plan["tables"]}
    each = {name: table["bytes_per_chunk"] for name, table in tables.items()}
    # Four bytes a token, ten beside them, the keys' float16, 12 bytes a neighbor: and little more.
    assert each["chunks"] == pytest.approx(64 * 4 + 10, rel=0.001)
    assert each["embeddings"] == pytest.approx(2 * 768, rel=0.001)
    assert each["neighbors"] == pytest.approx(12 * 20, rel=0.001)
    assert each["chunks"] + each["index"] + each["documents"] < 350
    assert tables["manifest"]["bytes"] > 180 * plan["totals"]["files"]
    assert plan["index"]["training_bytes"] <= plan["index"]["memory"]
    assert plan["index"]["search_bytes"] <= plan["index"]["memory"]
    assert plan["totals"]["shuffled_bytes"] == 0
    # What moves is nothing beside what lies there.
    assert plan["totals"]["descriptor_bytes"] < plan["totals"]["bytes"] / 100_000
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert stages["embed"]["tasks"] == plan["parts"]
    # Neither training nor sampling reads all embeddings.
    assert stages["train"]["needs"]["read"] < tables["embeddings"]["bytes"] / 100
    assert stages["sample"]["needs"]["read"] < 10_000_000
    assert stages["embed"]["list_requests"] == 2 * -(-plan["parts"] // 1000)


def test_what_is_printed_is_what_the_json_says(capsys: Any) -> None:
    plan = planned(capsys, *PAPER)
    assert run(["plan", *PAPER]) == 0
    told = capsys.readouterr().out
    numbers = [plan[name] for name in ("tokens", "documents", "chunks", "shards", "parts")]
    numbers += [table["files"] for table in plan["tables"]]
    numbers += [stage["tasks"] for stage in plan["stages"]]
    numbers += [plan["index"][name] for name in ("lists", "partitions", "search_groups")]
    numbers += [plan["join"][name] for name in ("nprobe", "partitions", "key_reads")]
    for number in numbers:
        assert f"{number:,}" in told
    words = [plan["index"]["key"], "TB", "no payload"]
    words += [table["table"] for table in plan["tables"]]
    words += [stage["stage"] for stage in plan["stages"]]
    words += [hours["source"] for hours in plan["hours"]]
    for word in words:
        assert word in told


def test_a_measured_rate_is_used_and_named(capsys: Any) -> None:
    published = planned(capsys, *PAPER)["hours"]
    own = planned(capsys, *PAPER, "--chunks-per-second", "20,000")["hours"]
    [embed] = [hours for hours in own if hours["stage"] == "embed"]
    assert embed["hours"] == pytest.approx(28.2e9 / 20_000 / 3600, rel=0.02)
    assert embed["source"] == "as given"
    assert published[0] == own[0]
    for hours in published:
        assert any(word in hours["source"] for word in ("Gordon", "InstructRetro"))


def test_this_machine_is_probed(wiki: Project, capsys: Any) -> None:
    unknown = planned(capsys, *PAPER)["hours"]
    assert "home, visit" not in {hours["stage"] for hours in unknown}
    assert run(["plan", *PAPER]) == 0
    assert "home, visit: no rate is known; give --probe or --sample" in capsys.readouterr().out
    for arguments, stages in ((PAPER, {"home, visit"}), ([wiki.config], {"embed", "home, visit"})):
        plan = planned(capsys, *map(str, arguments), "--probe")
        check_sums(plan)
        probed = {hours["stage"] for hours in plan["hours"] if "was probed" in hours["source"]}
        assert probed == stages


def test_every_option_is_read(capsys: Any) -> None:
    plain = planned(capsys, "--tokens", "30B")
    assert plain["tokens"] == 30_000_000_000
    changes: dict[str, list[str]] = {
        "documents": ["--tokens-per-document", "500"],
        "input_bytes": ["--bytes-per-token", "3.5"],
        "token_type": ["--vocab-size", "50k"],
        "dimension": ["--dimension", "1024"],
        "k": ["--k", "2"],
        "index": ["--index-memory", "200GB"],
        "join": ["--nprobe", "16"],
        "temporary": ["--no-embeddings"],
        "shards": ["--set", "chunk.shard_size=1GB"],
        "totals": ["--set", "dedup.jaccard=0.8"],
    }
    for field, arguments in changes.items():
        changed = planned(capsys, "--tokens", "30B", *arguments)
        check_sums(changed)
        assert changed[field] != plain[field], arguments
    without = planned(capsys, "--tokens", "30B", "--no-embeddings")
    assert "fine" in {table["table"] for table in without["tables"]}
    assert "embeddings" in {table["table"] for table in without["temporary"]}
    duplicates = planned(capsys, "--tokens", "30B", "--set", "dedup.jaccard=0.8")
    assert duplicates["totals"]["shuffled_bytes"] > 16 * duplicates["documents"]
    assert {"screen", "pairs", "resolve"} <= {stage["stage"] for stage in duplicates["stages"]}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.75T", 1.75e12),
        ("300B", 3e11),
        ("12M", 12e6),
        ("12m", 12e6),
        ("5 k", 5000),
        ("1,000", 1000),
        ("1_000.5", 1000.5),
        (".5M", 5e5),
    ],
)
def test_numbers_as_people_write_them(text: str, number: float) -> None:
    assert parse_count(text, "--tokens") == number


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("CONFIG.yaml", "--tokens")),
        (["--tokens", "many"], ("--tokens", "many", "1.75T")),
        (["--tokens", "-5"], ("--tokens", "positive")),
        (["--tokens", "0"], ("--tokens", "positive")),
        (["--tokens", "9999T"], ("--tokens", "between")),
        (["--tokens", "1B", "--dimension", "1T"], ("--dimension", "between")),
        (["--tokens", "1B", "--chunks-per-second", "fast"], ("--chunks-per-second", "fast")),
        (["--tokens", "1B", "--k", "300"], ("rerank", "at least k")),
        (["--tokens", "1T", "--index-memory", "1MB"], ("index.memory", "raise it")),
        (["--tokens", "1B", "--set", "index.kye=auto"], ("did you mean key",)),
        (["nowhere.yaml"], ("nowhere.yaml", "check the path")),
        (["nowhere.yaml", "--tokens", "1T"], ("--tokens", "nowhere.yaml", "leave")),
        (["nowhere.yaml", "--vocab-size", "1M"], ("--vocab-size", "nowhere.yaml")),
    ],
)
def test_bad_usage_is_one_line_with_the_remedy(
    arguments: list[str], words: tuple[str, ...], capsys: Any
) -> None:
    assert run(["plan", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    for word in words:
        assert word in told.err


def test_a_corpus_without_text_is_refused(tmp_path: Path, capsys: Any) -> None:
    project = make_project(tmp_path, [""])
    assert run(["plan", str(project.config)]) == 2
    assert "corpus.0: no text" in capsys.readouterr().err


def test_bytes_a_chunk_are_those_of_the_wikitext_database(wiki: Project, capsys: Any) -> None:
    manifest = wiki.open().manifest
    assert manifest.counts.chunks >= amount(quick=4_000, soak=9_000)
    characters = sum(len(text) for text in wiki.texts)
    each = characters / manifest.counts.tokens
    plan = planned(capsys, str(wiki.config), "--bytes-per-token", f"{each:.3f}")
    check_sums(plan)
    assert plan["documents"] == manifest.counts.documents
    assert plan["chunks"] == pytest.approx(manifest.counts.chunks, rel=0.02)
    assert plan["index"]["key"].split(",")[1] == manifest.index.key.split(",")[1]
    real = sizes_by_table(wiki)
    tables = {table["table"]: table for table in plan["tables"]}
    assert tables.keys() == real.keys()
    for name, (files, size) in real.items():
        assert tables[name]["files"] == files
        # How many settings tuning measures, each a line of the manifest, only tuning knows.
        share = 0.2 if name == "manifest" else 0.02
        built = size / manifest.counts.chunks
        assert tables[name]["bytes_per_chunk"] == pytest.approx(built, rel=share), name


def test_given_numbers_say_the_same_of_wikitext(wiki: Project, capsys: Any) -> None:
    counts = wiki.open().manifest.counts
    mean = f"{counts.tokens / counts.documents:.2f}"
    arguments = ["--vocab-size", "8000", "--dimension", "384", "--set", "split.validation=0.05"]
    plan = planned(
        capsys, "--tokens", str(counts.tokens), "--tokens-per-document", mean, *arguments
    )
    assert plan["chunks"] == pytest.approx(counts.chunks, rel=0.01)
    real = sizes_by_table(wiki)
    for table in plan["tables"]:
        if table["table"] in ("chunks", "embeddings", "neighbors", "index"):
            built = real[table["table"]][1] / counts.chunks
            assert table["bytes_per_chunk"] == pytest.approx(built, rel=0.02)


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """About 400 chunks in several shards and partitions, with a query corpus, and keys not kept."""
    texts = python_sources(40)
    folder = tmp_path_factory.mktemp("divided")
    asked = make_project(folder / "asked", python_sources(10))
    project = make_project(
        folder,
        texts,
        chunk={"shard_size": 20_000, "part_rows": 100},
        index={"key": "IVF8,PQ48x4fs", "partitions": 3},
        dedup={"jaccard": 0.9},
        embeddings={"keep": False},
        queries=[{"name": "asked", "paths": asked.settings["corpus"][0]["paths"]}],
    )
    assert project.build() == 0
    return project


def test_tasks_are_those_that_a_build_runs(divided: Project, tmp_path: Path) -> None:
    # Until its manifest is written, a build keeps the records of all stages.
    unfinished = Project(
        tmp_path, divided.texts, divided.settings | {"output": str(tmp_path / "db")}
    )
    for stage in ("tokenizer", "screen", "chunk", "embed", "index", "neighbors"):
        assert run(["stage", stage, str(unfinished.config)]) == 0
    config = load_config(divided.config)
    counts = divided.open().manifest.counts
    characters = sum(len(text) for text in divided.texts)
    plan = make_plan(config, estimated_facts(config, characters / counts.tokens))
    for stage in plan.stages:
        place, _, name = stage.stage.rpartition("/")
        records = StageRecords(Folder(str(unfinished.output / place)), name).load()
        assert len(records) == stage.tasks, stage.stage
    known = {stage.stage.rpartition("/")[2] for stage in plan.stages}
    found = {path.stem for path in unfinished.output.rglob("state/records/*.jsonl")}
    assert found == known
    assert plan.shards > 3
    assert plan.index.partitions == 3
    real = sizes_by_table(divided)
    for table in plan.tables:
        files, size = real[table.table]
        assert table.files == files, table.table
        if table.table in ("chunks", "neighbors", "fine", "index", "queries"):
            assert table.bytes == pytest.approx(size, rel=0.15), table.table


@pytest.mark.parametrize(
    ("tokens", "documents", "chunks"), [(0, 0, 0), (640, 10, 16), (10, 10, 10)]
)
def test_expected_chunks(tokens: int, documents: int, chunks: int) -> None:
    assert expected_chunks(tokens, documents, 64) == chunks


def test_auto_finds_a_key_for_more_than_the_memory_holds() -> None:
    for dimension in (32, 384, 768, 1024):
        for memory in (10**9, 64 * 10**9, 10**12):
            key = parse_key(choose_key(CHUNKS, dimension, memory), dimension)
            assert training_points(key, dimension, CHUNKS, memory) >= 30 * key.lists


def test_packed_entries() -> None:
    for entries in ([0], [3, 0, 1 << 40], [7] * 1024):
        assert unpack_numbers(pack_numbers(entries)).tolist() == entries


def at_paper_size(folder: Path, what: str) -> dict[str, Any]:
    """What a process of its own counted; peak memory is what it took beyond its imports."""
    done = subprocess.run(
        [sys.executable, "-m", "support.paper_size", str(folder), what],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_manifest_of_30_000_shards(tmp_path: Path) -> None:
    counted = at_paper_size(tmp_path, "manifest")
    assert counted["chunks"] > CHUNKS
    assert counted["peak"] < 1_000_000_000


def test_global_ids_over_30_000_parts(tmp_path: Path) -> None:
    counted = at_paper_size(tmp_path, "ids")
    assert counted["chunks"] > CHUNKS
    assert counted["peak"] < 200_000_000


def test_resuming_thousands_of_records_a_stage(tmp_path: Path) -> None:
    sizes = at_paper_size(tmp_path, "finish")
    assert all(sizes[stage] < 3_300 * RECORDS for stage in ("chunk", "encode", "neighbors"))
    counted = at_paper_size(tmp_path, "resume")
    for stage in ("chunk", "encode", "neighbors"):
        assert counted[stage]["opened"] < 20
        assert counted[stage]["listed"] < 5
    # A thousand numbers of each part took 57 kB before they were packed.
    assert counted["peak"] < 33_000 * RECORDS
