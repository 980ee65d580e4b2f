"""Files of settings that include others: what wins, where names lead, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import fsspec
import pytest

from retro_db.config import load_config
from retro_db.errors import ConfigError

SHARED = r"""
encoder: {model: bert, dtype: bfloat16}
index: &index {memory: 8GB, partitions: 3}
neighbors:
  k: 4
  rerank: 50
tokenizer: {train: {vocab_size: 9000}}
dedup: {jaccard: 0.9}
"""
OWN = r"""
include: INCLUDED
output: db
corpus:
  - name: a
    paths: [x.txt]
    separator: "^\\${2}|${x}|$\\n"
neighbors: {k: 7}
dedup: {jaccard: null}
"""
WHOLE = """
include: b.yaml
output: db
corpus: [{name: a, paths: [x]}]
tokenizer: {path: t}
encoder: {model: m}
"""


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_nearer_wins_section_by_section(tmp_path: Path) -> None:
    written(tmp_path / "shared" / "base.yaml", SHARED)
    written(
        tmp_path / "shared" / "wide.yaml",
        "include: base.yaml\nneighbors: {k: 5, rerank: 60}\nindex: {partitions: 2}\n",
    )
    later = written(tmp_path / "later.yaml", "index: {refine: SQ4}\nneighbors: {max_nprobe: 9}\n")
    included = f"[../shared/base.yaml, ../shared/wide.yaml, {later}]"
    path = written(
        tmp_path / "own" / "config.yaml",
        OWN.replace("INCLUDED", included),
    )
    config = load_config(path, ["neighbors.rerank=70"])
    neighbors, index = config.neighbors, config.index
    assert (neighbors.k, neighbors.rerank, neighbors.max_nprobe) == (7, 70, 9)
    assert (int(index.memory), index.partitions, index.refine) == (8_000_000_000, 2, "SQ4")
    assert (config.encoder.model, config.encoder.dtype) == ("bert", "bfloat16")
    assert config.dedup.jaccard is None
    # Neither names of files nor dollar signs are changed.
    assert (config.output, config.corpus[0].paths) == ("db", ["x.txt"])
    assert config.corpus[0].separator == "^\\${2}|${x}|$\\n"
    # The settings in one file are the same configuration, which is all that a build sees.
    flat = SHARED.replace("partitions: 3", "partitions: 2, refine: SQ4").replace("50", "70")
    flat = flat.replace("k: 4", "k: 7\n  max_nprobe: 9").replace(
        "{jaccard: 0.9}", "{jaccard: null}"
    )
    own = OWN.replace("INCLUDED", "[]").replace("neighbors: {k: 7}\ndedup: {jaccard: null}\n", "")
    assert load_config(written(tmp_path / "flat.yaml", flat + own)) == config


def test_anchors_of_an_included_file_stay_apart(tmp_path: Path) -> None:
    written(tmp_path / "b.yaml", "chunk: &defaults {}\nsplit: *defaults\nembeddings: *defaults\n")
    config = load_config(written(tmp_path / "own.yaml", f"{WHOLE}chunk: {{tokens: 32}}\n"))
    assert config.chunk.tokens == 32


def test_remote_files_include_their_neighbors() -> None:
    with fsspec.open("memory://shared/base.yaml", "w") as file:
        file.write(SHARED)
    with fsspec.open("memory://configs/mine/own.yaml", "w") as file:
        file.write(OWN.replace("INCLUDED", "../../shared/base.yaml"))
    assert load_config("memory://configs/mine/own.yaml").neighbors.rerank == 50


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": "include: none.yaml"}, r"a.yaml: include: none.yaml: cannot be read \(No such file"),
        (
            {"a": "include: s3x://none.yaml"},
            r"a.yaml: include: s3x://none.yaml: Protocol not known: s3x; correct the URL",
        ),
        ({"a": "include: a.yaml"}, r"a.yaml: include: a.yaml again: .* in a circle"),
        (
            {"a": "include: b.yaml", "b": "include: [c.yaml]", "c": "include: [./b.yaml]"},
            r"c.yaml: include: ./b.yaml again: .* in a circle",
        ),
        ({"a": "include: {b: 1}"}, "a.yaml: include: must be a file, or a list of files"),
        ({"a": "include: [1]"}, "a.yaml: include: must be a file, or a list of files"),
        ({"a": "include: b.yaml", "b": "- 1"}, "a.yaml: include: b.yaml: must hold settings"),
        (
            {"a": "include: b.yaml", "b": "x: ["},
            "a.yaml: include: b.yaml: line 1, column 5: not valid YAML",
        ),
        ({"a": WHOLE, "b": "\nindex:\n  kye: 1"}, r"b.yaml:3: index.kye: unknown"),
        ({"a": WHOLE, "b": "seed: -1\nsplit: 3"}, "b.yaml:2: split: "),
        ({"a": "output: db\nencoder:\n  dtype: auto"}, "a.yaml:1: corpus: missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    for name, text in files.items():
        written(tmp_path / f"{name}.yaml", text)
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path)) + f"/{words}") as error:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(error.value)
