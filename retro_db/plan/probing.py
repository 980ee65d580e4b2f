"""Rates of this very machine, measured in some seconds: what a worker like it would take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

import numpy as np

from retro_db.config import Config
from retro_db.corpus.documents import Document
from retro_db.corpus.estimating import CHARACTERS_PER_TOKEN
from retro_db.corpus.reading import read_shard
from retro_db.corpus.sharding import Shard
from retro_db.encoder.batching import Tokenized
from retro_db.encoder.budget import find_budget
from retro_db.encoder.embedding import WINDOW_ROWS, one_ahead
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.models import CUDA, describe_model, resolve_model
from retro_db.join.keys import Labels
from retro_db.join.partition import Routed
from retro_db.join.scan import nearest_keys
from retro_db.join.setting import JoinSetting
from retro_db.meter import Meter
from retro_db.plan.hours import MeasuredRates
from retro_db.plan.join_plan import planned_setting
from retro_db.threads import available_cores

_KEYS, _MOST_LISTS, _DOCUMENT = 131_072, 4096, 16
_BLOCK = 8192
_SECONDS = 5.0
# Texts that are embedded at a time: a GPU needs many of them to be busy.
_TEXTS, _TEXTS_OF_GPU = 512, WINDOW_ROWS
# Keys lie this far from the center of their list, as a share of what lies between centers.
_SPREAD = 0.5


def probe_rates(
    config: Config, shards: Sequence[Shard], *, lists: int, chunks: int, nprobe: int, dimension: int
) -> MeasuredRates:
    """Measures what this machine embeds and joins in a second, with all of its cores and its GPU.

    Args:
        config: Configuration of the build.
        shards: Shards whose text is embedded; none if there is no corpus yet.
        lists: Number of inverted lists.
        chunks: Number of chunks, N.
        nprobe: Lists that a chunk visits.
        dimension: d of the embeddings.
    """
    setting = planned_setting(config, dimension, nprobe)
    return MeasuredRates(
        chunks_per_second={"embed": _embedding_rate(config, shards)} if shards else {},
        multiplications_per_second=_products_rate(setting, max(1, chunks // lists)),
        device="machine",
        source=f"this machine was probed, {available_cores()} cores",
    )


def _texts(config: Config, shards: Sequence[Shard]) -> Iterator[str]:
    """Yields texts of the corpus about as long as a chunk."""
    length = round(config.chunk.tokens * CHARACTERS_PER_TOKEN)
    for shard in shards:
        for record in read_shard(shard, config.source(shard.source), is_trusted=True):
            if isinstance(record, Document) and record.text is not None:
                text = record.text
                yield from (text[start : start + length] for start in range(0, len(text), length))


def _embedding_rate(config: Config, shards: Sequence[Shard]) -> float:
    """Embeds windows of texts for some seconds: texts a second."""
    model = describe_model(config.encoder)
    encoder = Encoder(resolve_model(config.encoder.model), model, available_cores(), 0)
    if model.batch_tokens is None:
        encoder.model = replace(model, batch_tokens=find_budget(encoder))
    window = _TEXTS_OF_GPU if model.device == CUDA else _TEXTS
    texts = list(islice(_texts(config, shards), window))
    # The first window compiles what the others use.
    encoder.encode(texts)
    start = time.perf_counter()

    def windows() -> Iterator[Tokenized]:
        while time.perf_counter() < start + _SECONDS:
            yield encoder.tokenize(texts)

    ahead = one_ahead(windows()) if encoder.device.ahead else windows()
    count = sum(len(embeddings) for embeddings in encoder.encode_windows(ahead, Meter()))
    return count / (time.perf_counter() - start)


def _products_rate(setting: JoinSetting, keys_per_list: int) -> float:
    """Joins clustered keys with one another: multiplications a second, in memory."""
    random = np.random.default_rng(0)
    lists = min(_MOST_LISTS, max(2, _KEYS // keys_per_list))
    nprobe = min(setting.nprobe, -(-lists // 2))
    centers = random.standard_normal((lists, setting.dimension), np.float32)
    nearest = np.argsort(-(centers @ centers.T), axis=1)[:, :nprobe].astype(np.int32)
    homes = np.arange(_KEYS) % lists
    noise = _SPREAD * random.standard_normal((_KEYS, setting.dimension), np.float32)
    vectors = (centers[homes] + noise).astype(np.float16)
    labels = Labels(np.arange(_KEYS) // lists // _DOCUMENT * lists + homes)
    routed = Routed(np.arange(_KEYS), vectors, nearest[homes], labels, np.ones(_KEYS, bool))
    keys, order = routed.keys(0, lists, setting), np.argsort(homes, kind="stable")
    threads = available_cores()
    step = min(setting.block_rows(threads, _KEYS), _BLOCK)

    def join(row: int) -> int:
        rows = order[row : row + step]
        if time.perf_counter() > deadline:
            return 0
        nearest_keys(keys, routed.visitors(rows, 0, lists), setting.k)
        return len(rows)

    with ThreadPoolExecutor(threads) as pool:
        deadline = float("inf")
        # The first block compiles what the others use.
        join(0)
        start = time.perf_counter()
        deadline = start + _SECONDS
        joined = sum(pool.map(join, range(0, _KEYS, step)))
        seconds = time.perf_counter() - start
    return joined * nprobe * (_KEYS // lists) * setting.dimension / seconds
