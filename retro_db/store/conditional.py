"""Writes to object stores that succeed only if nobody has replaced the file meanwhile.

A driver may be stopped between its look at the lease and its put. S3 compares ETags
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html), Cloud Storage generations
(https://cloud.google.com/storage/docs/request-preconditions); other stores are asked just before the put.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

# Put in one request, whatever its size: only that can be conditional.
_ONE_REQUEST = 1 << 32
# What stores answer if the condition does not hold: 412, and 409 while another put is under way.
_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict", "conditionNotMet")


class ReplacedError(Exception):
    """Somebody else has written or removed the file since its version was noted."""


def version_of(fs: Any, path: str) -> str | None:
    """What changes whenever a file on a store is replaced.

    Args:
        fs: The fsspec filesystem of the store.
        path: Path of the file on it.

    Returns:
        ETag, generation, or whatever the filesystem has; None if the file does not exist.
    """
    fs.invalidate_cache()
    try:
        entry = fs.info(path)
    except FileNotFoundError:
        return None
    names = ("generation", "ETag", "etag", "mtime", "LastModified", "last_modified", "updated")
    return next((str(entry[name]) for name in names if entry.get(name)), str(fs.ukey(path)))


def put_if(fs: Any, path: str, data: bytes, version: str | None) -> str | None:
    """Writes a file on a store, if it still has a version.

    Args:
        fs: The fsspec filesystem of the store.
        path: Path of the file on it.
        data: Its whole content.
        version: Version that `version_of` gave; None if the file must not exist.

    Returns:
        The version of what was put.

    Raises:
        ReplacedError: The file has another version by now.
    """
    try:
        if hasattr(fs, "call_s3"):
            condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
            return str(fs.pipe_file(path, data, chunksize=_ONE_REQUEST, **condition)["ETag"])
        if "gs" in fs.protocol:
            return _put_generation(fs, path, data, version)
        if version_of(fs, path) != version:
            raise ReplacedError(path)
        fs.pipe_file(path, data)
        return version_of(fs, path)
    except FileNotFoundError as error:  # of which a version was noted
        raise ReplacedError(path) from error
    except Exception as error:  # fsspec's filesystems raise errors of their own
        if _is_conflict(error):
            raise ReplacedError(path) from error
        raise


def _is_conflict(error: Exception) -> bool:
    message = f"{error} {error.__cause__}"
    return isinstance(error, FileExistsError) or any(word in message for word in _CONFLICTS)


def _put_generation(fs: Any, path: str, data: bytes, version: str | None) -> str:
    """Uploads under a condition on the generation; gcsfs's own uploads know "must not exist" alone.

    The request is the multipart upload of the JSON API
    (https://cloud.google.com/storage/docs/uploading-objects#rest-upload-objects).
    """
    bucket, name, _ = fs.split_path(path)
    uploads = fs.base.replace("/storage/v1/", "/upload/storage/v1/")
    boundary = uuid.uuid4().hex
    parts = (
        ("application/json; charset=UTF-8", json.dumps({"name": name}).encode()),
        ("application/octet-stream", data),
    )
    body = b"".join(
        f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + content + b"\r\n"
        for kind, content in parts
    )
    uploaded = fs.call(
        "POST",
        uploads + "b/{}/o",
        bucket,
        headers={"Content-Type": f'multipart/related; boundary="{boundary}"'},
        data=body + f"--{boundary}--".encode(),
        uploadType="multipart",
        ifGenerationMatch=version or "0",
        json_out=True,
    )
    fs.invalidate_cache()
    return str(uploaded["generation"])
