"""The embed stage: what it holds in memory, counts, needs of a worker, and does when one dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from apache_beam import Create
from apache_beam.pipeline import Pipeline
from transformers import AutoTokenizer, BertConfig, BertModel

from retro_db.config import load_config
from retro_db.encoder.models import describe_model
from retro_db.store.folder import Folder
from retro_db.threads import Share
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.demo import encoder_folder
from retro_db_pipelines.engine.briefs import Brief
from retro_db_pipelines.engine.commit import RunTasks
from retro_db_pipelines.engine.jobs import Placement
from retro_db_pipelines.stages.embed import EmbedJob, gpu_of_worker
from support.encoders import random_model
from support.memory import ENVIRONMENT
from support.processes import Command, children
from support.projects import Project, make_project
from support.texts import python_sources

MEMORY = """
import sys
from pathlib import Path
import numpy as np
from retro_db.config import EncoderConfig
from retro_db.encoder.embedding import WINDOW_ROWS, embed_part
from retro_db.encoder.embedded_windows import Pieces
from retro_db.encoder.encoder import Encoder
from retro_db.config import load_config
from retro_db.encoder.models import describe_model
from retro_db.meter import Meter
from retro_db.store.contracts import contract
from retro_db.store.folder import Folder
from retro_db.store.tables import IpcFile
from retro_db.store.writing import TableWriter
from retro_db.threads import Share
from retro_db.tokens.tokenizer import Tokenizer
from support.memory import peak_of_own

model = sys.argv[1]
table = contract("chunks")
schema = table.schema(token_type="uint16", chunk_tokens=64)
chance = np.random.default_rng(0)
encoder = Encoder(Path(model), describe_model(EncoderConfig(model=model)))
for number, rows in enumerate(map(int, sys.argv[3:])):
    folder = Path(sys.argv[2]) / str(number)
    folder.mkdir()
    with TableWriter(folder / "chunks.arrow", schema, table.batch_rows) as writer:
        for first in range(0, rows, 1000):
            writer.append({
                "tokens": chance.integers(1000, 1100, (1000, 64), dtype=np.uint16),
                "length": chance.integers(1, 17, 1000).astype(np.uint16),
                "document": np.zeros(1000, np.int64),
            })
    chunks = IpcFile(folder / "chunks.arrow", schema, rows, table.batch_rows)
    output = Folder(str(folder / "db"))
    pieces = Pieces(output, "part", encoder.model.dimension, WINDOW_ROWS)
    tokenizer = Tokenizer.load(model)
    def embed():
        file, _ = embed_part(chunks, "vectors.arrow", encoder, tokenizer, output, Meter(), pieces=pieces)
        assert file.rows == rows
    print(peak_of_own(embed))
"""


def test_memory_does_not_follow_the_size_of_a_shard(tmp_path: Path) -> None:
    vocabulary = AutoTokenizer.from_pretrained(encoder_folder()).vocab_size
    shape = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = random_model(tmp_path / "model", BertModel(shape))
    command = [sys.executable, "-c", MEMORY, str(model), str(tmp_path), *4 * ["100000"], "300000"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    # It takes some times until the allocator needs nothing more.
    *_, small, large = map(int, done.stdout.split())
    # The chunks and their embeddings alone would be 40 MB more.
    assert large < small + 20_000_000


def test_padding_is_little_and_the_report_tells_where_time_went(wiki: Project) -> None:
    report = json.loads((wiki.output / "report" / "stages.json").read_bytes())
    work = report["stages"]["embed"]["work"]
    assert work["done"] == len(wiki.open())
    tokens, padding = work["counts"]["tokens"], work["counts"]["padding"]
    assert padding < 0.02 * (tokens + padding)
    assert set(work["seconds"]) == {"tokenize", "device", "write"}
    assert work["seconds"]["device"] > 0.5 * sum(work["seconds"].values())


def test_what_is_counted_is_shown(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.build() == 0
    [*_, line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("embed")]
    shown = (
        r"embed +[\d,]+ chunks, [\d,]+ tokens, padding \d+\.\d%, device \d+%, tokenize \d+%, write"
    )
    assert re.match(shown, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_stops_the_build_at_once(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.build("--set", "encoder.device=cuda") == 2
    told = capsys.readouterr()
    assert "encoder.device: cuda is asked for and not available" in told.err
    assert "\nchunk " not in told.out
    assert not (project.output / "chunks").exists()


def test_workers_of_a_machine_take_its_gpus_in_turn() -> None:
    local = [gpu_of_worker(f"worker_{number}", 4) for number in range(1, 9)]
    assert sorted(local) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(gpu_of_worker(f"sdk-0-{n}", 2) for n in range(2)) == [0, 1]
    assert gpu_of_worker("", 8) == 0


def test_what_a_worker_needs_reaches_the_runner(project: Project) -> None:
    model = describe_model(load_config(project.config).encoder)
    folder = Folder(str(project.output))
    job = EmbedJob(folder, "model", model, folder, Share(tasks=1), {}, "", None)
    needs = {
        "accelerator": "type:nvidia-l4;count:1;install-nvidia-driver",
        "max_active_bundles_per_worker": "2",
    }
    pipeline = Pipeline()
    brief = Brief.write(folder, "job", [job])
    _ = pipeline | Create([]) | RunTasks(job.stage, brief, Placement(hints=needs))
    components = pipeline.to_runner_api().components
    hints = {
        urn.rsplit(":", 2)[-2]: value.decode()
        for environment in components.environments.values()
        for urn, value in environment.resource_hints.items()
    }
    assert hints == needs


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Some hundred chunks in one shard: a second or two of embedding, by MiniLM."""
    return make_project(tmp_path, python_sources(20), encoder={"model": str(encoder_folder())})


def wait_for_the_middle_of_the_shard(output: Path, process: Command) -> None:
    folder = output / "state" / "progress" / "embed"
    while not any(json.loads(file.read_bytes())["done"] for file in folder.glob("part-*[0-9]")):
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.01)
    assert not list((output / "embeddings").glob("part-*.arrow"))


@pytest.mark.parametrize("processes", [False, True])
def test_a_worker_killed_in_mid_shard_changes_nothing(project: Project, processes: bool) -> None:
    for stage in ("tokenizer", "chunk"):
        assert run(["stage", stage, str(project.config)]) == 0
    workers = ["--workers", "2"] if processes else []
    with Command("build", str(project.config), *workers) as process:
        wait_for_the_middle_of_the_shard(project.output, process)
        for worker in children(process.pid) if processes else [process.pid]:
            os.kill(worker, signal.SIGKILL)
        try:
            assert process.wait(timeout=60) == (3 if processes else -signal.SIGKILL)
        finally:
            process.kill()
    assert not (project.output / "manifest.json").exists()
    assert project.build("--workers", "2") == 0
    killed = project.files()
    project.settings["output"] += "-whole"
    assert project.build() == 0
    assert project.files() == killed
