"""A database folder on any fsspec filesystem: files appear complete under their names, or not at all."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import os
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, overload

from fsspec.implementations.local import LocalFileSystem

from retro_db.errors import DamagedFileError, OwnershipLostError
from retro_db.printing import redacted
from retro_db.store.cache import Cache, Wanted
from retro_db.store.conditional import ReplacedError, put_if, version_of
from retro_db.store.fence import Fence
from retro_db.store.filesystems import open_filesystem
from retro_db.store.ranges import RawRange
from retro_db.store.uploads import abort_uploads, spool, sweep_spools

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}[0-9a-f]{{32}}-")
# Streams of object stores read ahead by 50 MB unless they are given a block size.
READ_AHEAD = 4 << 20


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
        """The same file, its path relative to a folder further up.

        Args:
            place: Path of the present folder in the one further up; empty if they are the same.
        """
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


class Guard(Protocol):
    """Tells whether the files of a folder are still those of the database that a reader has opened."""

    def expect_standing(self) -> None:
        """Looks again.

        Raises:
            DatabaseReplacedError: Another build has begun to replace them.
        """


class Folder:
    """A folder at a path or fsspec URL. Picklable; the filesystem is reopened where it is used.

    Args:
        url: Path or fsspec URL of the folder.
        fence: Fence that every write and removal passes; None if nobody else writes.
        cache: Cache for copies of its files, if it is not on a local disk.
        top: The folder that nothing here may lead out of, if that is one further up.
    """

    def __init__(
        self,
        url: str,
        fence: Fence | None = None,
        cache: Cache | None = None,
        top: str | None = None,
    ) -> None:
        self.url = url
        self.fence = fence
        self.cache = cache or Cache()
        self._top = top or url
        self._guard: Guard | None = None
        self._versions: dict[str, str | None] = {}
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __repr__(self) -> str:
        return f"Folder({redacted(self.url)!r})"

    def _open(self) -> tuple[Any, str]:
        # Connections and the threads behind them do not survive a fork.
        if self._opened is None or self._opened[0] != os.getpid():
            fs, root = open_filesystem(self.url)
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1:]

    @property
    def is_local(self) -> bool:
        """Whether the files are on a local disk and can be memory-mapped in place."""
        return isinstance(self._open()[0], LocalFileSystem)

    def below(self, path: str) -> Folder:
        """A folder in this one, behind the same fence."""
        return Folder(f"{self.url.rstrip('/')}/{path}", self.fence, self.cache, self._top)

    def behind(self, fence: Fence) -> Folder:
        """The same folder, behind a fence."""
        return Folder(self.url, fence, self.cache, self._top)

    def watch(self, path: str) -> None:
        """Notes the version of a file on an object store: it is replaced only while it has that version."""
        if not self.is_local:
            fs, _ = self._open()
            self._versions[path] = version_of(fs, self.locate(path))

    def guarded(self, guard: Guard) -> Folder:
        """The same folder, each of whose local files is read as long as a guard lets it pass."""
        folder = copy.copy(self)
        folder._guard = guard
        return folder

    def expect_standing(self) -> None:
        """Raises what the guard raises, if there is one."""
        if self._guard:
            self._guard.expect_standing()

    def locate(self, path: str = "") -> str:
        """The full path of a file on its filesystem."""
        _, root = self._open()
        return f"{root}/{path}" if path else root

    def exists(self, path: str = "") -> bool:
        """Whether a file or folder exists now."""
        fs, _ = self._open()
        fs.invalidate_cache()
        return bool(fs.exists(self.locate(path)))

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if it does not exist."""
        fs, _ = self._open()
        try:
            return int(fs.size(self.locate(path)))
        except FileNotFoundError:
            return None

    def sizes(self, path: str = "") -> dict[str, int]:
        """Bytes of the files directly in a folder, by name, from one listing."""
        fs, _ = self._open()
        try:
            entries = fs.ls(self.locate(path), detail=True, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        sizes = {os.path.basename(e["name"].rstrip("/")): int(e["size"] or 0) for e in entries}
        return {name: size for name, size in sizes.items() if not _is_temporary(name)}

    def missing(self, entries: Iterable[FileEntry]) -> set[str]:
        """Paths of the files that do not exist or have another size; every folder is listed once.

        Args:
            entries: Files as manifests or records list them.
        """
        folders: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for entry in entries:
            parent, _, name = entry.path.rpartition("/")
            folders[parent][name] = entry.bytes
        return {
            f"{parent}/{name}" if parent else name
            for parent, expected in folders.items()
            for sizes in [self.sizes(parent)]
            for name, size in expected.items()
            if sizes.get(name) != size
        }

    def list(self, path: str = "") -> list[str]:
        """Names directly in a folder, sorted; empty if the folder does not exist.

        A file that has not taken its name is not among them: its writer is at work, or was killed.
        """
        fs, _ = self._open()
        try:
            entries = fs.ls(self.locate(path), detail=False, refresh=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = sorted(os.path.basename(entry.rstrip("/")) for entry in entries)
        return [name for name in names if not _is_temporary(name)]

    def walk(self) -> Sequence[str]:
        """Paths of all files in the folder and below, relative to it, sorted; as `list` for each folder."""
        fs, root = self._open()
        fs.invalidate_cache()
        paths = sorted(path[len(root) + 1 :] for path in fs.find(root))
        return [path for path in paths if not _is_temporary(os.path.basename(path))]

    def read(self, path: str) -> bytes:
        """The whole content of a small file.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        fs, _ = self._open()
        return bytes(fs.cat_file(self.locate(path)))

    def local(self, path: str) -> Path:
        """A local path with the content that a file has now: the file itself, or a copy.

        Raises:
            DamagedFileError: The file does not exist.
        """
        try:
            file = Path(self.locate(path)) if self.is_local else self._current_copy(path)
        except FileNotFoundError as error:
            raise self._missing(path) from error
        if not file.is_file():
            raise self._missing(path)
        return file

    @contextlib.contextmanager
    def streaming(self, path: str) -> Iterator[BinaryIO]:
        """A file's bytes as they are in the folder, not as a copy has them.

        Raises:
            DamagedFileError: The file does not exist.
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

    @contextlib.contextmanager
    def streaming_range(self, path: str, start: int, stop: int) -> Iterator[BinaryIO]:
        """Bytes start to stop - 1 of a file as they are in the folder: these are asked for, and no others.

        Raises:
            DamagedFileError: The file does not exist.
        """
        fs, _ = self._open()
        try:
            yield io.BufferedReader(RawRange(fs, self.locate(path), start, stop), READ_AHEAD)
        except FileNotFoundError as error:
            raise self._missing(path) from error

    def leads_out(self, path: str) -> bool:
        """Whether a path on a local disk leads out of the topmost folder, upwards or behind a link."""
        if not self.is_local:
            return False
        inside = os.path.realpath(Folder(self._top).locate())
        return not Path(os.path.realpath(self.locate(path))).is_relative_to(inside)

    def expect_inside(self, path: str) -> None:
        """Refuses a path that leads out of the folder: a database may come from somebody else.

        Raises:
            DamagedFileError: The path leads out, upwards or behind a link.
        """
        if self.leads_out(path):
            raise DamagedFileError(
                f"{self.url}: {path} lies outside, behind a link; put the file in its place"
            )

    def verified(self, entry: FileEntry) -> Path:
        """A local path with a listed file's content, for as long as this process lives.

        Args:
            entry: The file as a manifest or record lists it.

        Returns:
            The file itself, after comparing its size, or a copy, after comparing all of its bytes.

        Raises:
            DamagedFileError: The file does not exist, is not the listed one, or lies behind a link that
                leads out of the folder.
            InputError: The cache has no room for the copy.
        """
        if self.is_local:
            return self._in_place(entry)
        return self.cache.keep(self._wanted(entry), functools.partial(self._fetch, entry))

    @contextlib.contextmanager
    def holding(self, entry: FileEntry) -> Iterator[Path]:
        """The same as `verified`, but for the block, in which the file is read or mapped.

        On a local disk it is looked afterwards whether what was read or mapped was the listed file.

        Args:
            entry: The file as a manifest or record lists it.

        Raises:
            DamagedFileError: As `verified`.
            InputError: As `verified`.
        """
        if self.is_local:
            yield self._in_place(entry)
            self.expect_standing()
            return
        fetch = functools.partial(self._fetch, entry)
        with self.cache.holding(self._wanted(entry), fetch) as copy:
            yield copy

    @contextlib.contextmanager
    def intact(self, entry: FileEntry) -> Iterator[Path]:
        """The same as `holding`, after comparing all bytes: for content that is copied into other files.

        Args:
            entry: The file as a manifest or record lists it.

        Raises:
            DamagedFileError: The file does not exist, or is not the listed one.
        """
        with self.holding(entry) as file:
            if self.is_local and describe(file, entry.path).sha256 != entry.sha256:
                raise DamagedFileError(
                    f"{self.url}: {entry.path}: its bytes are not those that were written; restore it or "
                    "build again"
                )
            yield file

    def _in_place(self, entry: FileEntry) -> Path:
        self.expect_inside(entry.path)
        file = self.local(entry.path)
        self._expect(file.stat().st_size, entry)
        return file

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
        """Fetches a listed file, unless its size has changed: it may be of any size by now."""
        fs, _ = self._open()
        fs.invalidate_cache()
        size = self.size(entry.path)
        if size is None:
            raise self._missing(entry.path)
        self._expect(size, entry)
        fs.get_file(self.locate(entry.path), str(target))

    def _current_copy(self, path: str) -> Path:
        """A copy of a file that nothing lists, named by the file's version."""
        fs, _ = self._open()
        fs.invalidate_cache()
        target = self.locate(path)
        key = f"{fs.unstrip_protocol(target)} {fs.ukey(target)}"
        wanted = Wanted(key, int(fs.size(target)), None, f"{redacted(self.url)}: {path}")
        return self.cache.keep(wanted, lambda copy: fs.get_file(target, str(copy)))

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """A local file to fill, which takes its name in one step when the block ends without an error.

        On local disks it is synced and renamed, and the folder synced after it; elsewhere it is a
        spooled file, uploaded in one put: a failed streaming upload would leave half an object.

        Raises:
            DamagedFileError: The path leads out of the folder.
            OwnershipLostError: The file is watched, and somebody else has replaced it.
        """
        fs, _ = self._open()
        target = self.locate(path)
        parent = os.path.dirname(target)
        if self.is_local:
            self.expect_inside(os.path.dirname(path))
            make_folders(Path(parent))
        place = Path(parent) if self.is_local else spool()
        temporary = place / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{os.path.basename(target)}"
        try:
            yield temporary
            if self.is_local:
                sync(temporary)
            with self._passing():
                if self.is_local:
                    os.replace(temporary, target)
                    sync(Path(parent))
                elif path in self._versions:
                    self._put_watched(path, temporary.read_bytes())
                else:
                    fs.put_file(str(temporary), target)
        finally:
            temporary.unlink(missing_ok=True)

    def _put_watched(self, path: str, data: bytes) -> None:
        fs, _ = self._open()
        try:
            self._versions[path] = put_if(fs, self.locate(path), data, self._versions[path])
        except ReplacedError as error:
            raise OwnershipLostError(
                f"{self.url}/{path}: another build has written or removed it meanwhile; run the same command "
                "again"
            ) from error

    def write(self, path: str, data: bytes) -> None:
        """Writes a small file in one step.

        Args:
            path: Relative to the folder.
            data: Its whole content.
        """
        with self.writing(path) as temporary:
            temporary.write_bytes(data)

    def create(self, path: str, data: bytes) -> None:
        """Writes a small file on an object store, unless it exists already.

        Args:
            path: Relative to the folder.
            data: Its whole content.

        Raises:
            FileExistsError: The file exists.
        """
        fs, _ = self._open()
        fs.invalidate_cache()
        fs.pipe_file(self.locate(path), data, mode="create")

    def remove(self, path: str) -> None:
        """Removes a file or a whole folder, if it exists; synced to disk before this returns.

        Raises:
            DamagedFileError: The folder that holds it leads out of this one.
        """
        fs, _ = self._open()
        target = self.locate(path)
        self.expect_inside(os.path.dirname(path))
        with self._passing(), contextlib.suppress(FileNotFoundError):
            if self.is_local and os.path.islink(target):
                os.unlink(target)
            else:
                fs.rm(target, recursive=True)
            if self.is_local:
                sync(Path(target).parent)
        if path in self._versions:
            self._versions[path] = None

    def sweep(self) -> None:
        """Removes the files of writers that were killed before their files took their names."""
        fs, root = self._open()
        if self.is_local:
            for leftover in Path(root).rglob(f"{TEMPORARY_PREFIX}*"):
                leftover.unlink(missing_ok=True)
        else:
            sweep_spools()
            abort_uploads(fs, root)

    def _passing(self) -> contextlib.AbstractContextManager[None]:
        return self.fence.passing() if self.fence else contextlib.nullcontext()


@overload
def describe(file: Path, path: str, rows: None = None) -> FileEntry: ...


@overload
def describe(file: Path, path: str, rows: int) -> TableEntry: ...


def describe(file: Path, path: str, rows: int | None = None) -> FileEntry:
    """Describes a local file: size, checksum, and the path that it has in the database.

    Args:
        file: File on a local disk.
        path: Path of the file in the database.
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


def make_folders(path: Path) -> None:
    """Makes a local folder and those above it, each synced into the one that holds it."""
    if not path.is_dir():
        make_folders(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a local file, or the names in a local folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_temporary(name: str) -> bool:
    return _TEMPORARY.match(name) is not None
