"""Manifests as files: sealed, read with every check, and superseded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from retro_db.errors import (
    ExecutionError,
    ManifestError,
    NotADatabaseError,
    UnsupportedVersionError,
)
from retro_db.manifest.checks import check_manifest
from retro_db.manifest.model import FORMAT, VERSION, Manifest, without_seal
from retro_db.store.entries import read_bounded
from retro_db.store.folder import Folder
from retro_db.store.serialize import DecodeError, digest, from_json, parse_json, to_json

FILE = "manifest.json"
GENERATIONS = "generations"
# Marks of a compaction and of a sample, and what is below the folder of any build.
COMPACTING, SAMPLING, _STATE = "state/compacting", "state/smoke", "state"
# What they say of a folder without a manifest.
_BEGUN = {
    COMPACTING: "retro-db compact has begun and not ended; the same command finishes it",
    SAMPLING: "retro-db build --smoke has begun and not ended; the same command makes it anew",
    _STATE: "a build has begun and not ended; retro-db build with its configuration finishes it",
}


def generation_path(generation: int) -> str:
    """Path in the database folder of the files that a generation adds, and of its superseded manifest."""
    return f"{GENERATIONS}/{generation:04d}"


def manifest_path(generation: int) -> str:
    """Path in the database folder of a superseded generation's manifest."""
    return f"{generation_path(generation)}/{FILE}"


def write_manifest(folder: Folder, manifest: Manifest) -> Manifest:
    """Seals the manifest and writes it in one step; the folder is a database from then on.

    Args:
        folder: The database.
        manifest: The manifest, without its sha256 or with an old one.

    Returns:
        The manifest as written.
    """
    sealed = manifest.sealed()
    folder.write(FILE, manifest_text(sealed))
    return sealed


def manifest_text(manifest: Manifest) -> bytes:
    """Content of the manifest's file."""
    text = json.dumps(to_json(manifest), indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode("ascii")


def write_generation(folder: Folder, old: Manifest, new: Manifest) -> Manifest:
    """Supersedes the manifest, and keeps the old one byte for byte beside it.

    The old database stays whole until the new manifest is in place.

    Args:
        folder: The database. The caller makes sure that nobody else writes to it.
        old: The present manifest.
        new: The manifest that comes after it; generation, parent and version are set here.

    Returns:
        The new manifest as written.

    Raises:
        ExecutionError: The present manifest is not `old`.
    """
    if read_manifest(folder).sha256 != old.sha256:
        raise ExecutionError(
            f"{folder.url}/{FILE}: changed in the meantime; run the same command again"
        )
    folder.write(manifest_path(old.generation), folder.read(FILE))
    return write_manifest(
        folder,
        dataclasses.replace(new, generation=old.generation + 1, parent=old.sha256, version=VERSION),
    )


def read_manifest(folder: Folder, path: str = FILE) -> Manifest:
    """Reads and checks a manifest.

    Args:
        folder: The database.
        path: Path of the manifest in it: the current one, or one that was kept.

    Raises:
        NotADatabaseError: The manifest does not exist.
        UnsupportedVersionError: Its major version is not the one of this release.
        ManifestError: It is damaged, too large, or does not agree with itself.
    """
    data = _read_json(folder, path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ManifestError(
            f"{folder.url}/{path}: format is not {FORMAT!r}; restore it, or check the path"
        )
    version = data.get("version")
    if not isinstance(version, str):
        raise ManifestError(f"{folder.url}/{path}: version: not a text; restore it from a copy")
    if version.split(".")[0] != VERSION.split(".")[0]:
        raise UnsupportedVersionError(
            f"{folder.url}/{path}: format version {version[:20]}, this release reads {VERSION}; "
            "use the retro-db release that wrote it"
        )
    if not _is_sealed(data):
        raise ManifestError(
            f"{folder.url}/{path}: its sha256 does not match; restore it from a copy"
        )
    try:
        manifest = from_json(Manifest, data)
        check_manifest(manifest)
    except DecodeError as error:
        raise ManifestError(f"{folder.url}/{path}: {error}; restore it from a copy") from error
    return manifest


def _read_json(folder: Folder, path: str) -> Any:
    try:
        raw = read_bounded(folder, path)
        if raw is None:
            raise NotADatabaseError(f"{folder.url}: {_unfinished(folder, path)}")
        return parse_json(raw)
    except DecodeError as error:
        raise ManifestError(f"{folder.url}/{path}: {error}; restore it from a copy") from error


def _unfinished(folder: Folder, path: str) -> str:
    """Why a manifest is not there, and what to do."""
    if folder.is_local and Path(folder.locate()).is_file():
        return "is a file; name the folder of a database"
    for mark, begun in _BEGUN.items():
        if folder.exists(mark):
            return f"no {path}: {begun}"
    if not folder.exists():
        return "does not exist; check the path, or build it by retro-db build"
    return f"no {path}, so not a database; check the path"


def _is_sealed(data: dict[str, Any]) -> bool:
    try:
        return digest(without_seal(data)) == data.get("sha256")
    except RecursionError:
        return False  # nested more deeply than any manifest
