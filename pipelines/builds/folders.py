"""The folder of a build: taken, checked, swept and marked as finished."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from retro_db.config import Config
from retro_db.errors import ConfigError, ExecutionError, InputError, ManifestError, of_environment
from retro_db.manifest.model import CARD, QUERIES, TABLES, Manifest, query_path
from retro_db.manifest.sealing import FILE, GENERATIONS, manifest_path, read_manifest
from retro_db.report.card import write_card
from retro_db.store.folder import Folder
from retro_db.store.leases import LEASES
from retro_db.store.local_lock import FENCE, LOCK
from retro_db.store.ownership import owning
from retro_db.store.records import RECORDS

from ..engine.console import Console, chatter_to
from ..engine.runner import LOG, log_path

log = logging.getLogger(__name__)
FINISHED = "state/finished"
# What taking a folder writes below state/.
OWNERSHIP = {os.path.basename(name) for name in (LOCK, FENCE, LEASES, LOG)}
# What lies between the stages of the join, and those stages.
JOIN = "state/join"
_OF_JOIN = {"order", "route", "home", "visit", "short"}
_FOLDERS = (*TABLES, "index", "tokenizer")


def sweep(folder: Folder, manifest: Manifest, below: str = "") -> None:
    """Removes what earlier settings or interrupted writes left, and embeddings that are not kept.

    Args:
        folder: The database.
        manifest: What is kept of it.
        below: The part of the folder that is looked at, with a slash behind it; all of it if empty.
    """
    # A worker may have been killed, and its tasks done by another.
    folder.sweep()
    _sweep_tables(folder, manifest, below)


def _sweep_join(folder: Folder, below: str) -> None:
    """Removes what lay between the stages of the join: first the records that vouch for it."""
    for name in folder.list(f"{below}{RECORDS}"):
        if name.removesuffix(".jsonl").split("-")[0] in _OF_JOIN:
            folder.remove(f"{below}{RECORDS}/{name}")
    folder.remove(f"{below}{JOIN}")


def _sweep_tables(folder: Folder, manifest: Manifest, below: str) -> None:
    _sweep_join(folder, below)
    listed = {file.path for file in manifest.files}
    for table in _FOLDERS:
        if not any(path.startswith(f"{below}{table}/") for path in listed):
            folder.remove(f"{below}{table}")
        for name in folder.list(f"{below}{table}"):
            if f"{below}{table}/{name}" not in listed:
                folder.remove(f"{below}{table}/{name}")
    wanted = [query.source.name for query in manifest.queries]
    for name in folder.list(f"{below}{QUERIES}"):
        place = f"{below}{query_path(name)}/"
        if name in wanted and (not below or any(path.startswith(place) for path in listed)):
            _sweep_tables(folder, manifest, place)
        else:
            folder.remove(place.rstrip("/"))


def keep_card(folder: Folder, manifest: Manifest, console: Console) -> None:
    """Writes the dataset card, or says that somebody has written another.

    Args:
        folder: The database.
        manifest: Its manifest.
        console: What people see.
    """
    if not write_card(folder, manifest):
        console.say(
            f"card       {CARD} is not as retro-db wrote it, and stays; delete it for a new one"
        )


def check_files(folder: Folder, manifest: Manifest) -> None:
    """Refuses to finish a database that lacks a file: what removed it is not known here.

    Raises:
        ExecutionError: Names the file, which the same command writes again.
    """
    if missing := folder.missing(manifest.files):
        raise ExecutionError(
            f"{folder.url}: {min(missing)} vanished, or has another size, since it was written; look for "
            "what removes files there, and run the same command again"
        )


def check_replaceable(folder: Folder) -> None:
    """Refuses a database that more than a build has made.

    Raises:
        ConfigError: It was appended to, documents were removed from it, or it is a compacted one.
    """
    kept = manifest_path(1)
    superseded = folder.exists(kept)
    if superseded and folder.exists(FILE):
        # Copied before it is superseded; the run may have ended there.
        superseded = folder.read(kept) != folder.read(FILE)
    compacted = folder.exists("renumbered")
    if superseded or compacted:
        what = "has later generations" if superseded else "was compacted"
        raise ConfigError(
            f"output: {folder.url} {what}, which a build would undo; name a new folder"
        )


def check_output(folder: Folder) -> None:
    """Refuses a file, and a folder with files that no build wrote.

    Raises:
        ConfigError: Names one of them.
    """
    if folder.is_local and os.path.isfile(folder.locate()):
        raise ConfigError(f"output: {folder.url} is a file; name a new folder")
    names = set(folder.list())
    strange = sorted(names - {*_FOLDERS, GENERATIONS, QUERIES, "report", "state", FILE, CARD})
    if names and "state" not in names:
        strange = sorted(names)
    if strange:
        raise ConfigError(
            f"output: {folder.url} holds {strange[0]}, which no build wrote; name a new folder"
        )


@contextmanager
def taken_output(config: Config) -> Iterator[Folder]:
    """Takes the output folder of a build, if a build may write there.

    Raises:
        InputError: It holds what a build would undo, or did not write; or it is taken.
        ExecutionError: A disk or the memory refused something later.
    """
    folder = checked_output(config)
    with owned_folder(folder) as folder:
        # An append or a removal may have ended in between.
        check_replaceable(folder)
        yield folder


def checked_output(config: Config) -> Folder:
    """The output folder of a build, which may write there.

    Raises:
        ConfigError: The folder holds what a build would undo, or did not write.
    """
    folder = Folder(config.output)
    check_replaceable(folder)
    check_output(folder)
    return folder


@contextmanager
def owned_folder(folder: Folder) -> Iterator[Folder]:
    """Takes the folder for this build, and sends libraries' chatter to its log file.

    Raises:
        InputError: It cannot be written, or another build is at work there.
        ExecutionError: A disk or the memory refused something later.
    """
    path = Path(log_path(folder))
    with ExitStack() as resources:
        try:
            owned = resources.enter_context(owning(folder))
            resources.enter_context(chatter_to(path))
        except OSError as error:
            raise InputError(
                f"output: {folder.url} cannot be written: {error.strerror or error}; name another folder, "
                "or make it writable"
            ) from error
        try:
            owned.watch(FILE)
            owned.sweep()
            yield owned
        except (OSError, MemoryError) as error:
            log.exception("the build failed")
            failure = of_environment(error)
            raise ExecutionError(f"{failure} (traces: {path})") from error


def mark_finished(folder: Folder, mark: str, manifest: Manifest) -> None:
    """Records what the database was built from; the note holds for this manifest only."""
    folder.write(FINISHED, f"{mark} {manifest.sha256}".encode())


def finished(folder: Folder, mark: str) -> Manifest | None:
    """The manifest of a database made from the same things, if there is one and its files are there."""
    manifest = standing_manifest(folder)
    if manifest is None or not folder.exists(FINISHED):
        return None
    same = folder.read(FINISHED).decode("ascii", "replace") == f"{mark} {manifest.sha256}"
    return manifest if same and not folder.missing(manifest.files) else None


def standing_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a finished database; None if there is none, or a damaged one, which a build replaces.

    Raises:
        UnsupportedVersionError: This release does not read it, and must not replace it.
    """
    try:
        return read_manifest(folder) if folder.exists(FILE) else None
    except ManifestError:
        log.exception("the manifest is damaged")
        return None
