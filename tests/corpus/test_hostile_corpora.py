"""Corpora that lead elsewhere, and names of documents that would tell credentials."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from retro_db.corpus.listing import Listing
from retro_db.errors import CorpusError


def listed(*paths: Path | str) -> list[str]:
    return [
        file.name for file in Listing("db").files([str(path) for path in paths], "corpus.0.paths")
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("a")
    (tmp_path / "in" / "below" / "b.txt").write_text("b")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.txt").write_text("secret")
    return tmp_path / "in"


def test_walks_do_not_leave_their_folder(corpus: Path) -> None:
    (corpus / "within.txt").symlink_to(corpus / "below" / "b.txt")
    assert listed(corpus) == ["a.txt", "below/b.txt", "within.txt"]
    stray = corpus / "stray.txt"
    stray.symlink_to("../out/secret.txt")
    for path in (corpus, corpus / "*.txt", corpus / "**" / "*.txt", corpus / "s*"):
        with pytest.raises(CorpusError, match=r"paths\.0: .*stray\.txt is a link.*name it itself"):
            listed(path)
    assert listed(stray) == ["stray.txt"]
    stray.unlink()
    (corpus / "folder").symlink_to("../out")
    assert listed(corpus) == ["a.txt", "below/b.txt", "within.txt"]
    assert listed(corpus / "folder") == ["secret.txt"]
    with pytest.raises(CorpusError, match="folder is a link that leads out of"):
        listed(corpus / "*" / "*.txt")
    (corpus.parent / "named").symlink_to(corpus)
    (corpus / "folder").unlink()
    assert listed(corpus.parent / "named" / "*.txt") == ["a.txt", "within.txt"]
    (corpus / "nowhere.txt").symlink_to("nothing")
    with pytest.raises(CorpusError, match=r"nowhere\.txt is a link that leads nowhere"):
        listed(corpus)


def test_pipes_and_devices_are_no_documents(corpus: Path) -> None:
    os.mkfifo(corpus / "pipe.txt")
    (corpus / "link.txt").symlink_to("pipe.txt")
    assert listed(corpus) == ["a.txt", "below/b.txt"]
    for path in (corpus / "pipe.txt", corpus / "link.txt", "/dev/null"):
        with pytest.raises(CorpusError, match="is a pipe, a socket or a device"):
            listed(path)


@pytest.mark.parametrize(
    "path",
    [
        *("zip://a.txt::{}", "tar://*.txt::{}", "zip://*.txt::https://host/a.zip", "zip://a.txt"),
        *("zip::{}", "simplecache::{}", "simplecache::file://{}", "filecache::zip://a::{}"),
    ],
)
def test_archives_and_joined_filesystems_are_refused(corpus: Path, path: str) -> None:
    with pytest.raises(CorpusError, match="cannot be read; unpack or copy") as caught:
        listed(path.format(corpus / "a.txt"))
    assert "\n" not in str(caught.value)


class SignedStore(MemoryFileSystem):
    """Names files as the web does: by whole URLs, signatures included."""

    protocol = "signed"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": 1, "type": "file"}


def test_names_of_documents_hold_no_credentials() -> None:
    fsspec.register_implementation("signed", SignedStore, clobber=True)
    url = "signed://me:pass/word@host/data/{}.jsonl?X-Amz-Signature=abc/def&X-Amz-Date={}&part=1"
    files = Listing("db").files([url.format("a", 1), url.format("b", 2)], "corpus.0.paths")
    again = Listing("db").files([url.format("a", 3), url.format("b", 4)], "corpus.0.paths")
    names = [file.name for file in files]
    assert names == [
        f"{name}.jsonl?X-Amz-Signature=***&X-Amz-Date=***&part=1" for name in ("a", "b")
    ]
    assert names == [file.name for file in again]
    assert files[0].url == url.format("a", 1)
    files = Listing("db").files(
        ["signed://me:pass@one/a.txt", "signed://me:pass@two/b.txt"], "corpus.0.paths"
    )
    assert [file.name for file in files] == ["***@one/a.txt", "***@two/b.txt"]
