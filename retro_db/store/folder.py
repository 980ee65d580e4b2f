"""A database folder on any fsspec filesystem: files appear complete under their names, or not at all."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Self, overload

import fsspec
from fsspec.implementations.local import LocalFileSystem

from retro_db.errors import DamagedFileError
from retro_db.printing import redacted
from retro_db.store.cache import Cache, Wanted
from retro_db.store.fence import Fence

TEMPORARY_PREFIX = ".tmp-"
# Streams of object stores read ahead by 50 MB where nobody tells them how far.
READ_AHEAD = 4 << 20
_SPOOL_PREFIX = "retro-db-spool-"


@dataclass(frozen=True)
class FileEntry:
    """One committed file.

    Attributes:
        path: Relative to the database folder, with forward slashes.
        bytes: Size of the file.
        sha256: Hash of its content, in hexadecimal.
        rows: Rows of a table, or entries of an index partition; None for other files.
    """

    path: str
    bytes: int
    sha256: str
    rows: int | None = None

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal: a table's entry equals the same file's in a record."""
        return isinstance(other, FileEntry) and vars(self) == vars(other)

    def below(self, place: str) -> Self:
        """The same file, seen from further up: `place` is the folder that its path counts from."""
        return replace(self, path=f"{place}/{self.path}") if place else self


@dataclass(frozen=True, eq=False)
class TableEntry(FileEntry):
    """One committed file whose rows are counted: a table, or an index partition.

    Attributes:
        path: Relative to the database folder, with forward slashes.
        bytes: Size of the file.
        sha256: Hash of its content, in hexadecimal.
        rows: Rows of the table, or entries of the partition.
    """

    rows: int = field()  # required: without `field()` it would inherit the default


class Folder:
    """A folder at a path or fsspec URL. Picklable; the filesystem is reopened where it is used.

    Args:
        url: Where it is.
        fence: What every write and removal passes; None where nobody else writes.
        cache: Where copies of its files lie, if it is not on a local disk.
    """

    def __init__(self, url: str, fence: Fence | None = None, cache: Cache | None = None) -> None:
        self.url = url
        self.fence = fence
        self.cache = cache or Cache()
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __repr__(self) -> str:
        return f"Folder({redacted(self.url)!r})"

    def _open(self) -> tuple[Any, str]:
        # Connections and the threads behind them do not survive a fork.
        if self._opened is None or self._opened[0] != os.getpid():
            fs, root = fsspec.core.url_to_fs(self.url)
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1:]

    @property
    def is_local(self) -> bool:
        """Whether the files are on a local disk and can be memory-mapped in place."""
        return isinstance(self._open()[0], LocalFileSystem)

    def below(self, path: str) -> Folder:
        """A folder in this one, behind the same fence."""
        return Folder(f"{self.url.rstrip('/')}/{path}", self.fence, self.cache)

    def behind(self, fence: Fence) -> Folder:
        """The same folder, behind a fence."""
        return Folder(self.url, fence, self.cache)

    def locate(self, path: str = "") -> str:
        """The full path of a file on its filesystem."""
        _, root = self._open()
        return f"{root}/{path}" if path else root

    def exists(self, path: str = "") -> bool:
        """Whether a file or folder is there now."""
        fs, _ = self._open()
        fs.invalidate_cache()
        return bool(fs.exists(self.locate(path)))

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        fs, _ = self._open()
        try:
            return int(fs.size(self.locate(path)))
        except FileNotFoundError:
            return None

    def sizes(self, path: str = "") -> dict[str, int]:
        """Bytes of what is directly in a folder, by name, from one listing."""
        fs, _ = self._open()
        try:
            entries = fs.ls(self.locate(path), detail=True, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {os.path.basename(e["name"].rstrip("/")): int(e["size"] or 0) for e in entries}

    def missing(self, entries: Iterable[FileEntry]) -> set[str]:
        """Paths of the files that are not there, or have another size; every folder is listed once.

        Args:
            entries: What manifests or records say of files.
        """
        folders: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for entry in entries:
            parent, _, name = entry.path.rpartition("/")
            folders[parent][name] = entry.bytes
        return {
            f"{parent}/{name}" if parent else name
            for parent, expected in folders.items()
            for found in [self.sizes(parent)]
            for name, size in expected.items()
            if found.get(name) != size
        }

    def list(self, path: str = "") -> list[str]:
        """Names directly in a folder, sorted; empty where there is no such folder."""
        fs, _ = self._open()
        try:
            entries = fs.ls(self.locate(path), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(os.path.basename(entry.rstrip("/")) for entry in entries)

    def read(self, path: str) -> bytes:
        """The whole content of a small file.

        Raises:
            FileNotFoundError: There is no such file.
        """
        fs, _ = self._open()
        return bytes(fs.cat_file(self.locate(path)))

    def local(self, path: str) -> Path:
        """A local path with the content that a file has now: the file itself, or a copy.

        Raises:
            DamagedFileError: There is no such file.
        """
        try:
            held = Path(self.locate(path)) if self.is_local else self._copy_of_now(path)
        except FileNotFoundError:
            held = None
        if held is None or not held.is_file():
            raise self._missing(path)
        return held

    @contextlib.contextmanager
    def streaming(self, path: str) -> Iterator[BinaryIO]:
        """A file's bytes as they are in the folder, whatever copies say.

        Raises:
            DamagedFileError: There is no such file.
        """
        fs, _ = self._open()
        try:
            if self.is_local and not fs.isfile(self.locate(path)):
                raise FileNotFoundError
            stream = fs.open(self.locate(path), "rb", block_size=READ_AHEAD)
        except FileNotFoundError as error:
            raise self._missing(path) from error
        with stream:
            yield stream

    def leads_out(self, path: str) -> bool:
        """Whether a path on a local disk leads out of the folder, upwards or behind a link."""
        if not self.is_local:
            return False
        inside = os.path.realpath(self.locate())
        return not Path(os.path.realpath(self.locate(path))).is_relative_to(inside)

    def verified(self, entry: FileEntry) -> Path:
        """A local path with a listed file's content, for as long as this process lives.

        Args:
            entry: What a manifest or record says of the file.

        Returns:
            The file itself, of which the size was compared, or a copy, of which all bytes were.

        Raises:
            DamagedFileError: There is no such file, it is another, or a link leads out of the folder.
            InputError: The cache has no room for the copy.
        """
        if self.is_local:
            return self._in_place(entry)
        return self.cache.keep(self._wanted(entry), functools.partial(self._fetch, entry))

    @contextlib.contextmanager
    def holding(self, entry: FileEntry) -> Iterator[Path]:
        """The same as `verified`, for the block alone, in which it is read, or mapped to be read later.

        Args:
            entry: What a manifest or record says of the file.

        Raises:
            DamagedFileError: As `verified`.
            InputError: As `verified`.
        """
        if self.is_local:
            yield self._in_place(entry)
            return
        fetch = functools.partial(self._fetch, entry)
        with self.cache.holding(self._wanted(entry), fetch) as copy:
            yield copy

    @contextlib.contextmanager
    def intact(self, entry: FileEntry) -> Iterator[Path]:
        """The same as `holding`, its bytes compared: for what is written on in other files.

        Args:
            entry: What a manifest or record says of the file.

        Raises:
            DamagedFileError: There is no such file, or it is another.
        """
        with self.holding(entry) as held:
            if self.is_local and describe(held, entry.path).sha256 != entry.sha256:
                raise DamagedFileError(
                    f"{self.url}: {entry.path}: its bytes are not those that were written; restore it or "
                    "build again"
                )
            yield held

    def _in_place(self, entry: FileEntry) -> Path:
        if self.leads_out(entry.path):
            raise DamagedFileError(
                f"{self.url}: {entry.path} lies outside, behind a link; put the file in its place"
            )
        held = self.local(entry.path)
        self._expect(held.stat().st_size, entry)
        return held

    def _missing(self, path: str) -> DamagedFileError:
        return DamagedFileError(f"{self.url}: {path} is missing; restore it or build again")

    def _expect(self, size: int, entry: FileEntry) -> None:
        if size != entry.bytes:
            raise DamagedFileError(
                f"{self.url}: {entry.path} has {size} bytes, {entry.bytes} were written; restore it "
                "or build again"
            )

    def _wanted(self, entry: FileEntry) -> Wanted:
        where = f"{redacted(self.url)}: {entry.path}"
        return Wanted(entry.sha256, entry.bytes, entry.sha256, where)

    def _fetch(self, entry: FileEntry, target: Path) -> None:
        """Brings a listed file, unless it has grown or shrunk: it may be any size by now."""
        fs, _ = self._open()
        fs.invalidate_cache()
        size = self.size(entry.path)
        if size is None:
            raise self._missing(entry.path)
        self._expect(size, entry)
        fs.get_file(self.locate(entry.path), str(target))

    def _copy_of_now(self, path: str) -> Path:
        """A copy of a file that nothing lists, named by its version."""
        fs, _ = self._open()
        fs.invalidate_cache()
        target = self.locate(path)
        key = f"{fs.unstrip_protocol(target)} {fs.ukey(target)}"
        wanted = Wanted(key, int(fs.size(target)), None, f"{redacted(self.url)}: {path}")
        return self.cache.keep(wanted, lambda copy: fs.get_file(target, str(copy)))

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """A local file to fill, which takes its name in one step when the block ends well.

        On local disks it is synced and renamed, and the folder synced after it; elsewhere it is a
        spooled file, uploaded in one put: a failed streaming upload would leave half an object.
        """
        fs, _ = self._open()
        target = self.locate(path)
        parent = os.path.dirname(target)
        if self.is_local:
            os.makedirs(parent, exist_ok=True)
        place = Path(parent) if self.is_local else _spool()
        temporary = place / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{os.path.basename(target)}"
        try:
            yield temporary
            if self.is_local:
                _sync(temporary)
            with self._passing():
                if self.is_local:
                    os.replace(temporary, target)
                    _sync(Path(parent))
                else:
                    fs.put_file(str(temporary), target)
        finally:
            temporary.unlink(missing_ok=True)

    def write(self, path: str, data: bytes) -> None:
        """Writes a small file in one step.

        Args:
            path: Relative to the folder.
            data: Its whole content.
        """
        with self.writing(path) as temporary:
            temporary.write_bytes(data)

    def create(self, path: str, data: bytes) -> None:
        """Writes a small file on an object store, if no other writer was first.

        Args:
            path: Relative to the folder.
            data: Its whole content.

        Raises:
            FileExistsError: It is there.
        """
        fs, _ = self._open()
        fs.invalidate_cache()
        fs.pipe_file(self.locate(path), data, mode="create")

    def remove(self, path: str) -> None:
        """Removes a file or a whole folder, if it is there; for good, before this returns."""
        fs, _ = self._open()
        target = self.locate(path)
        with self._passing(), contextlib.suppress(FileNotFoundError):
            fs.rm(target, recursive=True)
            if self.is_local:
                _sync(Path(target).parent)

    def sweep(self) -> None:
        """Removes what writers left that were killed before their files took their names."""
        fs, root = self._open()
        if self.is_local:
            for leftover in Path(root).rglob(f"{TEMPORARY_PREFIX}*"):
                leftover.unlink(missing_ok=True)
        else:
            _sweep_spools()
            _abort_uploads(fs, root)

    def _passing(self) -> contextlib.AbstractContextManager[None]:
        return self.fence.passing() if self.fence else contextlib.nullcontext()


def _spool() -> Path:
    """Where this process writes files before it uploads them."""
    place = Path(tempfile.gettempdir()) / f"{_SPOOL_PREFIX}{os.getpid()}"
    place.mkdir(exist_ok=True)
    return place


def _sweep_spools() -> None:
    """Removes the spools of processes of this machine that are dead."""
    for place in Path(tempfile.gettempdir()).glob(f"{_SPOOL_PREFIX}*"):
        pid = place.name.removeprefix(_SPOOL_PREFIX)
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(place, ignore_errors=True)


def _abort_uploads(fs: Any, root: str) -> None:
    """Ends multipart uploads that were never completed: a store bills for them and does not list them."""
    if not hasattr(fs, "list_multipart_uploads"):
        return
    bucket, _, prefix = root.partition("/")
    for upload in fs.list_multipart_uploads(bucket):
        if upload["Key"].startswith(f"{prefix}/"):
            fs.call_s3(
                "abort_multipart_upload",
                Bucket=bucket,
                Key=upload["Key"],
                UploadId=upload["UploadId"],
            )


@overload
def describe(file: Path, path: str, rows: None = None) -> FileEntry: ...


@overload
def describe(file: Path, path: str, rows: int) -> TableEntry: ...


def describe(file: Path, path: str, rows: int | None = None) -> FileEntry:
    """Size and checksum of a local file, under the name that it has in the database.

    Args:
        file: On a local disk.
        path: Its name in the database.
        rows: Rows of the table or entries of the index partition in it; None for other files.

    Returns:
        The entry for a manifest or a record.
    """
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    size = file.stat().st_size
    if rows is None:
        return FileEntry(path, size, sha256)
    return TableEntry(path, size, sha256, rows)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
