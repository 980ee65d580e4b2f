"""Datasets on the Hugging Face hub: a build reads the revision that the hub had when it was planned."""

from __future__ import annotations

import re
from typing import Any

from retro_db.errors import CorpusError, ExecutionError, RetroDBError

PROTOCOL = "hf"
# Git's hash of a commit, as `pinned` puts it behind the name of a dataset.
_COMMIT = re.compile(r"@[0-9a-f]{40}(?=/|$)")


def pinned(fs: Any, path: str) -> str:
    """The path in the commit that its revision is now; a path in a bucket, which has no revisions, as it is.

    Args:
        fs: The filesystem of the hub.
        path: File, folder or glob on it: `datasets/OWNER/NAME/...`, with or without `@REVISION`.

    Raises:
        CorpusError: The dataset or the revision does not exist, or may not be read.
        ExecutionError: The hub cannot be reached.
    """
    if path.startswith("buckets/"):
        return path
    try:
        resolved = fs.resolve_path(path)
        commit = _commit(fs, resolved)
    except FileNotFoundError as error:
        raise CorpusError(
            f"no such dataset, or none that may be read: {error}; correct its name, or set HF_TOKEN to a "
            "token that may read it"
        ) from error
    except (ValueError, NotImplementedError):
        raise CorpusError("names no dataset; write hf://datasets/OWNER/NAME/FILES") from None
    except failures(PROTOCOL) as error:
        raise _unreached(fs, error) from error
    root = resolved.root.split("@")[0]
    return f"{root}@{commit}/{resolved.path_in_repo}".rstrip("/")


def _commit(fs: Any, resolved: Any) -> str:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=fs.endpoint, token=fs.token).repo_info(
        resolved.repo_id, revision=resolved.revision, repo_type=resolved.repo_type
    )
    return str(info.sha)


def _unreached(fs: Any, error: Exception) -> RetroDBError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ExecutionError(
        f"the hub cannot be reached at {fs.endpoint} ({reason}); check the network and HF_HUB_OFFLINE, name "
        "a mirror in HF_ENDPOINT, or download the files by `hf download --repo-type dataset` and name their "
        "folder"
    )


def failures(protocol: str) -> tuple[type[Exception], ...]:
    """Errors of a network or a disk, not of what is read: another try may go well.

    Args:
        protocol: Protocol of the filesystem: the HTTP client of the hub's library has errors of its own.
    """
    if protocol != PROTOCOL:
        return (OSError,)
    from huggingface_hub.errors import HTTPError

    return (OSError, HTTPError)


def unpinned(path: str) -> str:
    """A path or URL without the commit: the same for the same file, whatever else the dataset has got."""
    return _COMMIT.sub("", path, count=1)
