"""From a configuration to shards of about equal work: the same input gives the same plan."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass

from retro_db.config import Config, LeakageConfig
from retro_db.corpus.listing import InputFile, Listing
from retro_db.corpus.pieces import Piece
from retro_db.corpus.splitting import split_file
from retro_db.corpus.streams import BY_NAME
from retro_db.errors import ConfigError, CorpusError
from retro_db.hashing import fraction_of
from retro_db.store.serialize import digest, to_json

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".py": "text",
    ".bin": "megatron",
    ".idx": "megatron",
}
# Bytes of text in a byte of the file, about: what makes work equal, nothing that must be exact.
_EXPANSION_COMPRESSED = 4
_EXPANSION = {"parquet": 3, "megatron": 2}
# Files of a shard, if they are small: opening one is work too.
_MOST_FILES = 10_000


@dataclass(frozen=True)
class Shard:
    """What one task reads from first to last, all of one source.

    Attributes:
        number: Position in the plan; chunk ids follow it.
        source: Name of the corpus.
        format: jsonl, parquet, text, arrow or megatron.
        pieces: What to read.
        fraction: Share of documents to keep: the source's, and in a smoke build less.
    """

    number: int
    source: str
    format: str
    pieces: list[Piece]
    fraction: float = 1.0

    @property
    def bytes(self) -> int:
        """Size of all that it reads."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def identity(self) -> str:
        """A hash of what would be read, wherever it is and whenever it was written."""
        pieces = [
            (piece.file.name, piece.file.bytes, piece.bytes, piece.range and to_json(piece.range))
            for piece in self.pieces
        ]
        return digest([self.source, self.format, self.fraction, pieces])

    @property
    def stamp(self) -> str:
        """A hash of where the files are and of their versions: equal stamps mean equal content."""
        return digest([(piece.file.url, piece.file.version) for piece in self.pieces])


def plan_shards(config: Config, fields: Sequence[str] | None = None) -> list[Shard]:
    """Lists every source and packs its files, in name order, into shards.

    A shard takes small files until it holds about `chunk.shard_size` bytes of text; a larger file is
    divided where its format allows it.

    Args:
        config: Of the build.
        fields: What the user's configuration calls each source, for messages; `corpus.0` and so on.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, or a format cannot be told.
        ConfigError: A source holds tokens, and the tokenizer is to be trained.
    """
    listing = Listing()
    shards: list[Shard] = []
    for position, source in enumerate(config.corpus):
        field = fields[position] if fields else f"corpus.{position}"
        files = listing.files(source.paths, f"{field}.paths")
        kind = source.format or infer_format(files, field)
        if kind == "megatron" and config.tokenizer.path is None:
            raise ConfigError(
                f"{field}: {source.name} is tokens already; name the tokenizer that made "
                "them in tokenizer.path"
            )
        packs = pack_files(select_files(files, kind), kind, int(config.chunk.shard_size))
        for pieces in packs:
            shards.append(Shard(len(shards), source.name, kind, pieces, source.fraction))
    return shards


def plan_evaluation(settings: LeakageConfig, shard_size: int) -> list[Shard]:
    """Lists and packs the evaluation texts of the leakage filter.

    Args:
        settings: Where they are.
        shard_size: Bytes of text of a shard.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, or a format cannot be told.
    """
    files = Listing().files(settings.paths, "leakage.paths")
    kind = settings.format or infer_format(files, "leakage")
    packs = pack_files(select_files(files, kind), kind, shard_size)
    return [Shard(number, "leakage", kind, pieces) for number, pieces in enumerate(packs)]


def infer_format(files: Sequence[InputFile], where: str) -> str:
    """The format that the names of the files tell.

    Args:
        files: Of one source.
        where: The source's place in the configuration, for error messages.

    Raises:
        CorpusError: A name tells none, or two tell different ones.
    """
    kinds = {FORMATS.get(_suffix(file.name)) for file in files}
    if len(kinds) != 1 or None in kinds:
        strange = next((f.name for f in files if _suffix(f.name) not in FORMATS), files[0].name)
        raise CorpusError(
            f"{where}.format: cannot be told from {strange}; leave such files out by a glob, or set it "
            "to jsonl, parquet, text, arrow or megatron"
        )
    return str(kinds.pop())


def select_files(files: Sequence[InputFile], kind: str) -> list[InputFile]:
    """The files that hold documents: of Megatron's pairs, the .bin files.

    Args:
        files: Of one source.
        kind: Their format.

    Returns:
        Each file; a .bin file changes with its .idx file, if the paths name both.
    """
    if kind != "megatron":
        return list(files)
    indexes = {file.url: file.version for file in files if file.name.endswith(".idx")}
    return [
        dataclasses.replace(
            file,
            version=" ".join(
                [file.version, indexes.get(f"{file.url.removesuffix('.bin')}.idx", "")]
            ),
        )
        for file in files
        if file.url not in indexes
    ]


def sample_shards(shards: list[Shard], documents: int, estimate: int, seed: int) -> list[Shard]:
    """Shards thinned to about so many documents: a hashed sample of pieces, then of documents.

    Args:
        shards: The whole plan.
        documents: How many are wanted.
        estimate: How many the whole plan keeps, about.
        seed: Decides which.

    Returns:
        Shards numbered anew from 0. Every source keeps at least one piece.
    """
    share = min(1.0, documents / max(estimate, 1))
    # Reading eight times the sample is cheap, and mixes documents of many files.
    piece_share = min(1.0, 8 * share)

    def place(piece: Piece) -> float:
        begin = piece.range.begin if piece.range else 0
        return fraction_of("smoke", seed, piece.file.name, begin)

    sampled: list[Shard] = []
    sources: set[str] = set()
    for shard in shards:
        pieces = [piece for piece in shard.pieces if place(piece) < piece_share]
        if not pieces and shard.source not in sources:
            pieces = [min(shard.pieces, key=place)]
        if pieces:
            sources.add(shard.source)
            fraction = shard.fraction * min(1.0, share / piece_share)
            sampled.append(Shard(len(sampled), shard.source, shard.format, pieces, fraction))
    return sampled


def pack_files(files: Sequence[InputFile], kind: str, shard_size: int) -> list[list[Piece]]:
    """Pieces in order, gathered into groups of about `shard_size` bytes of text.

    Args:
        files: Of one source. Only one that is larger than a shard is opened.
        kind: Their format.
        shard_size: Bytes of text of a group.

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
    """Bytes of text in a byte of a file, about.

    Args:
        name: Of the file.
        kind: Its format.
    """
    if os.path.splitext(name)[1] in BY_NAME:
        return _EXPANSION_COMPRESSED
    return _EXPANSION.get(kind, 1)


def _suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return os.path.splitext(stem)[1] if suffix in BY_NAME else suffix
