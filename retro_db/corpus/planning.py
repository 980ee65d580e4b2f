"""From globs to shards of about equal size: the same input gives the same plan."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

import fsspec

from retro_db.config import ChunkConfig, Config, SourceConfig
from retro_db.errors import CorpusError
from retro_db.hashing import fraction_of
from retro_db.serialize import digest

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
}
COMPRESSIONS = {".zst": "zstd", ".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}


@dataclass(frozen=True)
class InputFile:
    """One file of a corpus.

    Attributes:
        url: Where it is.
        name: Its path below the folder that the glob starts from: the same on every machine.
        bytes: Its size.
        version: What changes when its content does: the ETag or the time of the last change.
    """

    url: str
    name: str
    bytes: int
    version: str


@dataclass(frozen=True)
class Shard:
    """Files that one task reads from first to last, all of one source.

    Attributes:
        number: Position in the plan; chunk ids follow it.
        source: Name of the corpus.
        format: jsonl, parquet, text or arrow.
        files: What to read.
        fraction: Share of documents to keep: the source's, and in a smoke build less.
    """

    number: int
    source: str
    format: str
    files: list[InputFile] = field(default_factory=list)
    fraction: float = 1.0

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def identity(self) -> str:
        """A hash of what would be read."""
        return digest(
            [self.source, self.format, self.fraction, [vars(file) for file in self.files]]
        )


def plan_shards(config: Config) -> list[Shard]:
    """Lists every source once and packs its files, in name order, into shards.

    Raises:
        CorpusError: A path is missing, a glob matches nothing, or a format cannot be told.
    """
    shards: list[Shard] = []
    for position, source in enumerate(config.corpus):
        files = list_files(source, f"corpus.{position}")
        kind = source.format or _infer_format(files, f"corpus.{position}")
        shards += _pack(files, source, kind, config.chunk, len(shards))
    return shards


def list_files(source: SourceConfig, where: str) -> list[InputFile]:
    """All files of a source, sorted by name, none twice.

    Args:
        source: Its `paths` are files, folders or globs on any fsspec filesystem.
        where: The source's place in the configuration, for error messages.

    Returns:
        Every file once, with its size in bytes.

    Raises:
        CorpusError: A path is missing or a glob matches nothing.
    """
    found: dict[str, InputFile] = {}
    for number, path in enumerate(source.paths):
        place = f"{where}.paths.{number}"
        try:
            fs, pattern = fsspec.core.url_to_fs(os.path.expanduser(path))
            base, files = _matches(fs, pattern)
        except (ImportError, ValueError) as error:
            raise CorpusError(f"{place}: {path}: {error}") from error
        if not files:
            problem = "matches no file" if _is_glob(pattern) else "does not exist"
            raise CorpusError(f"{place}: {path} {problem}; correct the path")
        for full, info in files.items():
            url = fs.unstrip_protocol(full)
            # A name that is not UTF-8 reads with replacement characters; its URL stays as it is.
            name = full[len(base) :].lstrip("/").encode("utf-8", "replace").decode("utf-8")
            version = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
            found[url] = InputFile(url, name, info["size"], str(version))
    return sorted(found.values(), key=lambda file: (file.name, file.url))


def _matches(fs: Any, pattern: str) -> tuple[str, dict[str, Any]]:
    """The folder that names are counted from, and every file with what the filesystem says of it."""
    if fs.isfile(pattern):
        return pattern.rpartition("/")[0], {pattern: fs.info(pattern)}
    if fs.isdir(pattern):
        pattern = f"{pattern.rstrip('/')}/**"
    entries = fs.glob(pattern, detail=True)
    files = {
        name: info
        for name, info in entries.items()
        if info["type"] == "file" or (info.get("islink") and fs.isfile(name))
    }
    return _base_folder(pattern), files


def sample_shards(shards: list[Shard], documents: int, estimate: int, seed: int) -> list[Shard]:
    """Shards thinned to about so many documents: a hashed sample of files, then of documents.

    Args:
        shards: The whole plan.
        documents: How many are wanted.
        estimate: How many the whole plan holds, about.
        seed: Decides which.

    Returns:
        Shards numbered anew from 0. Every source keeps at least one file.
    """
    share = min(1.0, documents / max(estimate, 1))
    # Reading eight times the sample is cheap, and mixes documents of many files.
    file_share = min(1.0, 8 * share)
    sampled: list[Shard] = []
    for shard in shards:
        files = [file for file in shard.files if fraction_of("smoke", seed, file.name) < file_share]
        first_of_source = all(other.source != shard.source for other in sampled)
        if not files and first_of_source and shard.files:
            files = [min(shard.files, key=lambda file: fraction_of("smoke", seed, file.name))]
        if files:
            fraction = shard.fraction * min(1.0, share / file_share)
            sampled.append(Shard(len(sampled), shard.source, shard.format, files, fraction))
    return sampled


def _pack(
    files: list[InputFile], source: SourceConfig, kind: str, chunk: ChunkConfig, first: int
) -> list[Shard]:
    shards: list[Shard] = []
    for file in files:
        if not shards or shards[-1].bytes + file.bytes > chunk.shard_size:
            shards.append(Shard(first + len(shards), source.name, kind, [], source.fraction))
        shards[-1].files.append(file)
    return shards


def _infer_format(files: list[InputFile], where: str) -> str:
    kinds = {FORMATS.get(_suffix(file.name)) for file in files}
    if len(kinds) != 1 or None in kinds:
        strange = next((f.name for f in files if _suffix(f.name) not in FORMATS), files[0].name)
        raise CorpusError(
            f"{where}.format: cannot be told from {strange}; set it to jsonl, parquet, text or arrow"
        )
    return str(kinds.pop())


def _suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return os.path.splitext(stem)[1] if suffix in COMPRESSIONS else suffix


def _is_glob(pattern: str) -> bool:
    return re.search(r"[*?\[]", pattern) is not None


def _base_folder(pattern: str) -> str:
    """The longest folder of a pattern without wildcards; of a plain path, its parent."""
    plain = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return plain.rsplit("/", 1)[0] if "/" in plain else ""
