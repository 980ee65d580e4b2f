"""The configuration of a build: every setting, its default and its meaning."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field

from retro_db.config_files import Composition, Location, compose
from retro_db.errors import ConfigError
from retro_db.explaining import explanations
from retro_db.manifest.model import Pooling
from retro_db.store.entries import FOLDER_NAME

Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Below a tenth, MinHash can no longer separate candidates from all other pairs.
Similarity = Annotated[float, Field(ge=0.1, le=1.0)]


def _listed(names: Any) -> Any:
    return [names] if isinstance(names, str) else names


# Names or paths; a text is a list of one.
Names = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
_SomeNames = Annotated[list[str], Field(min_length=1)]
SomeNames = Annotated[_SomeNames, BeforeValidator(_listed, json_schema_input_type=str | _SomeNames)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True
    )


class FilesConfig(_Section):
    """Files that hold documents."""

    paths: SomeNames
    """Files, folders (with everything below them) and globs, each a path or an fsspec URL."""
    format: Literal["jsonl", "parquet", "text", "arrow", "megatron"] | None = None
    """Format of the files; by default, inferred from their names."""
    text: str = "text"
    """Name of the field that holds the text."""
    id: str | None = None
    """Name of the field that holds a document's id; by default, the id is its file and the position in it."""
    separator: str | None = None
    """Regular expression that separates the documents of a text file, matched in multiline mode. What
    it matches belongs to no document; a lookahead, such as `^(?=# )`, matches nothing and so drops
    nothing. By default, a file is one document."""
    max_document: ByteSize = ByteSize(200_000_000)
    """Largest size of a document, in bytes of UTF-8; larger documents are rejected."""

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
    """A named source of documents."""

    name: str
    """Name of the source in the database, different from every other source's."""
    weight: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Sampling weight in training, recorded in the manifest for the trainer."""
    fraction: Share = 1.0
    """Share of the documents to keep, chosen by hash; a larger share contains every smaller one."""
    max_bad: Share = 0.001
    """Largest share of bad records; above it, the build stops."""


class TrainTokenizerConfig(_Section):
    """A byte-level tokenizer, trained on a hashed sample of the corpus."""

    model: Literal["bpe", "unigram"] = "bpe"
    """Byte-pair encoding (merges), or Unigram (a vocabulary with probabilities)."""
    vocab_size: Annotated[int, Field(ge=257, le=128_000)] = 128_000
    """Largest number of entries, including the 256 bytes and the end-of-document token."""
    sample: ByteSize = ByteSize(1_000_000_000)
    """Bytes of text to train on."""


class TokenizerConfig(_Section):
    """The language model's tokenizer: an existing one, or one to train; `--append` needs neither."""

    path: str | None = None
    """A `tokenizer.json`, a SentencePiece `.model`, a folder that holds either, or a name on the hub."""
    train: TrainTokenizerConfig | None = None
    """Settings for training a tokenizer; `{}` takes the defaults."""

    @pydantic.model_validator(mode="after")
    def _not_both(self) -> TokenizerConfig:
        if self.path is not None and self.train is not None:
            raise ValueError("give either path or train; leave the other out, or set it to null")
        return self


class ChunkConfig(_Section):
    """How documents are cut into chunks."""

    tokens: Annotated[int, Field(ge=1, le=65_535)] = 64
    """Number of tokens in a chunk: m in the paper (section 2.2)."""
    shard_size: ByteSize = ByteSize(256_000_000)
    """Approximate bytes of text in a shard: the piece of a source that is processed, retried and resumed
    as a whole."""
    part_rows: Annotated[int, Field(ge=1)] = 1_048_576
    """Number of chunks after which a shard continues in another file, at the end of a document."""


class SplitConfig(_Section):
    """Documents that are set apart for validation."""

    validation: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the documents, chosen by hash, that are embedded and get neighbors but are never neighbors
    themselves."""


class EncoderConfig(_Section):
    """The frozen encoder, used as its folder says, else a BERT's averaged last layer (paper, section 2.3)."""

    model: str
    """A folder with safetensors weights and a fast tokenizer, or a name on the hub."""
    pooling: Literal["auto", Pooling] = "auto"
    """How the last layer's vectors become an embedding. `auto`: as the model's folder says (`modules.json`),
    else `mean`. `mean`: average over the attention mask. `mean_without_special`: the same without [CLS] and
    [SEP]. `cls`: the first alone. `max`: the largest of each dimension. `last_token`: the last alone.
    `weighted_mean`: average weighted by position. `mean_sqrt_len`: sum divided by the root of the length."""
    normalize: bool | Literal["auto"] = "auto"
    """Scale embeddings to length 1, so that squared L2 ranks as cosine similarity does. `auto`: as the
    model's folder says, else not."""
    prompt: str = "auto"
    """Text put before every chunk, and before what `query` and `Retriever` search for. `auto`: the prompt of
    documents that the model's folder names (`config_sentence_transformers.json`), else its default prompt,
    else none. An empty text: none."""
    max_length: Annotated[int, Field(ge=3)] | Literal["auto"] = "auto"
    """Largest number of WordPieces of a chunk, including the special ones; the rest is cut off. `auto`: as
    the model's folder says (`max_seq_length`), else 256, or fewer if the model takes fewer."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the encoder's numbers. `auto`: float32 on a CPU, bfloat16 on CUDA. A CPU that multiplies
    bfloat16 (`avx512_bf16` or `amx_bf16` in `/proc/cpuinfo`) embeds about 1.6 times as fast with it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that the encoder runs on. `auto`: CUDA if the machine that starts the build has it, else the
    CPU. `cuda`: an error without CUDA, never a silent fallback; set it if only the workers have CUDA."""
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = 16_384
    """Number of WordPieces in a batch, including padding; on a CPU at most 2048, as its caches hold no
    more. `auto`: as many as a short probe fits into the GPU's memory; the manifest records the number."""
    accelerator: str | None = None
    """Accelerator that an embedding worker needs, in the syntax of Beam's resource hints, such as
    `type:nvidia-l4;count:1;install-nvidia-driver`."""
    max_active_bundles: Annotated[int, Field(ge=1)] | None = None
    """Number of tasks that one embedding worker runs at a time, on runners that accept Beam's hint
    `max_active_bundles_per_worker`."""


class EmbeddingsConfig(_Section):
    """What happens to the embeddings."""

    keep: bool = True
    """Keep the embeddings in the database once neighbors exist. If they are kept, `query` and `Retriever`
    re-rank with them. Else they re-rank with the finer code that `index.refine` names, and a changed setting
    embeds the corpus again."""


class IndexConfig(_Section):
    """The index over the embeddings."""

    key: str = "auto"
    """Index key: a Faiss factory string with inverted lists. `auto`: chosen by the number of chunks and, for
    large corpora, by `index.memory`."""
    memory: ByteSize = ByteSize(64_000_000_000)
    """Memory that a worker may use to train and to search the index, and to find neighbors. A larger index is
    searched one group of partitions after another. An index key that this memory cannot train stops the build
    before anything is embedded."""
    recall_target: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98
    """Recall@10 that the neighbors, and the search for single texts, are tuned to reach, as a one-sided 99%
    lower bound among distinct chunks; measured against exact search among other documents."""
    partitions: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of files that the inverted lists are divided among, by about equal entries. `auto`: the fewest
    that keep each file within 4 GB and a quarter of `index.memory`."""
    refine: Literal["SQ4", "SQ6", "SQ8"] = "SQ8"
    """Code of 4, 6 or 8 bits per dimension that Retriever re-ranks with if `embeddings.keep` is false."""


class NeighborsConfig(_Section):
    """The stored neighbors."""

    k: Annotated[int, Field(ge=1)] = 20
    """Number of neighbors of a chunk."""
    rerank: Annotated[int, Field(ge=1)] = 200
    """Largest number of candidates from other documents that `query` and `Retriever` re-rank by exact
    distance; at least `neighbors.k`. Tuning takes the fewest that reach `index.recall_target`."""
    max_nprobe: Annotated[int, Field(ge=1)] | None = None
    """Largest number of inverted lists to visit for a chunk with fewer than k neighbors. `null`: all lists,
    so that every row is full if k neighbors exist."""
    partitions: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of partitions of the join, each of which one worker holds in memory. `auto`: the fewest whose
    chunks fit a quarter of `index.memory`. It does not change the neighbors."""
    scratch: ByteSize | None = None
    """Bytes of queries on their way between partitions at any time; more go in waves, each of which reads
    the partitions again. `null`: all in one wave. It does not change the neighbors."""
    products: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the products that sort out what cannot be a neighbor. `auto`: bfloat16 where the processor
    multiplies it natively. It does not change the neighbors, which exact distances decide."""
    drop_duplicates: bool = False
    """Skip neighbors whose tokens are identical to the chunk's."""

    @pydantic.model_validator(mode="after")
    def _enough_candidates(self) -> NeighborsConfig:
        if self.rerank < self.k:
            raise ValueError(f"rerank ({self.rerank}) must be at least k ({self.k})")
        return self


class LeakageConfig(FilesConfig):
    """Drops documents that are too close to evaluation texts (paper, section 2.1)."""

    paths: Names = []
    """Evaluation texts: files, folders and globs, each a path or an fsspec URL."""
    ngram: Annotated[int, Field(ge=1)] = 13
    """Number of words in a gram, for `dedup` too."""
    jaccard: Similarity = 0.8
    """Drop documents whose grams have at least this Jaccard similarity to an evaluation text's grams."""
    names: Names = []
    """Ids of documents to drop."""


class DedupConfig(_Section):
    """Drops near-duplicate documents within the corpus; a gram has `leakage.ngram` words."""

    jaccard: Similarity | None = None
    """Drop all but the first of documents whose grams have at least this Jaccard similarity; `null` keeps
    all."""


class Config(_Section):
    """The configuration of a whole build."""

    output: Annotated[str, Field(min_length=1)]
    """Folder of the database: a path or any fsspec URL."""
    corpus: Annotated[list[SourceConfig], Field(min_length=1)]
    """Sources of documents, in the order of their chunk ids."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    encoder: EncoderConfig
    chunk: ChunkConfig = ChunkConfig()
    split: SplitConfig = SplitConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    index: IndexConfig = IndexConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    queries: list[SourceConfig] = []
    """Further corpora to find neighbors for, such as evaluation sets; they are never neighbors themselves.
    If both sources set `id`, a chunk's neighbors also exclude the corpus's document with the same id."""
    leakage: LeakageConfig = LeakageConfig()
    dedup: DedupConfig = DedupConfig()
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every choice by hash."""

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

    def source(self, name: str) -> SourceConfig:
        """The source of the corpus with a name.

        Raises:
            ConfigError: No source of the corpus has this name.
        """
        for source in self.corpus:
            if source.name == name:
                return source
        names = ", ".join(source.name for source in self.corpus)
        raise ConfigError(f"corpus: no source is named {name!r}; name one of {names}")

    def querying(self, position: int) -> Config:
        """The configuration that cuts and embeds a query corpus: without split, leakage and dedup.

        Args:
            position: Position of the query corpus among `queries`.
        """
        sections = {"split": SplitConfig(), "leakage": LeakageConfig(), "dedup": DedupConfig()}
        corpus = [self.queries[position]]
        return self.model_copy(update={**sections, "corpus": corpus, "queries": []})

    def settings(self, *names: str) -> dict[str, Any]:
        """Some settings as JSON, by their names in the configuration.

        Args:
            *names: Names such as `chunk.tokens`, or `neighbors` for a whole section.
        """
        data = self.model_dump(mode="json")
        return {name: functools.reduce(operator.getitem, name.split("."), data) for name in names}

    def portable(self) -> dict[str, Any]:
        """The settings without locations, as the manifest records them.

        Paths, the output folder and the directory of the model differ between machines that build the
        same bytes; the manifest records their contents by hash.
        """
        data = self.model_dump(mode="json", exclude={"output": True, "tokenizer": {"path"}})
        for files in (*data["corpus"], *data["queries"], data["leakage"]):
            del files["paths"]
        for placement in ("accelerator", "max_active_bundles"):
            del data["encoder"][placement]
        for placement in ("partitions", "scratch", "products"):
            del data["neighbors"][placement]
        data["encoder"]["model"] = self.encoder.model.rstrip("/").rsplit("/", 1)[-1]
        return data


def in_units(count: int) -> str:
    """A number of bytes in decimal units, such as `64.0GB`."""
    return ByteSize(count).human_readable(decimal=True)


class SettingsError(ConfigError):
    """Settings are unknown or wrong; the message is that of the first.

    Attributes:
        problems: A message for each of them.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__(problems[0])
        self.problems = problems


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, of_database: bool = False
) -> Config:
    """Reads a YAML configuration, and the files that it includes.

    Args:
        path: The YAML file: a path or an fsspec URL.
        overrides: Settings as `a.b=value`, the value in YAML; list items by number, `corpus.0.name=x`.
        of_database: Whether the output is there already, and has a tokenizer.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: A file cannot be read, a setting is unknown or a value is wrong; the message names the
            file and the line of the first such setting.
    """
    return parse_composition(compose(str(path)), overrides, of_database=of_database)


def parse_composition(
    composition: Composition, overrides: Sequence[str] = (), *, of_database: bool = False
) -> Config:
    """Checks the settings of composed files.

    Args:
        composition: The files; the overrides are written into its settings.
        overrides: Settings as `a.b=value`, as for `load_config`.
        of_database: Whether the output is there already, and has a tokenizer.

    Returns:
        The checked configuration.

    Raises:
        SettingsError: Settings are unknown or wrong; each message names the file and the line.
    """
    return _parse(composition.settings, composition.where, overrides, of_database=of_database)


def parse_config(
    data: dict[str, Any], where: str, overrides: Sequence[str] = (), *, of_database: bool = False
) -> Config:
    """Checks parsed YAML.

    Args:
        data: Content of the file; the overrides are written into it.
        where: Name of the file, for error messages.
        overrides: Settings as `a.b=value`, as for `load_config`.
        of_database: Whether the output is there already, and has a tokenizer.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: A setting is unknown or wrong; the message names the first such setting, and the
            known setting with the most similar name.
    """
    return _parse(data, lambda location: where, overrides, of_database=of_database)


def _parse(
    data: dict[str, Any],
    where: Callable[[Location], str],
    overrides: Sequence[str],
    *,
    of_database: bool,
) -> Config:
    for override in overrides:
        _override(data, override)
    problems: list[tuple[Location, str]] = []
    if not of_database and _lacks_tokenizer(data.get("tokenizer", {})):
        remedy = "give either path or train, such as tokenizer: {train: {vocab_size: 32000}}"
        problems.append((("tokenizer",), f"tokenizer: missing; {remedy}"))
    try:
        config = Config.model_validate(data)
    except pydantic.ValidationError as error:
        problems = [*explanations(error, Config), *problems]
    if problems:
        raise SettingsError(
            [
                f"{overridden_by(location, overrides) or where(location)}: {problem}"
                for location, problem in problems
            ]
        )
    return config


def _lacks_tokenizer(tokenizer: Any) -> bool:
    return isinstance(tokenizer, dict) and all(value is None for value in tokenizer.values())


def overridden_by(location: Location, overrides: Sequence[str]) -> str:
    """The last override that gave a setting, or a section around it, as people type it; empty if none did.

    Args:
        location: Names of the sections and of the setting, and positions in lists.
        overrides: Settings as `a.b=value`.
    """
    for override in reversed(overrides):
        parts = override.partition("=")[0].split(".")
        if parts == [str(part) for part in location[: len(parts)]]:
            return f"--set {override}"
    return ""


def _override(data: dict[str, Any], override: str) -> None:
    setting, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write setting=value, such as --set neighbors.k=10")
    *parents, last = [int(part) if part.isdigit() else part for part in setting.split(".")]
    node: Any = data
    reached = ""
    try:
        for part in parents:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node, reached = node[part], f"{reached}.{part}".lstrip(".")
        node[last] = yaml.safe_load(text)
    except (KeyError, IndexError, TypeError) as error:
        raise ConfigError(f"--set {override}: {_unreached(reached, node)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is not valid YAML; write --set '{setting}=\"{text}\"'"
        ) from error


def _unreached(setting: str, value: Any) -> str:
    if isinstance(value, list):
        return f"{setting} is a list of {len(value)}; number its items from 0, such as {setting}.0.name=x"
    return f"{setting} is {value!r}, and has no settings of its own"
