"""A project of Megatron-LM's Retro, as its trainer reads it.

The trainer takes samples from .bin and .idx files, and the neighbors of each chunk of each sample from HDF5
files. It reads a neighbor and its continuation from a table of chunks: rows i and i + 1, whatever documents
they belong to, the table's end and beginning joined. So that this never leads into another document, a row
that reads as nothing but ends follows every document, and two such rows begin the table: row 0 means that a
neighbor is missing, and -1 would read the same. See megatron/core/datasets/retro of megatron-core 0.15.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from retro_db.errors import InputError
from retro_db.export.corpora import SPLITS, Corpora, Run
from retro_db.export.samples import CorpusSamples, blended, samples_of_each
from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.reader.database import Database
from retro_db.reader.mapped import mapped_zeros
from retro_db.reader.rows import ids_in, pack
from retro_db.store.folder import TEMPORARY_PREFIX, Folder
from retro_db.tokens.tokenizer import FOLDER as TOKENIZER
from retro_db.tokens.tokenizer import Tokenizer

# Megatron's names of the splits.
_NAMES = {TRAIN: "train", VALIDATION: "valid"}
_NO_NEIGHBOR, _LEADING = 0, 2
# About how many rows a file of neighbors has: as in Megatron.
_BLOCK = 100_000


@dataclass(frozen=True)
class MegatronSettings:
    """Settings of the trainer, which decide its samples.

    Attributes:
        seq_len: Tokens of a sample, a multiple of the chunk length.
        k: Neighbors of a chunk, at most as many as are stored.
        samples: Samples of the whole training; None for about one epoch.
        batch_size: Samples of a step, over all ranks.
        eval_interval: Steps between evaluations.
        eval_iters: Batches of an evaluation; with 0, no validation documents are exported.
        seed: Seed of the order of samples, which the trainer uses for all its random numbers.
        end_token: Token that ends documents; None for the tokenizer's eos_token.
    """

    seq_len: int = 2048
    k: int = 2
    samples: int | None = None
    batch_size: int = 256
    eval_interval: int = 1000
    eval_iters: int = 100
    seed: int = 1234
    end_token: str | None = None


class MegatronProject:
    """A project that is ready to be written.

    Attributes:
        out: Folder of the project.
        corpora: Sources and their documents.
        samples: Number of samples by split.

    Args:
        database: Database to export.
        out: Local folder that does not exist yet.
        settings: Settings of the trainer.

    Raises:
        InputError: h5py is missing, the folder exists, a setting does not fit the database, or there is
            nothing to train on.
        DamagedFileError: A file is missing, or disagrees with the manifest.
    """

    def __init__(self, database: Database, out: str, settings: MegatronSettings) -> None:
        self._h5py = _h5py()
        self.out = _new(out)
        self._database = database
        self._settings = settings
        self._m = database.manifest.chunk.tokens
        if settings.seq_len < 1 or settings.seq_len % self._m:
            raise InputError(
                f"seq_len: {settings.seq_len} is not a multiple of the chunk length {self._m}"
            )
        self._length = settings.seq_len // self._m
        database.check_k(settings.k)
        self._tokenizer, self._end = _ending(database, settings.end_token)
        self.corpora = Corpora(database, SPLITS if settings.eval_iters else SPLITS[:1])
        self.samples = self._count_samples()

    def _count_samples(self) -> dict[str, int]:
        settings = self._settings
        trained = settings.samples
        if trained is None:
            sources = self.corpora.sources
            chunks = [int(source.documents[TRAIN].rows.sum()) for source in sources]
            trained = sum((self._m * count - 1) // settings.seq_len for count in chunks)
        if trained < settings.batch_size:
            raise InputError(
                f"samples: {trained} do not make a batch of {settings.batch_size}; give more --samples "
                "or a smaller --batch-size"
            )
        # megatron/training/training.py, get_train_valid_test_num_samples
        evaluations = trained // settings.batch_size // settings.eval_interval + 1
        evaluated = evaluations * settings.eval_iters * settings.batch_size
        counts = {TRAIN: trained, VALIDATION: evaluated}
        return {split: counts[split] for split in self.corpora.splits}

    @property
    def work(self) -> int:
        """Number of chunks that `write` reports: of the corpora, then of the samples."""
        rows = sum(
            int(documents.rows.sum())
            for source in self.corpora.sources
            for documents in source.documents.values()
        )
        return rows + sum(self.samples.values()) * self._length

    def write(self, report: Callable[[int], None]) -> None:
        """Writes the project; the folder takes its name when it is complete.

        Args:
            report: Called with the number of chunks written since the last call.

        Raises:
            DamagedFileError: A file is missing, or disagrees with the manifest.
        """
        with _filling(self.out) as folder:
            for source in self.corpora.sources:
                self.corpora.write(source, self._end, folder, report)
            tables = {split: self._write_chunks(split, folder) for split in self.corpora.splits}
            for split in self.corpora.splits:
                self._write_neighbors(split, tables[TRAIN], folder, report)
            for name, content in self._tokenizer.files.items():
                folder.write(f"{TOKENIZER}/{name}", content)
            folder.write("db/indexed_dataset_infos.json", _json(self._infos()))
            folder.write("config.json", _json(self._config()))

    def _write_chunks(self, split: str, folder: Folder) -> _ChunkTable:
        """Writes the table of a split's chunks, in the database's order."""
        sources = self.corpora.sources
        count = sum(int((source.documents[split].rows > 0).sum()) for source in sources)
        chunks = sum(source.chunks(split, self._m) for source in sources)
        total = _LEADING + chunks + count
        firsts, rows = mapped_zeros(np.int64, count), mapped_zeros(np.int64, count)
        with (
            folder.writing(f"db/merged/{_NAMES[split]}.hdf5") as path,
            self._h5py.File(path, "w") as file,
        ):
            table = file.create_dataset("chunks", (total, 5), np.uint32)
            offsets = file.create_dataset("doc_offsets", (count, 3), np.uint64)
            file.create_dataset("n_written", data=np.array([total], np.uint64))
            row, done = _LEADING, 0
            for run in self.corpora.runs(split):
                lines = self._chunk_rows(run)
                ends = row + np.cumsum(run.counts + 1)
                if not done:
                    table[:_LEADING] = np.repeat(lines[run.counts[:1]], _LEADING, axis=0)
                table[row : ends[-1]] = lines
                written = slice(done, done + len(ends))
                offsets[written] = np.stack(
                    [np.full(len(ends), run.corpus), run.numbers, ends], axis=1
                )
                firsts[written], rows[written] = run.firsts, ends - run.counts - 1
                row, done = int(ends[-1]), written.stop
        return _ChunkTable(firsts, rows)

    def _chunk_rows(self, run: Run) -> np.ndarray:
        """Returns corpus, document, first token, the one after the last, and 0 for WordPieces: [n, 5].

        The row after each document's chunks has its last token, which ends it.
        """
        counts = run.counts + 1
        table = np.zeros((counts.sum(), 5), np.int64)
        table[:, 0] = run.corpus
        table[:, 1] = np.repeat(run.numbers, counts)
        table[:, 2] = ids_in(np.zeros_like(counts), counts) * self._m
        table[:, 3] = np.minimum(table[:, 2] + self._m, np.repeat(run.tokens, counts))
        last = np.cumsum(counts) - 1
        table[last, 3] = run.rows * self._m
        table[last, 2] = table[last, 3] - 1
        return table

    def _write_neighbors(
        self, split: str, table: _ChunkTable, folder: Folder, report: Callable[[int], None]
    ) -> None:
        """Writes a row for each chunk of each sample, in files of whole samples."""
        weights = [source.weight for source in self.corpora.sources]
        count, start = self.samples[split], 0
        counts = samples_of_each(weights, count)
        orders = [
            CorpusSamples(
                source.documents[split], number, self._length, self._m, self._settings.seed
            )
            for source, number in zip(self.corpora.sources, counts, strict=True)
        ]
        digits = math.ceil(math.log10(count * self._length)) + 1
        for drawn in blended(weights, count, self._block // self._length):
            rows = np.empty((len(drawn), self._length, self._settings.k), np.int64)
            for corpus in np.unique(drawn[:, 0]):
                is_drawn = drawn[:, 0] == corpus
                rows[is_drawn] = self._neighbors(orders[corpus], drawn[is_drawn, 1], table)
            stop = start + len(drawn) * self._length
            name = f"{start:0{digits}d}-{stop:0{digits}d}.hdf5"
            with (
                folder.writing(f"query/{_NAMES[split]}/{name}") as path,
                self._h5py.File(path, "w") as file,
            ):
                file.create_dataset("neighbors", data=rows.reshape(-1, self._settings.k))
            report(stop - start)
            start = stop

    @property
    def _block(self) -> int:
        """Number of rows of a file of neighbors, which has whole samples."""
        return max(_BLOCK // self._length, 1) * self._length

    def _neighbors(
        self, order: CorpusSamples, samples: np.ndarray, table: _ChunkTable
    ) -> np.ndarray:
        """Returns rows of the table of chunks, int64 [b, chunks, k], none of a document of the sample."""
        places = order.of(samples)
        ids = places.ids[:, :-1]
        stored = self._database.neighbors[np.maximum(ids, 0)]
        allowed = (stored >= 0) & (ids >= 0)[..., None]
        rows, firsts = table.of(np.where(allowed, stored, 0))
        # Megatron's builder counts the document of the last label, too.
        for sampled in np.moveaxis(places.firsts, -1, 0):
            allowed &= firsts != sampled[:, None, None]
        return pack(rows, allowed, _NO_NEIGHBOR, self._settings.k)

    def _infos(self) -> list[dict[str, Any]]:
        """Returns Megatron's description of each corpus, of which its trainer reads the prefix."""
        infos = []
        for source in self.corpora.sources:
            chunks = {split: source.chunks(split, self._m) for split in source.documents}
            infos.append(
                {
                    "prefix": source.prefix,
                    "source": source.name,
                    "ratio": source.weight,
                    "n_docs": sum(map(len, source.documents.values())),
                    "n_docs_train": len(source.documents[TRAIN]),
                    "n_chunks": sum(chunks.values()),
                    "n_chunks_train": chunks[TRAIN],
                    "n_chunks_invalid": 0,
                    "n_chunks_sampled": 0,
                }
            )
        return infos

    def _config(self) -> dict[str, Any]:
        """Returns what the trainer reads in place of its options; paths are relative to the project."""
        settings = self._settings
        is_piece_model = self._tokenizer.file.endswith(".model")
        blend = [(str(source.weight), source.prefix) for source in self.corpora.sources]
        return {
            "retro_bert_tokenizer_type": None,
            "retro_bert_vocab_file": None,
            "retro_block_size": self._block,
            "retro_gpt_chunk_length": self._m,
            "retro_gpt_data_cache_path": None,
            "retro_gpt_data_path": [item for pair in blend for item in pair],
            "retro_gpt_eval_interval": settings.eval_interval,
            "retro_gpt_eval_iters": settings.eval_iters,
            "retro_gpt_global_batch_size": settings.batch_size,
            "retro_gpt_merge_file": None,
            "retro_gpt_seed": settings.seed,
            "retro_gpt_seq_length": settings.seq_len,
            "retro_gpt_split": self.corpora.shares,
            "retro_gpt_tokenizer_model": self._tokenizer.file if is_piece_model else TOKENIZER,
            "retro_gpt_tokenizer_type": (
                "GPTSentencePieceTokenizer" if is_piece_model else "HuggingFaceTokenizer"
            ),
            "retro_gpt_train_samples": self.samples[TRAIN],
            "retro_gpt_vocab_file": None,
            "retro_neighbor_dirs": {
                "train": _NAMES[TRAIN],
                "valid": _NAMES[VALIDATION] if VALIDATION in self.samples else None,
                "test": None,
            },
        }


@dataclass(frozen=True)
class _ChunkTable:
    """The position of each document's chunks in a table of chunks.

    Attributes:
        firsts: First chunk of each document, int64 [d], ascending.
        rows: Row of that chunk, int64 [d].
    """

    firsts: np.ndarray
    rows: np.ndarray

    def of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows of chunks, and the first chunks of their documents: int64 of the ids' shape."""
        documents = np.maximum(np.searchsorted(self.firsts, ids, side="right") - 1, 0)
        firsts = self.firsts[documents]
        return self.rows[documents] + ids - firsts, firsts


def _ending(database: Database, token: str | None) -> tuple[Tokenizer, int]:
    """Returns the database's tokenizer, and the id of the token that ends documents, which it names.

    Args:
        database: Database of the tokenizer.
        token: Token that ends documents; None for the tokenizer's eos_token.
    """
    tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)
    if token is not None:
        tokenizer = Tokenizer(tokenizer.definition, tokenizer.settings | {"eos_token": token})
    end = tokenizer.end_id
    if end is None:
        lack = "names no eos_token" if token is None else f"has no token {token}"
        raise InputError(
            f"{database.folder.url}: its tokenizer {lack}; name the token that ends documents by "
            "--end-token"
        )
    return tokenizer, end


def _new(out: str) -> Path:
    """Returns the path of a local folder that does not exist yet."""
    if not Folder(out).is_local:
        raise InputError(f"{out}: is not a local folder; export to one and copy it")
    path = Path(os.path.abspath(out))
    if path.exists():
        raise InputError(f"{out}: exists already; name a new folder")
    return path


@contextlib.contextmanager
def _filling(target: Path) -> Iterator[Folder]:
    """Yields a folder to fill, which gets its name if the block ends without an error."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{target.name}")
    try:
        yield Folder(str(temporary))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            "h5py is missing; install it with the extra megatron, pip install -e '.[megatron]' in a clone of "
            "the repository"
        ) from error
    return h5py


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=4, sort_keys=True).encode("ascii") + b"\n"
