"""What a process that was killed during an upload leaves behind: spooled files, and parts of uploads."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

from retro_db.store.fence import is_alive, this_machine

_PREFIX = "retro-db-spool"
_spools: dict[int, Path] = {}
_making = threading.Lock()


def spool() -> Path:
    """The folder in which this process writes files before it uploads them.

    Nobody else can have made it, or write there: its name is unforeseeable, and it is this user's alone.
    """
    with _making:
        folder = _spools.get(os.getpid())
        if folder is None or not folder.is_dir():
            folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-"))
            _spools[os.getpid()] = folder
        return folder


def sweep_spools() -> None:
    """Removes the spools of this user's dead processes: a container that shares the folder has others."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        pid = folder.name.removeprefix(_prefix()).partition("-")[0]
        try:
            status = folder.lstat()
        except FileNotFoundError:  # another process sweeps too
            continue
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if ours and pid.isdecimal() and not is_alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    """Beginning of the spools' names where the numbers of this process's siblings mean the same."""
    machine = hashlib.sha256(this_machine().encode()).hexdigest()[:16]
    return f"{_PREFIX}-{machine}-"


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
