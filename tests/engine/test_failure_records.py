"""Failures of tasks, as the driver reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from retro_db.errors import CorpusError
from retro_db.store.folder import TEMPORARY_PREFIX, Folder
from retro_db_pipelines.engine.failure_records import (
    FAILURES,
    read_failures,
    recorded_failures,
)


def test_a_failure_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with recorded_failures(folder, "chunk", "shard-0"):
        raise CorpusError("a.jsonl: vanished")
    (tmp_path / FAILURES / f"{TEMPORARY_PREFIX}{32 * '0'}-chunk-shard-1.json").touch()
    [failure] = read_failures(folder)
    assert isinstance(failure, CorpusError)
    assert str(failure) == "a.jsonl: vanished"


def test_a_failure_of_the_environment_is_recorded_and_raised(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with (
        pytest.raises(Exception, match="No space left"),
        recorded_failures(folder, "chunk", "shard-0"),
    ):
        raise OSError(28, "No space left on device")
    assert len(read_failures(folder)) == 1
