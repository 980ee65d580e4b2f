"""Datasets on the hub: read at the commit that was planned, and read again only where they changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import orjson
import pytest
import yaml

import retro_db
from retro_db.corpus.listing import InputFile, Listing
from retro_db.corpus.streams import open_raw
from retro_db.errors import CorpusError, ExecutionError
from retro_db_pipelines.commands.cli import run
from support.hub import Hub, serving_hub
from support.places import ROOT
from support.projects import Project, make_project


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that `hf://` leads to."""
    with serving_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.address, "token": False})
        yield hub


def lines(*texts: str) -> bytes:
    return b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)


def files() -> dict[str, bytes]:
    texts = {name: f"A text about {name}. " * 30 for name in ("whales", "owls", "rain", "glass")}
    return {
        "README.md": b"# A dataset",
        "data/one.jsonl": lines(texts["whales"], texts["owls"]),
        "data/more/two.jsonl": lines(texts["rain"], texts["glass"]),
    }


def corpus_of_the_page() -> list[dict[str, Any]]:
    """What docs/corpus.md tells people to write."""
    page = (ROOT / "docs" / "corpus.md").read_text("utf-8")
    [block] = [b for b in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "hf://" in b]
    corpus: list[dict[str, Any]] = yaml.safe_load(block)["corpus"]
    return corpus


def listed(*paths: str) -> list[InputFile]:
    return Listing("db").files(paths, "corpus.0.paths")


def content(file: InputFile) -> bytes:
    with open_raw(file) as raw:
        return raw.read()


def test_a_build_reads_a_commit_and_again_what_another_commit_changed(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = hub.commit("owner/text", files())
    project = make_project(
        tmp_path,
        [],
        corpus=corpus_of_the_page(),
        tokenizer={"train": {"vocab_size": 300}},
        chunk={"shard_size": 10_000},
    )
    assert project.build() == 0
    ids = project.open().documents["id"].to_pylist()
    assert [name.split(":")[0] for name in ids] == ["more/two.jsonl"] * 2 + ["one.jsonl"] * 2
    assert (sent := hub.sent())
    assert all(path.startswith(f"{first}/data/") for path in sent)
    # Another commit with the same data: nothing is compared, and nothing done.
    capsys.readouterr()
    hub.commit("owner/text", files() | {"README.md": b"# The same dataset, with a better card"})
    assert project.build() == 0
    printed = capsys.readouterr().out
    assert "up to date" in printed
    assert "inputs" not in printed
    hub.sent()
    last = hub.commit("owner/text", files() | {"data/one.jsonl": lines("Iron. " * 90)})
    for stage in ("tokenizer", "chunk"):
        assert run(["stage", stage, str(project.config), "--overwrite"]) == 0
    assert {f"{last}/data/one.jsonl", f"{last}/data/more/two.jsonl"} == set(hub.sent())


def test_what_is_planned_is_read_whatever_the_branch_does(hub: Hub) -> None:
    old = hub.commit("owner/text", files())
    hub.commit("owner/text", {"data/one.jsonl": b"of a draft"}, "draft")
    hub.commit("owner/other", {"a.txt": b"of another dataset"})
    url = "hf://datasets/owner/text{}/data/*.jsonl"
    [one] = listed(url.format(""))
    hub.commit("owner/text", files() | {"data/one.jsonl": b"changed"})
    assert content(one) == files()["data/one.jsonl"]
    [other, drafted] = listed("hf://datasets/owner/other/a.txt", url.format("@draft"))
    assert content(drafted) == b"of a draft"
    assert (other.name, drafted.name) == ("other/a.txt", "text/data/one.jsonl")
    [pinned] = listed(url.format(f"@{old}"))
    assert pinned == one
    [now] = listed(url.format("@main"))
    assert (now.name, now.place) == (one.name, one.place)
    assert now.version != one.version
    with pytest.raises(
        CorpusError, match=r"is another revision of .*; give each a source of its own"
    ):
        listed(url.format("@draft"), url.format(f"@{old}"))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "owner/none/*.jsonl",
            "no such dataset, or none that may be read: .*; correct .* HF_TOKEN",
        ),
        ("owner/text@v9/*.jsonl", r"no such dataset.*revision not found"),
        ("owner/text/none.jsonl", "does not exist; correct the path"),
        ("owner/text/*.parquet", "matches no file; correct the path"),
        ("owner", "names no dataset; write hf://datasets/OWNER/NAME/FILES"),
    ],
)
def test_what_is_not_there_is_told(hub: Hub, path: str, words: str) -> None:
    hub.commit("owner/text", files())
    with pytest.raises(CorpusError, match=rf"^corpus.0.paths.0: hf://datasets/owner.* {words}"):
        listed(f"hf://datasets/{path}")


def test_a_hub_that_cannot_be_reached_is_told_with_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit("owner/text", files())
    [one] = listed("hf://datasets/owner/text/data/*.jsonl")
    advice = (
        r"^corpus.0.paths.0: hf://datasets/owner/text/.*: the hub cannot be reached at http://127"
    )
    hub.breaks = True
    with pytest.raises(ExecutionError, match=f"{advice}.*check the network"):
        listed("hf://datasets/owner/text/data/*.jsonl")
    with pytest.raises(ExecutionError, match=r"cannot be read: .*; run the same command again"):
        content(one)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExecutionError, match=f"{advice}.*offline mode .*`hf download"):
        listed("hf://datasets/owner/text/data/*.jsonl")


def test_a_database_is_read_on_the_hub_as_its_card_tells(
    hub: Hub, six: Project, tmp_path: Path
) -> None:
    paths = [path for path in six.output.rglob("*") if path.is_file()]
    published = {path.relative_to(six.output).as_posix(): path.read_bytes() for path in paths}
    hub.commit("owner/db", {path: data for path, data in published.items() if data})
    database = retro_db.open("hf://datasets/owner/db", cache=tmp_path / "cache")
    ids = list(range(len(database)))
    assert (database.neighbors[ids] == six.open().neighbors[ids]).all()
    assert (database.chunks[ids] == six.open().chunks[ids]).all()
