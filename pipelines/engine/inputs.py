"""Reads shards again whose files moved or were touched, to compare their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retro_db.config import Config
from retro_db.corpus.documents import Content
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import Shard
from retro_db.meter import Meter

from .jobs import Job


@dataclass(frozen=True)
class ReadContent:
    """Hash of the content of a shard; results of stages that read the corpus have it too."""

    content: str


@dataclass
class InputsJob(Job):
    """Hashes the content of one shard, as the stages that read it do."""

    stage: ClassVar[str] = "inputs"
    config: Config

    def run(self, shared: None, shard: Shard, meter: Meter, /) -> ReadContent:
        source = self.config.source(shard.source)
        content = Content()
        for _ in content.watch(read_shard(shard, source, meter)):
            pass
        return ReadContent(content.sha256)


def read_settings(config: Config, shard: Shard) -> dict[str, object]:
    """Everything that decides which records are read from a shard, by name."""
    source = config.source(shard.source)
    fields = {"text", "id", "separator", "max_document"}
    return {
        "corpus": source.model_dump(mode="json", include=fields),
        "input": shard.identity,
    }
