"""Bytes of the files of a database that is not built yet, measured with the functions that write them."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from retro_db.config import Config
from retro_db.corpus.chunking import split_of
from retro_db.index.filling import partition_path
from retro_db.index.refining import FINE_PATH, fine_size
from retro_db.index.sizing import IndexSizes
from retro_db.index.structure import faiss
from retro_db.index.training import PATH as TRAINED_PATH
from retro_db.plan.corpus_facts import UNKNOWN_SHA256, Corpus, Facts, Layout, share_out
from retro_db.store.contracts import Contract, contract
from retro_db.store.folder import FileEntry, TableEntry
from retro_db.store.writing import TableWriter
from retro_db.tokens.tokenizer import token_type_for

# Arrow pads to 8 bytes, so that every row takes the same in a multiple of 8 rows.
_FEW_ROWS = 8


@dataclass(frozen=True)
class ArrowSizes:
    """Bytes that an Arrow file takes: for the file, for every batch, and for every row.

    A file of r rows in batches of at most b takes file + ceil(r / b) batch + r row bytes: its schema,
    twice; for every batch its metadata and an entry in the footer; and the columns.
    """

    file: int
    batch: int
    row: int


def arrow_sizes(agreed: Contract, schema: pa.Schema) -> ArrowSizes:
    """Measures files that the writer makes of no row, of a few rows and of twice as many.

    Args:
        agreed: Contract of the table.
        schema: Schema of the table.
    """
    none, few, more = (
        _written(agreed, schema, _zeros(schema, rows)) for rows in (0, _FEW_ROWS, 2 * _FEW_ROWS)
    )
    row = (more - few) // _FEW_ROWS
    return ArrowSizes(none, few - none - _FEW_ROWS * row, row)


def _zeros(schema: pa.Schema, rows: int) -> dict[str, np.ndarray | list[str]]:
    def column(kind: pa.DataType) -> np.ndarray:
        if pa.types.is_fixed_size_list(kind):
            return np.zeros((rows, kind.list_size), kind.value_type.to_pandas_dtype())
        return np.zeros(rows, kind.to_pandas_dtype())

    return {field.name: column(field.type) for field in schema}


def _written(
    agreed: Contract, schema: pa.Schema, columns: dict[str, np.ndarray | list[str]]
) -> int:
    """Returns the bytes of a file with these rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table")
        parquet = agreed.format == "parquet"
        with TableWriter(path, schema, agreed.batch_rows, parquet=parquet) as writer:
            if len(columns[schema.names[0]]):
                writer.append(columns)
        return path.stat().st_size


def arrow_files(
    name: str, layout: Layout, rows: np.ndarray, **parameters: str | int
) -> list[TableEntry]:
    """Returns the entries of a table of Arrow files, one for each part.

    Args:
        name: Name of its contract.
        layout: Parts of the corpus.
        rows: Rows of each file, int64 [parts].
        **parameters: Parameters of the contract's types.
    """
    agreed = contract(name)
    sizes = arrow_sizes(agreed, agreed.schema(**parameters))
    bytes_ = sizes.file + -(-rows // agreed.batch_rows) * sizes.batch + rows * sizes.row
    return _entries(agreed, layout, bytes_, rows)


def document_files(corpus: Corpus, layout: Layout, config: Config) -> list[TableEntry]:
    """Returns the entries of the documents: Parquet, whose bytes depend on the ids.

    A part's file is written from the sample, with about the chunks that each document will have. If a
    part has more documents than the sample, each further one takes as much as one of the sample.

    Args:
        corpus: Corpus that is planned.
        layout: Parts of the corpus.
        config: Configuration of the build.
    """
    agreed, mean = contract("documents"), corpus.documents / len(layout.rows)
    sample = corpus.sample[: max(1, round(mean))]
    characters = np.array([sampled.characters for sampled in sample], np.float64)
    scale = corpus.tokens / corpus.documents / max(characters.mean(), 1.0)
    counts = np.ceil(characters * scale / config.chunk.tokens).astype(np.int64)
    columns: dict[str, np.ndarray | list[str]] = {
        "source": [sampled.source for sampled in sample],
        "id": [sampled.document.id for sampled in sample],
        "first_chunk": np.cumsum(counts) - counts,
        "chunk_count": counts,
        "split": [
            split_of(sampled.document, sampled.source, config.split.validation, config.seed)
            for sampled in sample
        ],
    }
    schema = agreed.schema()
    empty = _written(agreed, schema, {field.name: [] for field in schema})
    each = (_written(agreed, schema, columns) - empty) / len(sample)
    rows = share_out(corpus.documents, layout.rows)
    return _entries(agreed, layout, np.rint(empty + rows * each).astype(np.int64), rows)


def _entries(
    agreed: Contract, layout: Layout, bytes_: np.ndarray, rows: np.ndarray
) -> list[TableEntry]:
    columns = (column.tolist() for column in (layout.shards, layout.turns, bytes_, rows))
    return [
        TableEntry(agreed.name(shard, turn), size, UNKNOWN_SHA256, count)
        for shard, turn, size, count in zip(*columns, strict=True)
    ]


def corpus_files(
    corpus: Corpus, layout: Layout, facts: Facts, config: Config
) -> dict[str, list[TableEntry]]:
    """Returns the files of one corpus by table, the embeddings included even if they are not kept.

    Args:
        corpus: The indexed corpus, or a query corpus.
        layout: Parts of the corpus.
        facts: Encoder and tokenizer of the build.
        config: Configuration of the build.
    """
    make = functools.partial(arrow_files, layout=layout, rows=layout.rows)
    token_type, m = token_type_for(facts.vocab_size).name, config.chunk.tokens
    files = {
        "documents": document_files(corpus, layout, config),
        "chunks": make("chunks", token_type=token_type, chunk_tokens=m),
        "embeddings": make("embeddings", dimension=facts.dimension),
        "neighbors": make("neighbors", k=config.neighbors.k),
    }
    if not config.embeddings.keep and not corpus.name:
        size = fine_size(config.index.refine, facts.dimension)
        files["fine"] = make("fine", fine_size=size)
    return files


def index_files(
    config: Config, dimension: int, ranges: list[tuple[int, int]], entries: int, sizes: IndexSizes
) -> list[FileEntry]:
    """Returns the trained index, the quantizer of fine codes if the build has one, and the partitions.

    Entries are spread evenly over the lists, since nothing more is known before the build.

    Args:
        config: Configuration of the build.
        dimension: Dimension of the embeddings, d.
        ranges: First list and one after the last of each partition.
        entries: Number of chunks in the index.
        sizes: Sizes of the files of the index.
    """
    lists = np.array([end - first for first, end in ranges])
    files = [FileEntry(TRAINED_PATH, sizes.template(int(lists.sum())), UNKNOWN_SHA256)]
    if not config.embeddings.keep:
        quantizer = faiss.index_factory(dimension, config.index.refine)
        # Training adds the least value and the span of each dimension, in float32.
        size = len(faiss.serialize_index(quantizer)) + 8 * dimension
        files.append(FileEntry(FINE_PATH, size, UNKNOWN_SHA256))
    partition_rows = share_out(entries, lists).tolist()
    return files + [
        TableEntry(partition_path(number), sizes.partition(count, rows), UNKNOWN_SHA256, rows)
        for number, (count, rows) in enumerate(zip(lists.tolist(), partition_rows, strict=True))
    ]
