"""Files that paths, folders and globs name. Each folder is listed once, even if many paths name it."""

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

from retro_db.corpus import hub
from retro_db.errors import CorpusError, ExecutionError
from retro_db.printing import redacted
from retro_db.store.filesystems import unopened

# Name of a smoke build's folder, behind that of the output.
SMOKE = "-smoke"
# Syntax that joins filesystems, or opens an archive as one.
_JOINED = re.compile(r"::|(?:zip|tar|libarchive|reference)://")
_WILDCARD = re.compile(r"[*?\[]")
# Names that the filesystems of fsspec give to a property that changes with a file's content.
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
    "Last-Modified",
    "Content-MD5",
    "Digest",
    "blob_id",
    "modificationTime",
]


@dataclass(frozen=True)
class InputFile:
    """One file of a corpus.

    Attributes:
        url: URL of the file.
        name: Path below the folder that the globs start from: the same on every machine.
        bytes: Size of the file.
        version: Value that changes with the content: the ETag or the time of the last change; empty where
            the filesystem gives none.
        touched: Time at which a local file's inode changed: it tells content that was put under the old time
            of change. Links to the file, its owner and its name change it too.
        index: File that is read beside it, if its format has one.
    """

    url: str
    name: str
    bytes: int
    version: str
    touched: str = ""
    index: InputFile | None = None

    @property
    def place(self) -> str:
        """The URL without the commit of a dataset on the hub, which also changes when other files do."""
        return hub.unpinned(self.url) if self.url.startswith(f"{hub.PROTOCOL}://") else self.url

    @property
    def versions(self) -> str:
        """The versions of all that is read of it; empty if one of them is not known."""
        files = (self, self.index) if self.index else (self,)
        known = all(file.version for file in files)
        return " ".join(f"{file.version} {file.touched}" for file in files) if known else ""

    def is_same(self, entry: dict[str, Any]) -> bool:
        """Whether a file that was opened is this one, as far as its filesystem can tell.

        Args:
            entry: What the filesystem says of the opened file.
        """
        same_size = entry.get("size") in (None, self.bytes)
        versions = {str(entry[key]) for key in _VERSIONS if entry.get(key)}
        return same_size and (not self.version or not versions or self.version in versions)

    @property
    def touched_now(self) -> str:
        """What `touched` would be now, on the machine that listed it."""
        return input_file(self.url, self.name).touched if self.touched else ""


class Listing:
    """Lists the files that paths name, and remembers every folder that it has listed.

    Args:
        output: Folder that a build writes to: nothing in it, or in that of its smoke build, is read.

    Attributes:
        left_out: Whether the paths reach the output, which was left out.
    """

    def __init__(self, output: str) -> None:
        self.left_out = False
        self._seen: dict[tuple[int, str], list[dict[str, Any]]] = {}
        protocol, path = fsspec.core.split_protocol(output)
        self._protocol = protocol or "file"
        root = _real(path, local=self._protocol == "file").rstrip("/").removesuffix(SMOKE)
        self._outputs = (root, root + SMOKE)

    def files(self, paths: Sequence[str], where: str) -> list[InputFile]:
        """All files that the paths name, sorted by name, each once.

        Args:
            paths: Files, folders and globs on any fsspec filesystem. `**` matches any folders;
                wildcards and folders skip names that begin with a dot, as a shell does, and pipes,
                sockets and devices.
            where: Setting that holds the paths, for error messages.

        Returns:
            Every file once, with its size in bytes.

        Raises:
            CorpusError: A path is missing or not a file, a glob matches nothing, a link in a folder leads
                out of it (such a link must be named itself), or two files would have one name.
        """
        entries_by_url: dict[str, tuple[Any, dict[str, Any]]] = {}
        bases: set[str] = set()
        for number, path in enumerate(paths):
            setting = f"{where}.{number}"
            if _JOINED.search(path):
                raise CorpusError(
                    f"{setting}: {path}: archives and joined filesystems cannot be read; unpack or copy "
                    "the files"
                )
            try:
                fs, pattern = fsspec.core.url_to_fs(os.path.expanduser(path))
            except (ImportError, ValueError) as error:
                raise CorpusError(f"{setting}: {path}: {unopened(error)}") from error
            try:
                fs.invalidate_cache()  # what was listed before in this process may have changed
                if _is_hub(fs):
                    pattern = hub.pinned(fs, pattern)
                    path = f"{hub.PROTOCOL}://{pattern}"
                base, entries = self._matches(fs, pattern)
                if self._is_written(fs, base):
                    raise ValueError("lies in the output, which a build writes; name other files")
            except ValueError as error:
                raise CorpusError(f"{setting}: {path}: {error}") from error
            except (CorpusError, ExecutionError) as error:
                raise type(error)(f"{setting}: {path}: {error}") from error
            if not entries:
                can_be_empty = _WILDCARD.search(pattern) or fs.isdir(pattern)
                problem = "matches no file" if can_be_empty else "does not exist"
                raise CorpusError(f"{setting}: {path} {problem}; correct the path")
            prefix = _prefix(fs, path, pattern, setting)
            bases.add(_shown(fs, base))
            entries_by_url |= {prefix + entry["name"]: (fs, entry) for entry in entries}
        # Names start at the folder that all paths have in common, so that no two are alike.
        base = _common(bases)
        files = [_describe(fs, url, base, entry) for url, (fs, entry) in entries_by_url.items()]
        files.sort(key=lambda file: (file.name, file.url))
        for file, following in itertools.pairwise(files):
            if file.name != following.name:
                continue
            if file.place == following.place:
                raise CorpusError(
                    f"{where}: {following.url} is another revision of {file.url}; give each a source "
                    "of its own"
                )
            if redacted(file.url) == redacted(following.url):
                raise CorpusError(
                    f"{where}: {file.url} stands for two files, whose URLs differ in what is hidden as a "
                    "credential; copy them to files of other names"
                )
        return files

    def _matches(self, fs: Any, pattern: str) -> tuple[str, list[dict[str, Any]]]:
        """The folder that names start at, and the entries of the files that match a pattern."""
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
        levels = pattern[len(base) :].lstrip("/").split("/")
        return base, list(self._walk(fs, base, levels, base))

    def _walk(
        self, fs: Any, folder: str, levels: list[str], start: str
    ) -> Iterator[dict[str, Any]]:
        """Entries of the files below a folder that match the levels of a pattern, one for each folder.

        Raises:
            ValueError: A link leads out of the folder `start`, where the walk started.
        """
        first, *rest = levels
        if first == "**":
            yield from self._walk(fs, folder, rest or ["*"], start)
            for entry in self._list(fs, folder):
                # As find does, links to folders are not followed here: they may form a circle.
                if entry["type"] != "directory" or _is_hidden(entry) or _is_link(entry):
                    continue
                if not self._leaves_out(fs, entry["name"]):
                    yield from self._walk(fs, entry["name"], levels, start)
            return
        matches = re.compile(fnmatch.translate(first)).match
        for entry in self._list(fs, folder):
            name = _base_name(entry)
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
                if not self._leaves_out(fs, entry["name"]):
                    yield from self._walk(fs, entry["name"], rest, start)
            elif _is_file(entry):
                yield entry

    def _leaves_out(self, fs: Any, folder: str) -> bool:
        """Whether a folder is that of the output, and is passed over."""
        is_output = (
            self._is_beside(fs)
            and _real(folder, local=isinstance(fs, LocalFileSystem)) in self._outputs
        )
        self.left_out = self.left_out or is_output
        return is_output

    def _is_written(self, fs: Any, path: str) -> bool:
        """Whether a path lies in the output."""
        path = f"{_real(path, local=isinstance(fs, LocalFileSystem))}/"
        inside = any(path.startswith(f"{output}/") for output in self._outputs)
        return inside and self._is_beside(fs)

    def _is_beside(self, fs: Any) -> bool:
        """Whether the output is on the same kind of filesystem."""
        return self._protocol in _protocols(fs)

    def _list(self, fs: Any, folder: str) -> list[dict[str, Any]]:
        key = (id(fs), folder)
        if key not in self._seen:
            try:
                self._seen[key] = fs.ls(folder, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                self._seen[key] = []
        return self._seen[key]


def _protocols(fs: Any) -> Sequence[str]:
    return [fs.protocol] if isinstance(fs.protocol, str) else fs.protocol


def _is_hub(fs: Any) -> bool:
    return hub.PROTOCOL in _protocols(fs)


def _real(path: str, *, local: bool) -> str:
    """A path without links, as far as its filesystem has any."""
    return os.path.realpath(os.path.expanduser(path)) if local else path


def filesystem_of(url: str) -> tuple[Any, str]:
    """The filesystem of an input file, and the file's path on it."""
    protocol, path = fsspec.core.split_protocol(url)
    # In URLs "::" joins two filesystems, but here it may be part of a name.
    if protocol == "file":
        return fsspec.filesystem("file"), path
    filesystem: tuple[Any, str] = fsspec.core.url_to_fs(url)
    return filesystem


def input_file(url: str, name: str) -> InputFile:
    """Describes a file that no path names; its size and version are empty if there is none.

    Args:
        url: URL of the file.
        name: Name of the file.
    """
    fs, path = filesystem_of(url)
    try:
        entry = fs.info(path)
    except FileNotFoundError:
        return InputFile(url, name, 0, "")
    return _input_file(fs, url, name, entry)


def _input_file(fs: Any, url: str, name: str, entry: dict[str, Any]) -> InputFile:
    version = str(next((entry[key] for key in _VERSIONS if entry.get(key)), ""))
    touched = str(entry["created"]) if isinstance(fs, LocalFileSystem) else ""
    return InputFile(url, name, int(entry["size"] or 0), version, touched)


def _common(folders: set[str]) -> str:
    """The folder that all folders are in; of URLs with different hosts, what comes before the host."""
    levels = zip(*(folder.split("/") for folder in folders), strict=False)
    common = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return "/".join(names[0] for names in common)


def _prefix(fs: Any, path: str, pattern: str, setting: str) -> str:
    """The beginning of the URLs of a filesystem's files, up to their names, with any host."""
    if isinstance(fs, LocalFileSystem):
        return str(fs.unstrip_protocol("/"))[:-1]
    if not path.endswith(pattern):
        raise CorpusError(f"{setting}: {path}: its files have other names; copy them")
    return path.removesuffix(pattern)


def _describe(fs: Any, url: str, base: str, entry: dict[str, Any]) -> InputFile:
    full = _shown(fs, entry["name"])
    if _is_link(entry):
        entry = fs.info(os.path.realpath(full))
    # A name that is not UTF-8 reads with replacement characters; its URL keeps it.
    name = full[len(base) :].lstrip("/").encode("utf-8", "replace").decode("utf-8")
    return _input_file(fs, url, name, entry)


def _shown(fs: Any, path: str) -> str:
    """A path as names are made of it: without credentials, whoever signed it, and without a commit."""
    if isinstance(fs, LocalFileSystem):
        return path
    return redacted(hub.unpinned(path) if _is_hub(fs) else path)


def _refuse_stray(link: str, start: str) -> None:
    """Refuses a link that leads out of a folder: its maker could read other files through the build."""
    target = os.path.realpath(link)
    if not os.path.exists(target):
        raise ValueError(f"{link} is a link that leads nowhere; mend or remove it")
    if not Path(target).is_relative_to(os.path.realpath(start)):
        raise ValueError(
            f"{link} is a link that leads out of {start}; name it itself, or copy what it leads to"
        )


def _is_file(entry: dict[str, Any]) -> bool:
    return entry["type"] == "file" or (_is_link(entry) and os.path.isfile(entry["name"]))


def _base_name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]


def _is_hidden(entry: dict[str, Any]) -> bool:
    return _base_name(entry).startswith(".")


def _is_link(entry: dict[str, Any]) -> bool:
    return bool(entry.get("islink"))
