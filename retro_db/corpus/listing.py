"""From paths, folders and globs to files. No folder is listed twice, however many paths name it."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from retro_db.errors import CorpusError
from retro_db.printing import redacted

# What joins filesystems, or opens an archive as one.
_JOINED = re.compile(r"::|(?:zip|tar|libarchive|reference)://")
_WILDCARD = re.compile(r"[*?\[]")
# What the filesystems of fsspec call that which changes with a file's content.
_VERSIONS = [
    "ETag",
    "etag",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modified",
    "created",
]


@dataclass(frozen=True)
class InputFile:
    """One file of a corpus.

    Attributes:
        url: Where it is.
        name: Its path below the folder that the globs start from: the same on every machine.
        bytes: Its size.
        version: What changes when its content does: the ETag or the time of the last change.
    """

    url: str
    name: str
    bytes: int
    version: str


class Listing:
    """Lists what paths name, keeping every folder that it has seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], list[dict[str, Any]]] = {}

    def files(self, paths: Sequence[str], where: str) -> list[InputFile]:
        """All files that the paths name, sorted by name, none twice.

        Args:
            paths: Files, folders and globs on any fsspec filesystem. `**` stands for any folders;
                wildcards and folders pass over names that begin with a dot, as a shell does, and
                over pipes, sockets and devices.
            where: The paths' place in the configuration, for error messages.

        Returns:
            Every file once, with its size in bytes.

        Raises:
            CorpusError: A path is missing or no file, a glob matches nothing, or a link in a folder
                leads out of it: only files that are named themselves may be such links.
        """
        found: dict[str, tuple[Any, dict[str, Any]]] = {}
        bases: set[str] = set()
        for number, path in enumerate(paths):
            place = f"{where}.{number}"
            if _JOINED.search(path):
                raise CorpusError(
                    f"{place}: {path}: archives and joined filesystems cannot be read; unpack or copy "
                    "the files"
                )
            try:
                fs, pattern = fsspec.core.url_to_fs(os.path.expanduser(path))
                fs.invalidate_cache()  # what was listed before in this process may have changed
                base, entries = self._matches(fs, pattern)
            except (ImportError, ValueError) as error:
                raise CorpusError(f"{place}: {path}: {error}") from error
            if not entries:
                known = _WILDCARD.search(pattern) or fs.isdir(pattern)
                problem = "matches no file" if known else "does not exist"
                raise CorpusError(f"{place}: {path} {problem}; correct the path")
            prefix = _prefix(fs, path, pattern, place)
            bases.add(_shown(fs, base))
            found |= {prefix + entry["name"]: (fs, entry) for entry in entries}
        # Names count from the folder that all paths have in common, so that no two are alike.
        base = _common(bases)
        files = [_describe(fs, url, base, entry) for url, (fs, entry) in found.items()]
        return sorted(files, key=lambda file: (file.name, file.url))

    def _matches(self, fs: Any, pattern: str) -> tuple[str, list[dict[str, Any]]]:
        """The folder that names are counted from, and the entries of the files."""
        pattern = pattern.rstrip("/")
        try:
            entry = fs.info(pattern)
        except FileNotFoundError:
            entry = None
        if entry is not None and entry["type"] != "directory":
            if isinstance(fs, LocalFileSystem) and not os.path.isfile(pattern):
                raise ValueError("is a pipe, a socket or a device; name a file")
            # The query of a URL may have slashes, but not once it is redacted.
            return os.path.dirname(_shown(fs, pattern)), [entry]
        if entry is not None:
            return pattern, list(self._walk(fs, pattern, ["**", "*"], pattern))
        if not _WILDCARD.search(pattern):
            return "", []
        plain = _WILDCARD.split(pattern, maxsplit=1)[0]
        base = plain.rsplit("/", 1)[0] if "/" in plain else ""
        parts = pattern[len(base) :].lstrip("/").split("/")
        return base, list(self._walk(fs, base, parts, base))

    def _walk(self, fs: Any, folder: str, parts: list[str], start: str) -> Iterator[dict[str, Any]]:
        """Entries of files below a folder whose path matches the parts of a pattern.

        Raises:
            ValueError: One is behind a link that leads out of the folder where the walk started.
        """
        first, *rest = parts
        if first == "**":
            yield from self._walk(fs, folder, rest or ["*"], start)
            for entry in self._list(fs, folder):
                # As find does, links to folders are not followed here: they may form a circle.
                if entry["type"] == "directory" and not _is_hidden(entry) and not _is_link(entry):
                    yield from self._walk(fs, entry["name"], parts, start)
            return
        matches = re.compile(fnmatch.translate(first)).match
        for entry in self._list(fs, folder):
            name = _own_name(entry)
            if not matches(name) or (_is_hidden(entry) and not first.startswith(".")):
                continue
            is_folder = entry["type"] == "directory" or (
                _is_link(entry) and fs.isdir(entry["name"])
            )
            if is_folder != bool(rest):
                continue
            if _is_link(entry):
                _refuse_stray(entry["name"], start)
            if is_folder:
                yield from self._walk(fs, entry["name"], rest, start)
            elif _is_file(entry):
                yield entry

    def _list(self, fs: Any, folder: str) -> list[dict[str, Any]]:
        key = (id(fs), folder)
        if key not in self._seen:
            try:
                self._seen[key] = fs.ls(folder, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                self._seen[key] = []
        return self._seen[key]


def _common(folders: set[str]) -> str:
    """The folder that all folders are in; of URLs with different hosts, what comes before the host."""
    places = zip(*(folder.split("/") for folder in folders), strict=False)
    same = itertools.takewhile(lambda names: len(set(names)) == 1, places)
    return "/".join(names[0] for names in same)


def _prefix(fs: Any, path: str, pattern: str, place: str) -> str:
    """What stands before the filesystem's names in their URLs, with the host if there is one."""
    if isinstance(fs, LocalFileSystem):
        return str(fs.unstrip_protocol("/"))[:-1]
    if not path.endswith(pattern):
        raise CorpusError(f"{place}: {path}: its files have other names; copy them")
    return path.removesuffix(pattern)


def _describe(fs: Any, url: str, base: str, entry: dict[str, Any]) -> InputFile:
    full = _shown(fs, entry["name"])
    if _is_link(entry):
        entry = fs.info(os.path.realpath(full))
    version = next((entry[key] for key in _VERSIONS if entry.get(key)), "")
    # A name that is not UTF-8 reads with replacement characters; its URL stays as it is.
    name = full[len(base) :].lstrip("/").encode("utf-8", "replace").decode("utf-8")
    return InputFile(url, name, entry["size"], str(version))


def _shown(fs: Any, place: str) -> str:
    """A place as names are made of it: with no credentials, and so the same whoever signs the URL."""
    return place if isinstance(fs, LocalFileSystem) else redacted(place)


def _refuse_stray(link: str, start: str) -> None:
    """Whoever made a folder may read no other files through whoever reads it."""
    place = os.path.realpath(link)
    if not os.path.exists(place):
        raise ValueError(f"{link} is a link that leads nowhere; mend or remove it")
    if not Path(place).is_relative_to(os.path.realpath(start)):
        raise ValueError(
            f"{link} is a link that leads out of {start}; name it itself, or copy what it leads to"
        )


def _is_file(entry: dict[str, Any]) -> bool:
    return entry["type"] == "file" or (_is_link(entry) and os.path.isfile(entry["name"]))


def _own_name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _is_hidden(entry: dict[str, Any]) -> bool:
    return _own_name(entry).startswith(".")


def _is_link(entry: dict[str, Any]) -> bool:
    return bool(entry.get("islink"))
