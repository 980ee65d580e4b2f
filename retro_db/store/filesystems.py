"""Filesystems of URLs, and what to do where one cannot be opened."""

from __future__ import annotations

from typing import Any

import fsspec

from retro_db.errors import InputError


def open_filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a path or fsspec URL, and the path on it.

    Raises:
        InputError: The protocol is not known, or its package is not installed.
    """
    try:
        filesystem: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {unopened(error)}") from error
    return filesystem


def unopened(error: ImportError | ValueError) -> str:
    """Why fsspec does not open a URL, and the remedy."""
    reason = str(error).strip().rstrip(".")
    if isinstance(error, ImportError):
        return f"{reason}; install that package here, and on the workers, by pip install"
    return f"{reason}; correct the URL"
