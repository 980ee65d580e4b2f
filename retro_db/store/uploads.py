"""What a process that was killed during an upload leaves behind: spooled files, and parts of uploads."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

_SPOOL_PREFIX = "retro-db-spool-"


def spool() -> Path:
    """The folder in which this process writes files before it uploads them; made if it does not exist."""
    folder = Path(tempfile.gettempdir()) / f"{_SPOOL_PREFIX}{os.getpid()}"
    folder.mkdir(exist_ok=True)
    return folder


def sweep_spools() -> None:
    """Removes the spools of this machine's dead processes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SPOOL_PREFIX}*"):
        pid = folder.name.removeprefix(_SPOOL_PREFIX)
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def abort_uploads(fs: Any, root: str) -> None:
    """Ends multipart uploads that were never completed: a store bills for them and does not list them.

    Args:
        fs: The fsspec filesystem of the store.
        root: Path on it; only uploads below it are ended.
    """
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
