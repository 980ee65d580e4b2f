"""The configuration of a build: every key, its default and its meaning."""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
import pydantic
import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field

from retro_db.errors import ConfigError
from retro_db.store.entries import FOLDER_NAME

Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Below a tenth, candidates can no longer be told from everything else.
Similarity = Annotated[float, Field(ge=0.1, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True
    )


class FilesConfig(_Section):
    """Files with documents in them."""

    paths: Annotated[list[str], Field(min_length=1)]
    """Files, folders and globs: paths or fsspec URLs."""
    format: Literal["jsonl", "parquet", "text", "arrow", "megatron"] | None = None
    """Told from the file names where it is left out."""
    text: str = "text"
    """Field that holds the text."""
    id: str | None = None
    """Field that names the document; its place in the files where it is left out."""
    separator: str | None = None
    """Of text files: a regular expression for what stands between two documents, matched in many
    lines mode. One that only looks ahead, such as `^(?=# )`, loses nothing. Without it a file is one
    document."""
    max_document: ByteSize = ByteSize(200_000_000)
    """Documents with more bytes of UTF-8 are rejected."""

    @pydantic.field_validator("separator")
    @classmethod
    def _is_a_pattern(cls, separator: str | None) -> str | None:
        if separator is None:
            return None
        try:
            pattern = re.compile(separator.encode(), re.MULTILINE)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if pattern.fullmatch(b"xx", 1, 1):
            raise ValueError("matches between any two letters")
        return separator


class SourceConfig(FilesConfig):
    """One corpus."""

    name: str
    """Name of the source in the database; no two are alike."""
    weight: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Sampling weight in training, recorded for the trainer."""
    fraction: Share = 1.0
    """Share of the documents that is kept, chosen by hash; a larger share contains the smaller."""
    max_bad: Share = 0.001
    """Share of bad records above which the build stops."""


class TrainTokenizerConfig(_Section):
    """A byte-level tokenizer, trained on a hashed sample of the corpus."""

    model: Literal["bpe", "unigram"] = "bpe"
    """Byte-pair encoding (merges), or Unigram (a vocabulary with probabilities)."""
    vocab_size: Annotated[int, Field(ge=257, le=128_000)] = 128_000
    """Entries, the 256 bytes and the end-of-document token included."""
    sample: ByteSize = ByteSize(1_000_000_000)
    """Text that it is trained on."""


class TokenizerConfig(_Section):
    """The language model's tokenizer: one that exists, or one to train."""

    path: str | None = None
    """A tokenizer.json, a SentencePiece .model, a folder with one, or a hub name."""
    train: TrainTokenizerConfig | None = None
    """Settings of a tokenizer to train; {} takes the defaults."""

    @pydantic.model_validator(mode="after")
    def _one_of_two(self) -> TokenizerConfig:
        if (self.path is None) == (self.train is None):
            raise ValueError("give either path or train")
        return self


class ChunkConfig(_Section):
    """How documents are cut."""

    tokens: Annotated[int, Field(ge=1, le=65_535)] = 64
    """Tokens of a chunk, m in the paper (section 2.2)."""
    shard_size: ByteSize = ByteSize(256_000_000)
    """Bytes of input that make one shard: the unit of work, of retry and of resume."""
    part_rows: Annotated[int, Field(ge=1)] = 1_048_576
    """Chunks after which a shard goes on in another file, at a document's end."""


class SplitConfig(_Section):
    """Documents set apart."""

    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of documents, by hash, that are embedded and queried but never anyone's neighbor."""


class EncoderConfig(_Section):
    """The frozen BERT whose averaged last layer is a chunk's key (paper, section 2.3)."""

    model: str
    """A folder with safetensors weights and a fast tokenizer, or a hub name."""
    pooling: Literal["mean", "mean_without_special", "cls"] = "mean"
    """Mean over the attention mask, the same without [CLS] and [SEP], or [CLS] alone."""
    max_length: Annotated[int, Field(ge=3)] = 256
    """WordPieces after which a chunk is cut, the two special ones included."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on CPU, bfloat16 on CUDA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where the build is started and has one. cuda without CUDA is an error, never a silent
    fallback; name it where only the workers have one."""
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = 16_384
    """Padded WordPieces of one batch; on a CPU at most 2048, beyond which its caches do not hold them.
    auto: as many as a short probe finds room for on the GPU; the manifest records the number."""
    accelerator: str | None = None
    """What an embedding worker needs, as Beam's resource hint has it, such as
    `type:nvidia-l4;count:1;install-nvidia-driver`."""
    max_active_bundles: Annotated[int, Field(ge=1)] | None = None
    """Shards that one embedding worker has in hand at a time; on runners that take Beam's hint
    `max_active_bundles_per_worker`."""


class EmbeddingsConfig(_Section):
    """What becomes of the keys."""

    keep: bool = True
    """Whether they stay in the database once neighbors exist. Retriever re-ranks with them, or else
    with the code that `index.refine` names."""


class IndexConfig(_Section):
    """The index over the keys."""

    key: str = "auto"
    """A Faiss factory key with inverted lists, or auto: chosen from the number of chunks."""
    memory: ByteSize = ByteSize(64_000_000_000)
    """What a worker may use to train and to search the index. A larger index is searched one group of
    partitions after another."""
    recall_target: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98
    """Recall@10 against exact search, other documents only, that the search is tuned to: as a
    one-sided 99% lower bound."""
    partitions: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Files that the inverted lists are spread over. auto: as few as keep each within 4 GB and a
    quarter of `index.memory`."""
    refine: Literal["SQ4", "SQ6", "SQ8"] = "SQ8"
    """Code of 4, 6 or 8 bits a dimension that Retriever re-ranks by where `embeddings.keep` is
    false."""


class NeighborsConfig(_Section):
    """The stored neighbors."""

    k: Annotated[int, Field(ge=1)] = 20
    """Neighbors of a chunk."""
    rerank: Annotated[int, Field(ge=1)] = 200
    """Candidates of other documents that are re-ranked exactly, at most: tuning takes the fewest that
    meet `index.recall_target`."""
    max_nprobe: Annotated[int, Field(ge=1)] | None = None
    """Lists that are visited for a chunk with fewer than k neighbors; null: all, so that no row is
    short where k exist."""
    drop_duplicates: bool = False
    """Whether chunks with the very tokens of a chunk are passed over as its neighbors."""

    @pydantic.model_validator(mode="after")
    def _enough_candidates(self) -> NeighborsConfig:
        if self.rerank < self.k:
            raise ValueError(f"rerank ({self.rerank}) must be at least k ({self.k})")
        return self


class LeakageConfig(FilesConfig):
    """Documents too close to evaluation texts are left out (paper, section 2.1)."""

    paths: list[str] = []
    """Evaluation texts."""
    ngram: Annotated[int, Field(ge=1)] = 13
    """Words of a gram."""
    jaccard: Similarity = 0.8
    """Jaccard similarity of two documents' grams from which the corpus's one is left out."""
    names: list[str] = []
    """Ids of documents that are left out."""


class DedupConfig(_Section):
    """Near-duplicate documents within the corpus; grams are those of `leakage.ngram` words."""

    jaccard: Similarity | None = None
    """Similarity from which all but the first are left out; null keeps all."""


class Config(_Section):
    """A whole build."""

    output: str
    """Folder of the database: a path or any fsspec URL."""
    corpus: Annotated[list[SourceConfig], Field(min_length=1)]
    """The sources, in the order of their chunk ids."""
    tokenizer: TokenizerConfig
    encoder: EncoderConfig
    chunk: ChunkConfig = ChunkConfig()
    split: SplitConfig = SplitConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    index: IndexConfig = IndexConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    queries: list[SourceConfig] = []
    """Further corpora whose neighbors are wanted, such as evaluation sets: nobody's neighbors
    themselves. A document of the corpus with the same id is passed over, where both name an id field."""
    leakage: LeakageConfig = LeakageConfig()
    dedup: DedupConfig = DedupConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides every hashed choice."""

    @pydantic.model_validator(mode="after")
    def _names_differ(self) -> Config:
        for field, sources in (("corpus", self.corpus), ("queries", self.queries)):
            names = [source.name for source in sources]
            if len(set(names)) < len(names):
                raise ValueError(f"two sources of {field} have the same name")
        return self

    @pydantic.model_validator(mode="after")
    def _names_are_folders(self) -> Config:
        for position, source in enumerate(self.queries):
            if not FOLDER_NAME.fullmatch(source.name):
                raise ValueError(
                    f"queries.{position}.name: {source.name!r} names a folder; use letters, digits, "
                    "_, - and ."
                )
        return self

    def querying(self, position: int) -> Config:
        """The configuration that cuts and embeds a query corpus: all of it, as it is."""
        sections = {"split": SplitConfig(), "leakage": LeakageConfig(), "dedup": DedupConfig()}
        corpus = [self.queries[position]]
        return self.model_copy(update={**sections, "corpus": corpus, "queries": []})

    def settings(self, *keys: str) -> dict[str, Any]:
        """Some settings as JSON, by the names that the configuration has for them.

        Args:
            *keys: Such as `chunk.tokens`, or `neighbors` for a whole section.
        """
        data = self.model_dump(mode="json")
        return {key: functools.reduce(operator.getitem, key.split("."), data) for key in keys}

    def portable(self) -> dict[str, Any]:
        """The settings without places: what the manifest records.

        Paths, the output folder and the directory of the model differ between machines on which the
        same bytes are built; their contents are recorded by hash.
        """
        data = self.model_dump(mode="json", exclude={"output": True, "tokenizer": {"path"}})
        for files in (*data["corpus"], *data["queries"], data["leakage"]):
            del files["paths"]
        for placement in ("accelerator", "max_active_bundles"):
            del data["encoder"][placement]
        data["encoder"]["model"] = self.encoder.model.rstrip("/").rsplit("/", 1)[-1]
        return data


def in_units(count: int) -> str:
    """Bytes in decimal units, such as `64.0GB`."""
    return ByteSize(count).human_readable(decimal=True)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML configuration.

    Args:
        path: The YAML file: a path or an fsspec URL.
        overrides: `a.b=value` each, the value in YAML; list items by number, `corpus.0.name=x`.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: The file cannot be read, a key is unknown or a value wrong.
    """
    try:
        with fsspec.open(str(path), "rb") as file:
            data = yaml.safe_load(file.read().decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {reason}") from error
    except (OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); check the path") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold keys and values, such as 'output: db/'")
    return parse_config(data, str(path), overrides)


def parse_config(data: dict[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Checks parsed YAML.

    Args:
        data: What the file holds; overrides are filled in.
        where: Its name, for error messages.
        overrides: `a.b=value` each, as for `load_config`.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: Names the first wrong key and, where one is near, the key that was meant.
    """
    for override in overrides:
        _override(data, override)
    try:
        return Config.model_validate(data)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write key=value, such as --set neighbors.k=10")
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    node: Any = data
    try:
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[part]
        node[last] = yaml.safe_load(text)
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"--set {override}: there is no such key in the file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    location = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{location}: unknown key{_suggestion(first['loc'])}"
    if first["type"] == "missing":
        return f"{location}: missing; every configuration needs it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def _suggestion(location: tuple[int | str, ...]) -> str:
    """The known key beside an unknown one, found by walking the models along the location."""
    model: type[BaseModel] = Config
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation) or model
    near = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1, cutoff=0.5)
    return (
        f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(model.model_fields)}"
    )


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if section := _section_of(argument):
            return section
    return None
