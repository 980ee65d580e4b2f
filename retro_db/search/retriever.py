"""Search by text, for evaluation and sampling; needs the extra `build`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from retro_db.encoder.embedding import store_embeddings
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.models import (
    CPU,
    CPU_BATCH_TOKENS,
    CUDA,
    gpu_count,
    recorded_model,
    resolve_model,
)
from retro_db.errors import InputError
from retro_db.index.refining import FINE_PATH, FineEmbeddings
from retro_db.reader.database import Database
from retro_db.search.finder import Finder
from retro_db.search.reranking import Embeddings
from retro_db.search.searching import QueryBlock, SearchSettings, open_searcher
from retro_db.store.embedded import is_embedded
from retro_db.store.entries import read_bounded
from retro_db.store.serialize import DecodeError, from_json, parse_json
from retro_db.threads import available_cores

LOCATIONS = "state/locations.json"
# Texts that are searched together: the candidates that they share are read once.
_BLOCK_TEXTS = 64


@dataclass(frozen=True)
class Locations:
    """Paths at which a build found its models: kept beside the database, never in the manifest.

    Attributes:
        encoder: Folder or hub name of the encoder.
    """

    encoder: str


def open_encoder(database: Database, encoder: str | None = None) -> Encoder:
    """Opens the encoder that a database was built with.

    Args:
        database: The database.
        encoder: Folder or hub name of the encoder; by default the one that the build used.

    Raises:
        InputError: The database does not know where its encoder is.
        ModelError: The encoder cannot be loaded, or is not the build's encoder.
    """
    device = CUDA if gpu_count() else CPU
    model = recorded_model(database.manifest.encoder, device, CPU_BATCH_TOKENS)
    name = encoder or _recorded_encoder(database)
    return Encoder(resolve_model(name), model, threads=available_cores())


def _recorded_encoder(database: Database) -> str:
    where = f"{database.folder.url}/{LOCATIONS}"
    try:
        recorded = read_bounded(database.folder, LOCATIONS)
        if recorded is not None:
            return from_json(Locations, parse_json(recorded)).encoder
    except DecodeError as error:
        raise InputError(f"{where}: {error}; give --encoder") from error
    raise InputError(
        f"{database.folder.url}: does not know where its encoder {database.manifest.encoder.model} is; "
        "give --encoder"
    )


def _check_arguments(
    texts: Sequence[str], k: int, exclude: Sequence[tuple[int, int]] | None
) -> None:
    """Refuses arguments of a search that mean nothing."""
    if isinstance(texts, str):
        raise InputError("texts: a single string; give a list of texts")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"texts: number {number} is a {type(text).__name__}; give strings")
        if not _is_unicode(text):
            raise InputError(
                f"texts: number {number} has half of a surrogate pair, which no encoder can read; decode it "
                "with errors='replace'"
            )
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k: {k!r}; give a whole number from 1")
    if exclude is None:
        return
    if len(exclude) != len(texts):
        raise InputError(f"exclude: {len(exclude)} ranges for {len(texts)} texts")
    for number, (first, end) in enumerate(exclude):
        if not 0 <= first <= end:
            raise InputError(
                f"exclude: number {number} goes from {first} to {end}; give a first chunk id, and an end "
                "that is not below it"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Retriever:
    """The database's encoder and index, opened for queries.

    Args:
        database: Opened with `retro_db.open`.
        encoder: Folder or hub name of the encoder; by default the one that the build used.
        memory: Bytes that the index may take; a larger index is opened partition by partition at every
            search, so give it many texts at a time. None for no limit.

    Raises:
        ModelError: The encoder cannot be found, or is not the build's encoder.
        DamagedFileError: A file of the index is missing, or its size is not what was written.
    """

    def __init__(
        self, database: Database, encoder: str | None = None, memory: int | None = None
    ) -> None:
        self.database = database
        index = database.manifest.index
        self._encoder = open_encoder(database, encoder)
        manifest = database.manifest
        for entry in manifest.index_files:
            database.folder.verified(entry)
        searcher = open_searcher(
            database.folder,
            index.key,
            manifest.template_file,
            manifest.partition_files,
            memory,
            removed=database.removals.chunks,
        )
        settings = SearchSettings(index.nprobe, index.rerank, index.ef_search)
        self._finder = Finder(searcher, self._open_embeddings(), settings)

    def _open_embeddings(self) -> Embeddings:
        """Opens what re-ranks candidates: the kept embeddings, or else their fine codes."""
        database = self.database
        if database.manifest.tables.embeddings or not database.manifest.tables.fine:
            return database.embeddings
        return FineEmbeddings(database.folder.local(FINE_PATH), database.fine_codes)

    def search(
        self, texts: Sequence[str], k: int = 5, exclude: Sequence[tuple[int, int]] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest chunks of texts, without the removed ones.

        Args:
            texts: Queries, embedded as chunks are: with the same prompt, cut at the same length.
            k: Number of neighbors of a text, at least 1.
            exclude: For each text, a range of chunk ids, first to end - 1, that is passed over; an empty one
                passes over none.

        Returns:
            ids int64 [n, k] by ascending (distance, id), and squared L2 distances float32 [n, k]. Rows
            with fewer neighbors are padded with -1 and infinity; a text without any WordPiece has none.

        Raises:
            InputError: `texts` is a string, a text is none or has half of a surrogate pair, `k` is below 1,
                or `exclude` has another length or a range that ends before it begins.
            ModelError: The model gives a text an embedding that float16 cannot hold.
            DatabaseReplacedError: Another build has replaced the database since it was opened.
        """
        _check_arguments(texts, k, exclude)
        # Queries are rounded to float16 like stored embeddings: a stored chunk is at distance 0 of itself.
        stored = store_embeddings(self._encoder.encode(texts))
        queries = stored.astype(np.float32)
        ids = np.full((len(texts), k), -1, np.int64)
        distances = np.full((len(texts), k), np.inf, np.float32)
        rows = np.flatnonzero(is_embedded(stored))
        if exclude is None:
            starts = range(0, len(rows), _BLOCK_TEXTS)
            pieces = [rows[start : start + _BLOCK_TEXTS] for start in starts]
            blocks = [QueryBlock(queries[piece]) for piece in pieces]
        else:
            pieces = [rows[[number]] for number in range(len(rows))]
            blocks = [QueryBlock(queries[[row]], (exclude[row],)) for row in rows]
        settings = self._finder.settings
        finder = replace(self._finder, settings=replace(settings, rerank=max(k, settings.rerank)))
        with ThreadPoolExecutor(available_cores()) as pool:
            neighbors = finder.find(blocks, k, pool)
        for piece, (piece_ids, piece_distances) in zip(pieces, neighbors, strict=True):
            ids[piece], distances[piece] = piece_ids, piece_distances
        self.database.folder.expect_standing()
        return ids, distances
