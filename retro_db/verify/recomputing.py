"""A sample computed again: embeddings from text, codes from embeddings, neighbors from the index."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from retro_db.encoder.chunk_texts import chunk_texts
from retro_db.encoder.encoder import Encoder
from retro_db.hashing import fractions_of
from retro_db.index.filling import encode_embeddings
from retro_db.index.structure import faiss as faiss_library
from retro_db.index.structure import inverted_file, read_index, transform, widen
from retro_db.join.router import Router
from retro_db.manifest.model import IndexInfo, Manifest
from retro_db.meter import Meter
from retro_db.reader.database import Database
from retro_db.reader.removals import Removals
from retro_db.search.finder import ChunkTokens, Finder
from retro_db.search.part_documents import Documents
from retro_db.search.searching import IdRanges, QueryBlock, SearchSettings, open_searcher, windows
from retro_db.store.embedded import is_embedded
from retro_db.store.folder import FileEntry
from retro_db.store.gathering import Table
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.verify.history import History
from retro_db.verify.index_lists import Partitions
from retro_db.verify.opened import OpenedCorpus, OpenedPart
from retro_db.verify.rules import compare_distances
from retro_db.verify.sampling import Sample
from retro_db.verify.visited_lists import VisitedLists

_WINDOW_ROWS = 2048
# Other batch mates change the last bits of float32, and float16 rounds to 1 / 2,048.
_EMBEDDING_TOLERANCE = 2e-3
# For embeddings of other devices, and of types with fewer bits.
_LEAST_COSINE = 0.999
_DISTANCE_TOLERANCE = 1e-5
# Another processor's last bits may decide for the other of two centroids that are as near.
_TIE = 1e-3


@dataclass(frozen=True)
class Chosen:
    """Documents of one part that are computed again.

    Attributes:
        part: The part.
        positions: int64 [n], positions among its documents with chunks.
        chunks: Number of chunks of these documents.
    """

    part: OpenedPart
    positions: np.ndarray
    chunks: int


def choose_documents(corpus: OpenedCorpus, sample: Sample) -> list[Chosen]:
    """Chooses a hashed share of a corpus's documents that have chunks, at least one document.

    Args:
        corpus: The corpus.
        sample: The choice among its documents.

    Returns:
        The documents by part, without the parts that have none of them.
    """
    chosen: list[Chosen] = []
    least, stand_in = np.inf, list[Chosen]()
    for part in corpus.parts():
        counts = part.read_documents("chunk_count")["chunk_count"].to_numpy()
        rows = np.flatnonzero(counts > 0)
        if not len(rows):
            continue
        fractions = fractions_of(rows + part.first_document, sample.seed)
        positions = np.flatnonzero(fractions < sample.share)
        if len(positions):
            chosen.append(Chosen(part, positions, int(counts[rows[positions]].sum())))
        lowest = int(fractions.argmin())
        if fractions[lowest] < least:
            least = fractions[lowest]
            stand_in = [Chosen(part, np.array([lowest]), int(counts[rows[lowest]]))]
    return chosen or stand_in


class Recomputation:
    """Computes a sample again, and compares it with what is stored.

    Args:
        home: The database, whose files are what the manifest says.
        history: Manifests of the database.
        encoder: Encoder of its embeddings.
        pool: Threads of the search.
        meter: Counts chunks.

    Attributes:
        notes: Lines that say what could not be computed again, and why.
    """

    def __init__(
        self, home: OpenedCorpus, history: History, encoder: Encoder, pool: Executor, meter: Meter
    ) -> None:
        self.notes: dict[str, None] = {}
        self._home = home
        self._history = history
        self._encoder = encoder
        self._pool = pool
        self._meter = meter
        database = home.database
        manifest = self._manifest = database.manifest
        self._tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)
        self._parts = [part.files for part in home.parts()]
        self._partitions = Partitions(database, pool)
        self._trained = read_index(database.folder.verified(manifest.template_file))
        self._router = Router(self._trained)
        self._memory = manifest.config.get("index", {}).get("memory")
        self._finders: dict[tuple[FileEntry, ...], Finder] = {}
        self._removals: dict[tuple[FileEntry, ...], Removals] = {}

    def _removed_by(self, written: Manifest) -> Removals:
        """Returns the removals of a generation."""
        removed = tuple(written.tables.removed)
        if removed not in self._removals:
            self._removals[removed] = Database(self._home.database.folder, written).removals
        return self._removals[removed]

    def _finder(self, written: Manifest) -> Finder:
        """Returns a finder that searches as a generation did, without the chunks removed by then."""
        removed = tuple(written.tables.removed)
        database, manifest = self._home.database, self._manifest
        if removed not in self._finders:
            self._finders[removed] = Finder(
                open_searcher(
                    database.folder,
                    manifest.index.key,
                    manifest.template_file,
                    manifest.partition_files,
                    self._memory,
                    self._removed_by(written).chunks,
                ),
                database.embeddings,
                _settings(written.index),
                self._neighbors_config.get("max_nprobe"),
                self._tokens(database.table("chunks")),
            )
        return dataclasses.replace(self._finders[removed], settings=_settings(written.index))

    @property
    def _neighbors_config(self) -> dict[str, int | None]:
        return self._manifest.config.get("neighbors", {})

    def _tokens(self, chunks: Table) -> ChunkTokens | None:
        """Returns the tokens that duplicates are recognized by, if the search passed over duplicates."""
        if not self._neighbors_config.get("drop_duplicates"):
            return None
        return ChunkTokens(chunks.column("tokens"), chunks.column("length"))

    def check(self, chosen: Chosen) -> Iterator[str]:
        """Checks embeddings, codes, distances and neighbors of some documents of one part."""
        part = chosen.part
        loaded = part.load_documents(self._parts)
        documents = Documents(
            loaded.starts[chosen.positions],
            loaded.counts[chosen.positions],
            [loaded.exclude[position] for position in chosen.positions],
        )
        for window in windows(documents.blocks(), _WINDOW_ROWS, lambda block: block[1] - block[0]):
            ranges = [(start, stop) for start, stop, _ in window]
            rows = np.concatenate([np.arange(*bounds) for bounds in ranges])
            file = part.open("embeddings", part.files.keys_file)
            embeddings = np.concatenate([file.read("vector", *bounds) for bounds in ranges])
            yield from self._check_embeddings(part, ranges, rows, embeddings)
            if not part.corpus.is_queries:
                yield from self._check_codes(part, rows, embeddings)
            yield from compare_distances(part, rows)
            yield from self._check_neighbors(part, window, rows, embeddings)
            self._meter(len(rows))

    def _check_embeddings(
        self,
        part: OpenedPart,
        ranges: list[tuple[int, int]],
        rows: np.ndarray,
        embeddings: np.ndarray,
    ) -> Iterator[str]:
        """Checks stored embeddings against the texts of their chunks."""
        file = part.open("chunks", part.files.chunks)
        texts = [text for bounds in ranges for text in chunk_texts(file, self._tokenizer, *bounds)]
        fresh, stored = self._encoder.encode(texts), widen(embeddings)
        info = self._manifest.encoder
        if info.dtype == "float32" and info.device == self._encoder.model.device:
            usual = np.linalg.norm(fresh, axis=1, keepdims=True) / fresh.shape[1] ** 0.5
            tolerance = _EMBEDDING_TOLERANCE * np.maximum(usual, np.abs(fresh))
            wrong = (np.abs(stored - fresh) > tolerance).any(axis=1)
        else:
            norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1)
            wrong = (stored * fresh).sum(axis=1) < _LEAST_COSINE * norms
        wrong |= is_embedded(fresh.astype(np.float16)) != is_embedded(embeddings)
        for row in rows[wrong]:
            yield f"{part.files.keys_file.path}: row {row} is not the embedding of its chunk's text"

    def _check_codes(
        self, part: OpenedPart, rows: np.ndarray, embeddings: np.ndarray
    ) -> Iterator[str]:
        """Checks that the index holds the code of every embedding in its list."""
        ids = rows + part.files.first_id
        indexed = is_embedded(embeddings) & ~part.corpus.held_out[ids]
        if not indexed.any():
            return
        ivf = inverted_file(self._trained)
        vectors = widen(embeddings[indexed])
        lists, codes = encode_embeddings(self._trained, ivf, vectors)
        rows_in_lists = zip(ids[indexed], vectors, lists, codes, strict=True)
        for chunk, vector, inverted_list, code in rows_in_lists:
            stored = self._partitions.code(int(inverted_list), int(chunk))
            same = stored is not None and np.array_equal(stored, code)
            if not same and not self._is_tied(int(chunk), vector, int(inverted_list), code):
                yield f"index: list {inverted_list} does not hold the code of chunk {chunk}"

    def _is_tied(
        self, chunk: int, embedding: np.ndarray, inverted_list: int, code: np.ndarray
    ) -> bool:
        """Whether the index holds a code that is as near to an embedding, in a list that is as near."""
        ivf = inverted_file(self._trained)
        x = np.ascontiguousarray(transform(self._trained, embedding[None]))
        distances, lists = ivf.quantizer.search(x, min(2, ivf.nlist))
        near = distances[0] <= distances[0, 0] * (1 + _TIE)
        away = _decoded_distance(ivf, x, inverted_list, code)
        for other in lists[0][near].tolist():
            stored = self._partitions.code(other, chunk)
            if stored is not None:
                return _decoded_distance(ivf, x, other, stored) <= away * (1 + _TIE)
        return False

    def _check_neighbors(
        self,
        part: OpenedPart,
        window: list[tuple[int, int, IdRanges]],
        rows: np.ndarray,
        embeddings: np.ndarray,
    ) -> Iterator[str]:
        """Checks that searching again, among the chunks of the time, finds what is stored.

        A part is searched with the settings of the generation that wrote its neighbors, without the chunks
        that had been removed by then and without the chunks that came later.
        """
        written = self._history.first_listed[part.neighbors]
        path, chunks = part.neighbors.path, written.counts.chunks
        if written.index.template_sha256 != self._manifest.index.template_sha256:
            self.notes[f"{path}: not searched again: the index was trained again since"] = None
            return
        later = ((chunks, len(self._home.database)),) if chunks < len(self._home.database) else ()
        tokens = self._tokens(Table([part.open("chunks", part.files.chunks)]))
        searched, first = is_embedded(embeddings), 0
        if written.neighbors.nprobe and not part.corpus.is_queries:
            # Removed chunks have no neighbors.
            removed = self._removed_by(written).has_chunks(rows + part.files.first_id)
            searched &= ~removed
        queries = []
        for start, stop, exclude in window:
            block = np.flatnonzero(searched[first : first + stop - start]) + first
            first += stop - start
            if len(block):
                block_tokens = None if tokens is None else tokens[rows[block]]
                queries.append(QueryBlock(widen(embeddings[block]), exclude + later, block_tokens))
        if not queries:
            return
        stored = Table([part.open("neighbors", part.neighbors)])
        columns = (stored.column(name)[rows[searched]] for name in ("ids", "distances"))
        for row in rows[searched][~self._agree(written, queries, *columns)]:
            yield f"{path}: row {row} is not what a search finds"

    def _agree(
        self,
        written: Manifest,
        queries: list[QueryBlock],
        ids: np.ndarray,
        distances: np.ndarray,
    ) -> np.ndarray:
        """Whether the stored neighbors of each query are what a search finds: bool [n]."""
        if written.neighbors.nprobe:
            return self._visited_lists(written).agree(queries, ids, distances)
        # Format 1.3: by the codes of the index.
        results = self._finder(written).find(queries, self._manifest.neighbors.k, self._pool)
        fresh = np.concatenate([block_distances for _, block_distances in results])
        # Equally near ids may be exchanged.
        return np.isclose(distances, fresh, rtol=_DISTANCE_TOLERANCE, atol=0).all(axis=1)

    def _visited_lists(self, written: Manifest) -> VisitedLists:
        """Returns the lists that a generation's queries visited, without the chunks removed by then."""
        database, lists = self._home.database, self._manifest.index.lists
        return VisitedLists(
            self._partitions,
            self._router,
            database.embeddings,
            self._manifest.neighbors.k,
            written.neighbors.nprobe,
            min(self._neighbors_config.get("max_nprobe") or lists, lists),
            self._removed_by(written).chunks,
            self._tokens(database.table("chunks")),
        )


def _settings(index: IndexInfo) -> SearchSettings:
    return SearchSettings(index.nprobe, index.rerank, index.ef_search)


def _decoded_distance(
    ivf: faiss_library.IndexIVF, x: np.ndarray, inverted_list: int, code: np.ndarray
) -> float:
    """Returns the squared distance between a transformed embedding [1, d'] and what a code decodes to."""
    decoded, lists = np.empty_like(x), np.array([inverted_list])
    pointers = (faiss_library.swig_ptr(array) for array in (code, lists, decoded))
    ivf.decode_vectors(1, *pointers)
    return float(((x.astype(np.float64) - decoded) ** 2).sum())
