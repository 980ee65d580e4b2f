"""Whole builds: the same bytes every time, and every mistake named in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import retro_db
from retro_db.errors import InputError, NotADatabaseError
from retro_db.search.retriever import Retriever
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.demo import encoder_folder
from retro_db_pipelines.engine.jobs import Placement
from retro_db_pipelines.engine.runner import Engine
from support import brute_force
from support.projects import Project, make_project
from support.texts import python_sources


def copy_of(project: Project, output: Path, **settings: Any) -> Project:
    """The same corpus, built elsewhere."""
    return dataclasses.replace(
        project,
        folder=output.parent,
        settings=project.settings | {"output": str(output)} | settings,
    )


def test_a_small_build_verifies(small: Project) -> None:
    assert run(["verify", str(small.output)]) == 0
    manifest = small.open().manifest
    assert manifest.counts.documents == len(small.texts)
    assert len(manifest.tables.chunks) > 4, "several shards, and parts that roll over"
    assert len(manifest.index_files) == 4, "the template and three partitions"
    assert manifest.counts.validation_chunks > 0


def test_building_again_and_with_two_workers_gives_the_same_bytes(
    small: Project, tmp_path: Path
) -> None:
    again = copy_of(small, tmp_path / "again" / "db")
    again.folder.mkdir()
    assert again.build("--workers", "2") == 0
    files, others = small.files(), again.files()
    assert sorted(files) == sorted(others)
    assert [name for name in files if files[name] != others[name]] == []
    assert "neighbors/part-0000000-0000.arrow" in files


def test_the_manifest_names_no_place_and_no_time(small: Project) -> None:
    text = (small.output / "manifest.json").read_text("ascii")
    assert str(small.folder) not in text
    assert '"/' not in text
    assert "worker" not in text.replace("workers", "worker") or "workers" not in text


def test_neighbors_are_right_with_shards_parts_partitions_and_a_validation_split(
    small: Project,
) -> None:
    database = small.open()
    every = np.arange(len(database))
    documents = database.chunks.documents(every)
    keys = database.embeddings[every]
    split = np.array(database.documents["split"].to_pylist())[documents]
    allowed = (split == "train") & keys.any(axis=1)
    truth, exact = brute_force.neighbors(keys, documents, allowed, 20)
    found, distances = database.neighbors[every], database.neighbors.distances(every)
    assert allowed[found[found >= 0]].all(), "validation chunks are nobody's neighbors"
    assert (found[split == "validation"] >= 0).all(), "and have neighbors themselves"
    assert brute_force.recall(found, truth, 10) >= 0.98
    same = found == truth
    np.testing.assert_allclose(distances[same], exact[same], rtol=1e-5)


def test_documents_and_chunks_agree_over_parts(small: Project) -> None:
    database = small.open()
    table = database.documents.to_pylist()
    assert [row["id"] for row in table] == [f"doc-{i}" for i in range(len(small.texts))]
    position = 0
    for number, row in enumerate(table):
        assert row["first_chunk"] == position
        position += row["chunk_count"]
        owners = database.chunks.documents(np.arange(row["first_chunk"], position))
        assert (owners == number).all()
    assert position == len(database)


def test_a_build_that_is_done_changes_nothing(small: Project, capsys: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.output.rglob("*.arrow")}
    assert small.build() == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in small.output.rglob("*.arrow")}


def test_another_k_redoes_the_neighbors_alone(small: Project, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(small.output, tmp_path / "db")
    changed = copy_of(small, tmp_path / "db", neighbors={"k": 5})
    capsys.readouterr()
    assert changed.build() == 0
    shown = capsys.readouterr().out
    assert "neighbors  " in shown
    assert not any(f"\n{stage} " in shown for stage in ("chunk", "embed", "train", "encode"))
    assert changed.open().neighbors[0].shape == (5,)
    assert (changed.open().neighbors[:] == small.open().neighbors[:][:, :5]).all()


def test_three_documents_build_with_an_automatic_key(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["one text", "another text", "the third"])
    assert project.build() == 0
    database = project.open()
    assert database.manifest.index.key == "IVF1,Flat"
    assert (database.neighbors[0] >= 0).sum() == 2
    assert run(["verify", str(project.output)]) == 0


def test_without_embeddings_fine_codes_rerank(tmp_path: Path, capsys: Any) -> None:
    texts = python_sources(30)
    index = {"key": "IVF8,PQ48x4fs"}
    kept = make_project(tmp_path / "kept", texts, index=index)
    left_out = make_project(tmp_path / "left", texts, index=index, embeddings={"keep": False})
    assert kept.build() == left_out.build() == 0
    assert not (left_out.output / "embeddings").exists()
    assert run(["verify", str(left_out.output)]) == 0
    capsys.readouterr()
    assert left_out.build() == 0
    assert "nothing to do" in capsys.readouterr().out

    every = np.arange(len(kept.open()))
    assert np.array_equal(kept.open().neighbors[every], left_out.open().neighbors[every])
    queries = [text[200:400] for text in texts]
    exact, away = Retriever(kept.open()).search(queries, 10)
    coded, about = Retriever(left_out.open()).search(queries, 10)
    shared = [len(set(one) & set(other)) for one, other in zip(exact, coded, strict=True)]
    assert np.mean(shared) >= 9.5
    np.testing.assert_allclose(about, away, rtol=0.05)
    with pytest.raises(InputError, match="embeddings were not kept"):
        _ = left_out.open().embeddings


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three documents, not built."""
    return make_project(tmp_path, ["one text", "another text", "the third"])


def refused(project: Project, capsys: Any, *words: str) -> None:
    """The build ends with exit code 2, one line that holds the words, and no database."""
    capsys.readouterr()
    assert project.build() == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    with pytest.raises(NotADatabaseError):
        retro_db.open(str(project.output))


def test_a_wrong_key(project: Project, capsys: Any) -> None:
    project.settings["neighbours"] = {"k": 5}
    refused(project, capsys, "config.yaml", "neighbours", "did you mean neighbors")


def test_a_wrong_nested_key(project: Project, capsys: Any) -> None:
    project.settings["corpus"][0]["txt"] = "text"
    refused(project, capsys, "corpus.0.txt", "did you mean text")


def test_a_missing_config(project: Project, capsys: Any) -> None:
    assert run(["build", str(project.folder / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_a_missing_path(project: Project, capsys: Any) -> None:
    project.settings["corpus"][0]["paths"] = [str(project.folder / "gone.jsonl")]
    refused(project, capsys, "corpus.0.paths.0", "gone.jsonl", "does not exist")


def test_a_glob_that_matches_nothing(project: Project, capsys: Any) -> None:
    project.settings["corpus"][0]["paths"] = [str(project.folder / "*.parquet")]
    refused(project, capsys, "corpus.0.paths.0", "matches no file")


def test_a_line_without_the_text_field(project: Project, capsys: Any) -> None:
    lines = [{"text": "fine"}, {"body": "no text here"}]
    path = project.folder / "corpus.jsonl"
    path.write_bytes(b"\n".join(orjson.dumps(line) for line in lines))
    del project.settings["corpus"][0]["id"]
    refused(project, capsys, "corpus.jsonl", "at 16", "no field 'text'", "max_bad")


def test_a_missing_model_folder(project: Project, capsys: Any) -> None:
    project.settings["encoder"] = {"model": str(project.folder / "no-model")}
    refused(project, capsys, "encoder.model", "no-model")


def test_a_damaged_model(project: Project, capsys: Any) -> None:
    model = project.folder / "model"
    shutil.copytree(project.settings["encoder"]["model"], model)
    (model / "model.safetensors").write_bytes(b"not weights")
    project.settings["encoder"] = {"model": str(model)}
    refused(project, capsys, "encoder.model", "cannot be loaded")


def test_an_index_key_that_the_corpus_cannot_train(project: Project, capsys: Any) -> None:
    project.settings["index"] = {"key": "IVF64,PQ48"}
    refused(project, capsys, "index.key", "IVF64,PQ48", "auto")


def test_an_index_key_that_is_none(project: Project, capsys: Any) -> None:
    project.settings["index"] = {"key": "HNSW32"}
    refused(project, capsys, "index.key", "no inverted lists")


def test_a_folder_with_other_files(project: Project, capsys: Any) -> None:
    project.output.mkdir()
    (project.output / "thesis.tex").write_text("years of work")
    refused(project, capsys, "output", "thesis.tex")
    assert (project.output / "thesis.tex").exists()


def test_a_runner_that_loses_data(project: Project, capsys: Any) -> None:
    assert project.build("--", "--runner=DaskRunner") == 2
    assert "loses elements" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--direct_running_mode=multi_processing", "--direct_num_workers=4"]
)
def test_beams_own_workers_are_refused(project: Project, capsys: Any, option: str) -> None:
    assert project.build("--", option) == 2
    assert f"{option}: leave it out; --workers N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("--runer=SparkRunner", "--runer is not an option of Beam; did you mean --runner?"),
        ("--workers=2", "--workers is not an option of Beam; "),
        ("runner=SparkRunner", "runner=SparkRunner: after -- go options of Beam"),
    ],
)
def test_what_beam_would_leave_out_is_refused(
    project: Project, capsys: Any, option: str, remedy: str
) -> None:
    assert project.build("--", option) == 2
    assert remedy in capsys.readouterr().err
    assert not project.output.exists()


def test_cores_are_shared_where_the_task_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    spark, dataflow = ("--runner=SparkRunner",), ("--runner=DataflowRunner",)
    alone = Placement(alone=True)
    shares = [
        (Engine().share(9), 16),
        (Engine(4).share(9), 4),
        (Engine(4).share(2), 8),
        (Engine(4).share(9, alone), 16),
        (Engine(40).share(99), 1),
        (Engine(None, spark).share(9), 1),
        (Engine(8, spark).share(9), 2),
        (Engine(None, spark).share(1), 16),
        (Engine(None, spark).share(9, alone), 1),
        (Engine(None, dataflow).share(9, alone), 16),
        (Engine(None, dataflow).share(9), 1),
    ]
    # A machine that none of them was made on.
    monkeypatch.setattr("retro_db.threads.available_cores", lambda: 16)
    for share, threads in shares:
        assert share.threads == threads


def test_usage_errors_end_with_2(capsys: Any) -> None:
    assert run(["build"]) == 2
    assert run(["bogus"]) == 2
    assert run(["inspect", "nowhere"]) == 2
    assert "nowhere: does not exist; check the path" in capsys.readouterr().err


def test_a_smoke_build_reduces_the_key_and_tells_the_cost(tmp_path: Path, capsys: Any) -> None:
    project = make_project(tmp_path, python_sources(30), index={"key": "IVF4096,PQ48"})
    assert project.build("--smoke", "12") == 0
    shown = capsys.readouterr().out
    assert "IVF4096,PQ48 reduced to IVF" in shown
    assert "sound" in shown
    assert "whole, about" in shown
    assert not project.output.exists()
    smoke = retro_db.open(f"{project.output}-smoke")
    assert 3 <= smoke.manifest.counts.documents <= 24


def test_inspect_tells_machines_and_people(small: Project, capsys: Any) -> None:
    capsys.readouterr()
    assert run(["inspect", str(small.output), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["counts"]["chunks"] == len(small.open())
    assert run(["inspect", str(small.output)]) == 0
    assert "IVF8,PQ48x4fs" in capsys.readouterr().out


def test_nothing_but_our_own_lines_reaches_the_user(project: Project) -> None:
    command = [Path(sys.executable).with_name("retro-db"), "build", project.config, "--workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    first_words = [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "]
    # A slow stage has further lines on the way.
    told = [word for word, _ in itertools.groupby(first_words)]
    stages = ["tokenizer", "chunk", "index", "embed", "draw", "train", "encode", "assemble"]
    stages += ["sample", "truth", "tune"]
    join = ["order", "route", "home", "neighbors"]
    assert told == ["plan", "check", *stages, "index", *join, "built"]


def test_stages_by_themselves_give_the_same_database(project: Project, tmp_path: Path) -> None:
    assert project.build() == 0
    apart = copy_of(project, tmp_path / "apart" / "db")
    apart.folder.mkdir()
    assert run(["stage", "embed", str(apart.config)]) == 2, "the stages before come first"
    for stage in ("tokenizer", "chunk", "embed", "index", "neighbors"):
        with pytest.raises(NotADatabaseError):
            apart.open()
        assert run(["stage", stage, str(apart.config)]) == 0
    assert apart.build() == 0
    assert apart.files() == project.files()


def test_the_stages_of_the_index_by_themselves(project: Project, tmp_path: Path) -> None:
    assert project.build() == 0
    apart = copy_of(project, tmp_path / "apart" / "db")
    apart.folder.mkdir()
    for stage in ("tokenizer", "chunk", "embed"):
        assert run(["stage", stage, str(apart.config)]) == 0
    for stage in ("train", "encode", "assemble", "tune"):
        assert run(["stage", "neighbors", str(apart.config)]) == 2, f"{stage} comes first"
        assert run(["stage", stage, str(apart.config)]) == 0
    assert apart.build() == 0
    assert apart.files() == project.files()


def test_the_stage_to_run_first_is_named(project: Project, capsys: Any) -> None:
    assert run(["stage", "neighbors", str(project.config)]) == 2
    assert (
        "run retro-db stage tokenizer with the same configuration first" in capsys.readouterr().err
    )
    assert run(["stage", "neighbours", str(project.config)]) == 2
    assert "'neighbors'" in capsys.readouterr().err


def test_fewer_partitions_leave_no_old_ones(small: Project, tmp_path: Path) -> None:
    shutil.copytree(small.output, tmp_path / "db")
    changed = copy_of(small, tmp_path / "db", index={"key": "IVF8,PQ48x4fs", "partitions": 1})
    assert changed.build() == 0
    assert run(["verify", str(changed.output)]) == 0
    names = sorted(path.name for path in (changed.output / "index").iterdir())
    assert names == ["partition-00000.faissindex", "trained.faissindex"]
    assert (changed.open().neighbors[:] == small.open().neighbors[:]).all()


def test_training_too_large_is_refused_before_anything_is_embedded(
    small: Project, tmp_path: Path, capsys: Any
) -> None:
    index = {"key": "IVF8,PQ48x4", "memory": "500KB"}
    wide = {"model": str(encoder_folder())}
    project = copy_of(small, tmp_path / "db", index=index, encoder=wide)
    refused(project, capsys, "index.memory: training IVF8,PQ48x4 takes 653.2KB, more than the 500")
    assert not (project.output / "embeddings").exists()


def test_an_index_beyond_the_memory_is_searched_partition_by_partition(
    small: Project, tmp_path: Path, capsys: Any
) -> None:
    key = "IVF2,Flat"
    whole = copy_of(small, tmp_path / "whole" / "db", index={"key": key})
    streamed = copy_of(small, tmp_path / "part" / "db", index={"key": key, "memory": "70KB"})
    for project in (whole, streamed):
        shutil.copytree(small.output, project.output)
        project.folder.mkdir(exist_ok=True)
        assert project.build() == 0
    assert "searched partition by partition" in capsys.readouterr().out
    assert [one.open().manifest.index.partitions for one in (whole, streamed)] == [1, 2]
    every = np.arange(len(whole.open()))
    assert np.array_equal(whole.open().neighbors[every], streamed.open().neighbors[every])
    assert run(["verify", str(streamed.output)]) == 0


def test_a_corpus_of_white_space(project: Project, capsys: Any) -> None:
    (project.folder / "corpus.jsonl").write_bytes(orjson.dumps({"id": "a", "text": " \n " * 50}))
    refused(project, capsys, "corpus", "no chunk has a word")


def test_an_empty_corpus(project: Project, capsys: Any) -> None:
    corpus = project.folder / "corpus.jsonl"
    corpus.write_bytes(b'{"id": "blank", "text": ""}')
    refused(project, capsys, "corpus", "no document with a token")
    corpus.write_bytes(b"")
    refused(project, capsys, "corpus.jsonl at 0: empty file", "name files that hold documents")


def test_a_smoke_folder_with_other_files(project: Project, capsys: Any) -> None:
    other = Path(f"{project.output}-smoke")
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    assert project.build("--smoke") == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert (other / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("IVF1,Blah", "does not take"),
        ("IVF1,PQ0", "do not divide"),
        ("IVF1,Flat,RFlat", "cannot be divided"),
    ],
)
def test_an_index_key_that_faiss_refuses(
    project: Project, capsys: Any, key: str, words: str
) -> None:
    project.settings["index"] = {"key": key}
    refused(project, capsys, "index.key", key, words)


def test_a_model_without_its_tokenizer(project: Project, capsys: Any) -> None:
    model = project.folder / "model"
    shutil.copytree(project.settings["encoder"]["model"], model)
    (model / "tokenizer.json").unlink()
    project.settings["encoder"] = {"model": str(model)}
    refused(project, capsys, "encoder.model", "no tokenizer")


def test_texts_longer_than_the_model_takes(project: Project, capsys: Any) -> None:
    project.settings["encoder"]["max_length"] = 600
    refused(project, capsys, "encoder.max_length", "512 positions")


def test_only_validation_documents(project: Project, capsys: Any) -> None:
    project.settings["split"] = {"validation": 0.999999}
    refused(project, capsys, "split.validation")


def test_a_filesystem_that_is_not_installed(project: Project, capsys: Any) -> None:
    project.settings["corpus"][0]["paths"] = ["nofs://bucket/file.jsonl"]
    refused(project, capsys, "corpus.0.paths.0", "nofs")


def test_mostly_blank_documents_take_an_automatic_key(tmp_path: Path) -> None:
    texts = [" "] * 1100 + [f"text number {number}" for number in range(20)]
    project = make_project(tmp_path, texts)
    assert project.build() == 0
    manifest = project.open().manifest
    assert manifest.index.key == "IVF1,Flat"
    assert manifest.counts.keyless_chunks == 1100
    assert manifest.counts.indexed_chunks == 20


def test_another_text_field_redoes_everything(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["x"])
    path = project.folder / "corpus.jsonl"
    lines = [{"id": str(i), "text": f"text {i}", "body": f"another story {i}"} for i in range(4)]
    path.write_bytes(b"\n".join(orjson.dumps(line) for line in lines))
    assert project.build() == 0
    before = project.files()
    assert project.build("--set", "corpus.0.text=body", "--overwrite") == 0
    assert project.files()["tokenizer/tokenizer.json"] != before["tokenizer/tokenizer.json"]
    assert project.build("--overwrite") == 0
    assert project.files() == before


def test_a_lost_file_is_built_again(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["one text", "another text", "the third"])
    assert project.build() == 0
    before = project.files()
    (project.output / "chunks/part-0000000-0000.arrow").unlink()
    assert project.build() == 0
    assert project.files() == before


@pytest.fixture
def job_service(tmp_path: Path) -> Iterator[str]:
    """Beam's own portable job service, in a process of its own."""
    port_file = tmp_path / "port"
    module = "apache_beam.runners.portability.local_job_service_main"
    command = [sys.executable, "-m", module, "--port_file", port_file]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (port_file.exists() and port_file.read_text()):
            assert service.poll() is None
            time.sleep(0.1)
        yield f"localhost:{port_file.read_text()}"
    finally:
        service.terminate()
        service.wait()


def test_another_runner_gives_the_same_bytes(
    project: Project, tmp_path: Path, job_service: str
) -> None:
    # With the one stage that shuffles payload, and something for it to find.
    lines = [{"id": str(n), "text": f"{text} of several words"} for n, text in enumerate("abca")]
    corpus = b"\n".join(orjson.dumps(line) for line in lines)
    (project.folder / "corpus.jsonl").write_bytes(corpus)
    project.settings["dedup"] = {"jaccard": 0.8}
    assert project.build() == 0
    assert project.open().manifest.sources[0].dropped_by == {"duplicate": 1}
    apart = copy_of(project, tmp_path / "apart" / "db")
    apart.folder.mkdir()
    options = ["--runner=PortableRunner", f"--job_endpoint={job_service}"]
    assert apart.build("--", *options, "--environment_type=LOOPBACK") == 0
    assert apart.files() == project.files()
