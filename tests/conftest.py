"""Databases that the tests share. Everything in them is real."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

# No test may reach for a model hub; read when the library is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import orjson
import pytest

from retro_db_pipelines.commands.demo import encoder_folder
from support.encoders import make_tiny
from support.exports import make_two_sources
from support.projects import Project, built_once, make_project, remove_documents, shared_folder
from support.soak import SOAKING
from support.texts import python_sources, wikitext

# A job in a shell's background ignores Ctrl-C, and so would the builds that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> None:
    make_tiny(shared_folder(tmp_path_factory) / "tiny-encoder")


@pytest.fixture(scope="session")
def wiki(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Articles of WikiText-2, and two documents that try the tokenizer.

    They are its validation articles; in a long run, its test articles too.

    Settings are the defaults, but for a validation split; the encoder is MiniLM.
    """
    return built_once(tmp_path_factory, "wiki", _wiki)


def _wiki(folder: Path) -> Project:
    texts = wikitext("valid.txt") + wikitext("test.txt") if SOAKING else wikitext("valid.txt")
    texts.append("A literal <|endoftext|> is text, " + "and so is <|endoftext|>. " * 40)
    emoji = "".join(chr(code) for code in range(0x1F300, 0x1F600))
    texts.append(f"Emoji are four bytes, each of which may be a token: {emoji}")
    tokenizer = {"train": {"vocab_size": 8000}}
    encoder = {"model": str(encoder_folder())}
    return make_project(
        folder, texts, tokenizer=tokenizer, split={"validation": 0.05}, encoder=encoder
    )


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """About 400 chunks of Python's own source in several shards and parts, with a validation split."""
    return built_once(tmp_path_factory, "small", _small)


def _small(folder: Path) -> Project:
    texts = python_sources(40)
    project = make_project(
        folder,
        texts,
        split={"validation": 0.2},
        chunk={"shard_size": 20_000, "part_rows": 100},
        index={"key": "IVF8,PQ48x4fs", "partitions": 3},
    )
    corpus = folder / "corpus"
    corpus.mkdir()
    for number in range(4):
        lines = [
            orjson.dumps({"id": f"doc-{i}", "text": texts[i]})
            for i in range(number * 10, number * 10 + 10)
        ]
        (corpus / f"{number}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    project.settings["corpus"][0]["paths"] = [str(corpus / "*.jsonl")]
    return project


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two sources of other weights and other shares of validation, with removed documents."""
    return built_once(tmp_path_factory, "two-sources", make_two_sources, _remove_three)


def _remove_three(project: Project) -> None:
    assert remove_documents(project.output, ["doc-3", "doc-7", "o-2"]) == 0


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Six short documents and a query corpus."""
    return built_once(tmp_path_factory, "six", _six)


def _six(folder: Path) -> Project:
    folder.mkdir()
    (folder / "asked.txt").write_text("whales and owls " * 30)
    subjects = ["whales", "iron", "bread", "rain", "glass", "owls"]
    project = make_project(
        folder,
        [f"A text about {word}. " * (10 + 9 * i) for i, word in enumerate(subjects)],
        tokenizer={"train": {"vocab_size": 300}},
        neighbors={"k": 4},
        queries=[{"name": "asked", "paths": [str(folder / "asked.txt")]}],
    )
    project.settings["encoder"]["max_length"] = 16
    return project


@pytest.fixture
def db(six: Project, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(six.output, tmp_path / "db"))
