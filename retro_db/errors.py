"""Every error that a user can meet, each with the exit code of the command line."""

from __future__ import annotations

import errno

from retro_db.printing import redacted


class RetroDBError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line returns.

    Args:
        message: What is wrong, where, and the remedy; credentials in its URLs are left out.
    """

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class InputError(RetroDBError):
    """Bad usage, configuration or input: the message names the file, the field and the remedy."""

    exit_code = 2


class SampleError(InputError):
    """A sample that is too small for what is asked of it."""


class ConfigError(InputError):
    """A setting of the configuration is unknown, or its value is wrong."""


class CorpusError(InputError):
    """A corpus cannot be read, or holds more bad records than its `max_bad` allows."""


class ModelError(InputError):
    """A tokenizer or an encoder cannot be loaded, or gives values that cannot be used."""


class IndexKeyError(InputError):
    """An index key is malformed, or the corpus is too small to train it."""


class DatabaseError(RetroDBError):
    """A folder is not a database, or is one that cannot be trusted."""

    exit_code = 1


class NotADatabaseError(DatabaseError):
    """The folder has no manifest: the build was never finished, or the path is wrong."""

    exit_code = 2


class UnsupportedVersionError(DatabaseError):
    """The manifest has a format version that this release does not read."""

    exit_code = 2


class ManifestError(DatabaseError):
    """The manifest is damaged: its checksum, a field or a type is wrong."""


class DamagedFileError(DatabaseError):
    """A file of the database is missing, or disagrees with the manifest or its contract."""


class ExecutionError(RetroDBError):
    """The environment failed: a worker, the disk, memory, or a bug. Running again resumes."""


class OwnershipLostError(ExecutionError):
    """Another build has taken over the folder: writes of this one are refused."""


class DatabaseReplacedError(ExecutionError):
    """A build has replaced the database since a reader opened it, or has begun to: open it again."""


class DeviceMemoryError(ExecutionError):
    """A batch does not fit in the memory of the device that embeds; names the field to lower."""


def error_named(name: str, message: str) -> RetroDBError:
    """An error that another process reported by the name of its class.

    Args:
        name: Name of a class of this module; any other name gives an `ExecutionError`.
        message: Message of the error.
    """
    kind = globals().get(name)
    if isinstance(kind, type) and issubclass(kind, RetroDBError):
        return kind(message)
    return ExecutionError(message)


def of_environment(error: OSError | MemoryError) -> ExecutionError:
    """The error for a failing disk, network or memory, in one line that says how to continue."""
    if isinstance(error, MemoryError):
        reason = f" ({error})" if str(error) else ""
        return ExecutionError(
            f"out of memory{reason}; give fewer --workers, or more memory, and run the same command again"
        )
    reason = error.strerror or str(error) or type(error).__name__
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExecutionError(f"{place}{reason}; make room and run the same command again")
    if error.errno == errno.EMFILE:
        return ExecutionError(f"{place}{reason}; raise ulimit -n and run the same command again")
    return ExecutionError(f"{place}{reason}; mend it and run the same command again")
