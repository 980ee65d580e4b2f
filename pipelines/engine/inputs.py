"""Reads shards again whose files moved or have another time of change: is their content the same?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from retro_db.config import Config
from retro_db.corpus.documents import Content
from retro_db.corpus.planning import Shard
from retro_db.corpus.reading import read_shard
from retro_db.store.folder import FileEntry, Folder


@dataclass(frozen=True)
class ReadContent:
    """What a stage that reads the corpus tells of a shard; results of those stages have it too."""

    content: str


@dataclass
class InputsJob:
    """Hashes what one shard holds, as the stages that work with it do."""

    config: Config
    folder: Folder
    stage: str = field(default="inputs", init=False)

    def open(self) -> None:
        """Nothing to share."""

    def run(self, shared: None, shard: Shard, report: Callable[[int], None]) -> ReadContent:
        """Reads the shard."""
        source = self.config.source(shard.source)
        content = Content()
        for _ in content.watch(read_shard(shard, source, report)):
            pass
        return ReadContent(content.sha256)

    def files(self, result: ReadContent) -> list[FileEntry]:
        """None: the record is the result."""
        return []
