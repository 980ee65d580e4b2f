"""Plans the shards of a build, of about equal work; the same input gives the same plan."""

from __future__ import annotations

import dataclasses
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from retro_db.config import Config, LeakageConfig
from retro_db.corpus.compression import BY_NAME
from retro_db.corpus.formats import SUFFIXES
from retro_db.corpus.listing import InputFile, Listing, input_file
from retro_db.corpus.pieces import Piece
from retro_db.corpus.splitting import split_file
from retro_db.errors import ConfigError, CorpusError
from retro_db.hashing import fraction_of
from retro_db.store.serialize import digest, to_json

# Approximate bytes of text in a byte of the file: exact enough to make work equal.
_EXPANSION_COMPRESSED = 4
_EXPANSION = {"parquet": 3, "megatron": 2}
_DESCRIPTIONS = {"dataset_dict.json", "dataset_info.json", "state.json"}
# Most files of a shard, however small: opening a file is work too.
_MOST_FILES = 10_000


@dataclass(frozen=True)
class Shard:
    """A piece of one source that one task reads as a whole.

    Attributes:
        number: Position in the plan, which decides the order of chunk ids.
        source: Name of the source.
        format: Format of the files: jsonl, parquet, text, arrow or megatron.
        pieces: Pieces of files to read, in order.
        fraction: Share of documents to keep: the source's, and less in a smoke build.
    """

    number: int
    source: str
    format: str
    pieces: list[Piece]
    fraction: float = 1.0

    @property
    def bytes(self) -> int:
        """Size of all its pieces."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def task_name(self) -> str:
        """Name of the task that reads it, in every stage that does."""
        return f"shard-{self.number:07d}"

    @property
    def identity(self) -> str:
        """Hash of the names and sizes of its pieces, without their folder and time of change."""
        pieces = [
            (piece.file.name, piece.file.bytes, piece.bytes, piece.range and to_json(piece.range))
            for piece in self.pieces
        ]
        return digest([self.source, self.format, self.fraction, pieces])

    @property
    def stamp(self) -> str:
        """Hash of the files' places and versions: equal stamps mean equal content.

        A file without a version may change unseen: its stamp never equals another one.
        """
        versions = (piece.file.versions or uuid.uuid4().hex for piece in self.pieces)
        return digest([(p.file.place, v) for p, v in zip(self.pieces, versions, strict=True)])


def plan_shards(
    config: Config, fields: Sequence[str] | None = None, listing: Listing | None = None
) -> list[Shard]:
    """Lists every source and packs its files, in name order, into shards.

    A shard takes small files until it holds about `chunk.shard_size` bytes of text; a larger file is
    divided where its format allows it.

    Args:
        config: Configuration of the build.
        fields: Name of each source in the user's configuration, for error messages; by default
            `corpus.0` and so on.
        listing: What lists the files, if the caller has one.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, or a format cannot be inferred.
        ConfigError: A source holds tokens, but the tokenizer is still to be trained.
    """
    listing = listing or Listing(config.output)
    shards: list[Shard] = []
    for position, source in enumerate(config.corpus):
        field = fields[position] if fields else f"corpus.{position}"
        files = listing.files(source.paths, f"{field}.paths")
        kind = source.format or infer_format(files, field)
        if kind == "megatron" and config.tokenizer.train is not None:
            raise ConfigError(
                f"{field}: {source.name} holds tokens already; name the tokenizer that made "
                "them in tokenizer.path"
            )
        packs = pack_files(select_files(files, kind), kind, int(config.chunk.shard_size))
        for pieces in packs:
            shards.append(Shard(len(shards), source.name, kind, pieces, source.fraction))
    return shards


def plan_evaluation(settings: LeakageConfig, shard_size: int, output: str) -> list[Shard]:
    """Lists and packs the evaluation texts of the leakage filter.

    Args:
        settings: Settings of the leakage filter, with the paths and format of the texts.
        shard_size: Bytes of text in a shard.
        output: Output folder of the build, which is left out.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, or a format cannot be inferred.
    """
    files = Listing(output).files(settings.paths, "leakage.paths")
    kind = settings.format or infer_format(files, "leakage")
    packs = pack_files(select_files(files, kind), kind, shard_size)
    return [Shard(number, "leakage", kind, pieces) for number, pieces in enumerate(packs)]


def infer_format(files: Sequence[InputFile], where: str) -> str:
    """The format of files, inferred from their names.

    Args:
        files: Files of one source.
        where: Setting that holds the source, for error messages.

    Raises:
        CorpusError: A name fits no format, or two names fit different ones.
    """
    files = _without_descriptions(files)
    kinds = {SUFFIXES.get(_suffix(file.name)) for file in files}
    if None in kinds:
        strange = next(file.name for file in files if _suffix(file.name) not in SUFFIXES)
        raise CorpusError(
            f"{where}.format: cannot be inferred from {strange}; exclude such files by a glob, set it to "
            "jsonl, parquet, text, arrow or megatron, or convert them to one of these"
        )
    if len(kinds) != 1:
        other = next(
            f.name for f in files if SUFFIXES[_suffix(f.name)] != SUFFIXES[_suffix(files[0].name)]
        )
        raise CorpusError(
            f"{where}.format: {files[0].name} and {other} differ in format; make a source of each, by a "
            "glob such as *.jsonl"
        )
    return str(kinds.pop())


def select_files(files: Sequence[InputFile], kind: str) -> list[InputFile]:
    """The files that hold documents: for Megatron's pairs of files, the .bin files; no descriptions.

    Args:
        files: Files of one source.
        kind: Format of the files.

    Returns:
        The files; those of a pair with their .idx file, whether or not the paths name it.
    """
    if kind == "arrow":
        return _without_descriptions(files)
    if kind != "megatron":
        return list(files)
    indexes = {file.url: file for file in files if file.name.endswith(".idx")}
    return [
        dataclasses.replace(file, index=_index_of(file, indexes))
        for file in files
        if file.url not in indexes
    ]


def _without_descriptions(files: Sequence[InputFile]) -> list[InputFile]:
    """Files without those that `datasets.save_to_disk` writes beside Arrow files."""
    if not any(_suffix(file.name) == ".arrow" for file in files):
        return list(files)
    return [file for file in files if os.path.basename(file.name) not in _DESCRIPTIONS]


def _index_of(file: InputFile, indexes: dict[str, InputFile]) -> InputFile:
    """The .idx file of a .bin file, perhaps among those that were listed."""
    url, name = (f"{text.removesuffix('.bin')}.idx" for text in (file.url, file.name))
    return indexes.get(url) or input_file(url, name)


def sample_shards(shards: list[Shard], documents: int, estimate: int, seed: int) -> list[Shard]:
    """Thins a plan to about `documents` documents: a hashed sample of pieces, then of documents.

    Args:
        shards: Shards of the whole plan.
        documents: Number of documents wanted.
        estimate: Approximate number of documents that the whole plan keeps.
        seed: Seed of the sample.

    Returns:
        Shards with new numbers from 0. Every source keeps at least one piece.
    """
    share = min(1.0, documents / max(estimate, 1))
    # Reading eight times the sample is cheap, and mixes documents of many files.
    piece_share = min(1.0, 8 * share)

    def draw(piece: Piece) -> float:
        begin = piece.range.begin if piece.range else 0
        return fraction_of("smoke", seed, piece.file.name, begin)

    sampled: list[Shard] = []
    sources: set[str] = set()
    for shard in shards:
        pieces = [piece for piece in shard.pieces if draw(piece) < piece_share]
        if not pieces and shard.source not in sources:
            pieces = [min(shard.pieces, key=draw)]
        if pieces:
            sources.add(shard.source)
            fraction = shard.fraction * min(1.0, share / piece_share)
            sampled.append(Shard(len(sampled), shard.source, shard.format, pieces, fraction))
    return sampled


def pack_files(files: Sequence[InputFile], kind: str, shard_size: int) -> list[list[Piece]]:
    """Packs files in order, dividing large ones, into groups of about `shard_size` bytes of text.

    Args:
        files: Files of one source. Only files larger than a shard are opened.
        kind: Format of the files.
        shard_size: Bytes of text in a group.

    Returns:
        The pieces of each shard.
    """
    packs: list[list[Piece]] = []
    room = 0.0
    for file in files:
        expansion = expansion_of(file.name, kind)
        for piece in split_file(file, kind, max(shard_size // expansion, 1)):
            work = piece.bytes * expansion + shard_size / _MOST_FILES
            if not packs or work > room:
                packs.append([])
                room = shard_size
            packs[-1].append(piece)
            room -= work
    return packs


def expansion_of(name: str, kind: str) -> int:
    """Approximate bytes of text in a byte of a file.

    Args:
        name: Name of the file.
        kind: Format of the file.
    """
    if os.path.splitext(name)[1] in BY_NAME:
        return _EXPANSION_COMPRESSED
    return _EXPANSION.get(kind, 1)


def _suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return os.path.splitext(stem)[1] if suffix in BY_NAME else suffix
