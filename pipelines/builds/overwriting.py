"""What a build would destroy of a finished database, known before anything is changed."""

from __future__ import annotations

from retro_db.config import Config
from retro_db.encoder.models import EncoderModel
from retro_db.errors import ConfigError
from retro_db.manifest.model import Manifest
from retro_db.manifest.sealing import FILE, GENERATIONS
from retro_db.store.records import RECORDS, StageRecords, mark_of
from retro_db.tokens.tokenizer import Tokenizer

from ..engine.context import Build
from ..stages import embed
from ..stages.chunk import ChunkJob
from .folders import standing_manifest

# What decides every embedding, beside the tokens.
_ENCODER_SETTINGS = ("pooling", "normalize", "prompt", "max_length", "dtype", "device")


def loss_by(build: Build, model: EncoderModel) -> str | None:
    """What a build would destroy of a finished database in its folder, and why.

    Args:
        build: The build, before its first stage.
        model: The encoder.

    Returns:
        The loss in words, as far as it is known before anything is read; None if embeddings may be kept, or
        there is no finished database. A corpus whose files have the names and sizes of those that were read
        is taken for the same.
    """
    folder = build.home
    if not folder.exists(FILE):
        return None
    begun = (f"{GENERATIONS}/{name}/{RECORDS}" for name in folder.list(GENERATIONS))
    if any(folder.exists(records) for records in begun):
        return f"an append to {folder.url}, which is not finished, would be given up"
    old = standing_manifest(folder)
    reason = old and (_other_encoder(model, old) or _other_tokens(build.config, old))
    reason = reason or _other_records(build)
    if reason is None:
        return None
    counted = f" of {old.counts.documents:,} documents, {old.counts.chunks:,} chunks" if old else ""
    return f"{folder.url} is a finished database{counted}, and none of its embeddings would be kept: {reason}"


def expect_kept(build: Build, model: EncoderModel) -> None:
    """Refuses a build that would destroy a finished database.

    Args:
        build: The build, before its first stage.
        model: The encoder.

    Raises:
        ConfigError: Says what would be lost, and how to add to the database or to replace it.
    """
    if loss := loss_by(build, model):
        raise ConfigError(
            f"output: {loss}; name a new folder, add documents by --append, or replace it by --overwrite"
        )


def _other_encoder(model: EncoderModel, old: Manifest) -> str | None:
    for setting in _ENCODER_SETTINGS:
        before, now = getattr(old.encoder, setting), getattr(model, setting)
        if now != before:
            return f"encoder.{setting} was {before}, and is {now}"
    if model.sha256 != old.encoder.sha256:
        return f"encoder.model is another than {old.encoder.model}"
    if model.batch_tokens not in (None, old.encoder.batch_tokens):
        return f"encoder.batch_tokens was {old.encoder.batch_tokens}, and is {model.batch_tokens}"
    return None


def _other_tokens(config: Config, old: Manifest) -> str | None:
    if config.chunk.tokens != old.chunk.tokens:
        return f"chunk.tokens was {old.chunk.tokens}, and is {config.chunk.tokens}"
    if config.tokenizer.path is not None:
        is_same = Tokenizer.load(config.tokenizer.path).sha256 == old.tokenizer.sha256
        return None if is_same else "tokenizer.path is another tokenizer"
    for setting, value in config.settings("tokenizer.train", "seed").items():
        if value != old.setting(setting):
            return f"{setting} is another, so that another tokenizer would be trained"
    return _other_texts(config, old)


def _other_texts(config: Config, old: Manifest) -> str | None:
    """Why no source has the texts that it had; None if one has."""
    before = {source["name"]: source for source in old.config["corpus"]}
    for source in config.corpus:
        settings = source.model_dump(mode="json", include={"text", "separator"})
        stored = before.get(source.name, {})
        if all(stored.get(name) == value for name, value in settings.items()):
            return None
    return "corpus: every source has another text or separator, so that its texts are others"


def _other_records(build: Build) -> str | None:
    """Why no task's record can hold, as far as files' names and sizes tell."""
    recorded = StageRecords(build.folder, ChunkJob.stage).load().values()
    before = {record.depends.get("input") for record in recorded}
    now = {mark_of(shard.identity) for shard in build.shards}
    tokens = mark_of(build.config.chunk.tokens)
    if all(record.depends.get("chunk.tokens") != tokens for record in recorded):
        return "chunk.tokens is another"
    if not now & before:
        return "no shard of the corpus holds the same files as before"
    embedded = StageRecords(build.folder, embed.EmbedJob.stage).load().values()
    code = mark_of(embed.VERSION)
    if all(record.depends.get("code") != code for record in embedded):
        return "this release embeds otherwise than the one that built it"
    if now != before and build.config.tokenizer.train is not None:
        return "another tokenizer would be trained on a corpus of other files"
    return None
