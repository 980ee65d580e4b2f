"""Megatron-LM's own reader reads from an export what the plain one of tests/export/test_export.py reads.

`RETRO_DB_MEGATRON` is a folder with megatron-core, of a version that has Retro.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from support.exports import OPTIONS, SAMPLES, K, export
from support.plain_megatron import PlainProject
from support.projects import Project

READER = Path(__file__).with_name("read_megatron_project.py")


@pytest.mark.parametrize("samples", SAMPLES)
def test_megatrons_reader_reads_the_same(two: Project, tmp_path: Path, samples: str) -> None:
    project, read = tmp_path / "project", tmp_path / "read"
    read.mkdir()
    assert export(two, project, *OPTIONS, "--eval-iters", "3", *SAMPLES[samples]) == 0
    environment = os.environ | {"PYTHONPATH": os.environ["RETRO_DB_MEGATRON"]}
    command = [sys.executable, str(READER), str(project), str(K), str(read)]
    subprocess.run(command, env=environment, check=True)
    end = AutoTokenizer.from_pretrained(project / "tokenizer").eos_token_id
    plain = PlainProject(project, end)
    assert {path.name.split("-")[0] for path in read.iterdir()} == {"train", "valid"}
    for split in ("train", "valid"):
        found = {
            name: np.load(read / f"{split}-{name}.npy")
            for name in ("text", "neighbor_chunks", "neighbor_tokens")
        }
        expected = list(plain.samples(split, K))
        assert (found["text"] == [one.tokens for one in expected]).all()
        rows = np.array([one.rows for one in expected])
        assert (found["neighbor_chunks"] == np.stack([rows, rows + 1], axis=-1)).all()
        assert (found["neighbor_tokens"] == [one.neighbors for one in expected]).all()
