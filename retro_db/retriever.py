"""Search by text, for evaluation and sampling; needs the extra `build`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from retro_db.database import Database
from retro_db.encoder.encoding import Encoder
from retro_db.encoder.models import (
    CPU,
    CPU_BATCH_TOKENS,
    CUDA,
    EncoderModel,
    gpu_count,
    resolve_model,
)
from retro_db.errors import InputError
from retro_db.index.filling import partition_path
from retro_db.index.searching import Searcher
from retro_db.index.training import PATH as TEMPLATE_PATH
from retro_db.neighbors import find_neighbors
from retro_db.threads import available_cores

LOCATIONS = "state/locations.json"


@dataclasses.dataclass(frozen=True)
class Locations:
    """Where a build found its models: kept beside the database, never in the manifest."""

    encoder: str


class Retriever:
    """The database's encoder and index, opened for queries.

    Args:
        database: Opened with `retro_db.open`, with its embeddings kept.
        encoder: Folder or hub name of the encoder; where the build found it, if left out.

    Raises:
        ModelError: The encoder cannot be found, or is another one than the build's.
        DatabaseError: The embeddings were not kept.
    """

    def __init__(self, database: Database, encoder: str | None = None) -> None:
        self.database = database
        info, index = database.manifest.encoder, database.manifest.index
        name = encoder or self._recorded_encoder()
        model = EncoderModel(
            sha256=info.sha256,
            dimension=info.dimension,
            pooling=info.pooling,
            max_length=info.max_length,
            batch_tokens=CPU_BATCH_TOKENS,
            device=CUDA if gpu_count() else CPU,
            dtype=info.dtype,
        )
        self._encoder = Encoder(resolve_model(name), model, threads=available_cores())
        folder = database.folder
        self._searcher = Searcher(
            folder.local(TEMPLATE_PATH),
            [folder.local(partition_path(number)) for number in range(index.partitions)],
            index.key,
            index.nprobe,
        )
        self._keys = database.embeddings

    def _recorded_encoder(self) -> str:
        try:
            recorded = json.loads(self.database.folder.read(LOCATIONS))
        except FileNotFoundError as error:
            raise InputError(
                f"{self.database.folder.url}: does not know where its encoder "
                f"{self.database.manifest.encoder.model} is; give --encoder"
            ) from error
        return str(recorded["encoder"])

    def search(
        self, texts: Sequence[str], k: int = 5, exclude: Sequence[tuple[int, int]] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest chunks of texts.

        Args:
            texts: Queries, cut at the encoder's `max_length`.
            k: Neighbors of a text.
            exclude: For each text, a range of chunk ids, first to end - 1, not to be found.

        Returns:
            ids int64 [n, k] by ascending (distance, id), -1 where there are fewer or the text has no
            WordPiece, and squared L2 distances float32 [n, k], infinity there.

        Raises:
            InputError: `texts` is a string, or `exclude` has another length.
        """
        if isinstance(texts, str):
            raise InputError("texts: a single string; give a list of texts")
        if exclude is not None and len(exclude) != len(texts):
            raise InputError(f"exclude: {len(exclude)} ranges for {len(texts)} texts")
        # Stored keys are float16: so are queries, so that a stored chunk is at distance 0 of itself.
        keys = self._encoder.encode(texts).astype(np.float16).astype(np.float32)
        ids = np.full((len(texts), k), -1, np.int64)
        distances = np.full((len(texts), k), np.inf, np.float32)
        rerank = max(k, self.database.manifest.index.rerank)
        keyed = np.flatnonzero(keys.any(axis=1))
        groups = [(keyed, None)] if exclude is None else [([row], exclude[row]) for row in keyed]
        for rows, own in groups:
            if len(rows):
                ids[rows], distances[rows] = find_neighbors(
                    keys[rows], own, self._searcher, self._keys, k, rerank
                )
        return ids, distances
