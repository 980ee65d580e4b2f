"""Which chunks Megatron-LM's trainer puts into each of its samples.

It shuffles the documents of a corpus, cuts their tokens one after another into samples, shuffles those, and
draws them from several corpora by weight. All of it follows from a seed: see `GPTDataset`, `BlendedDataset`
and `BlendedMegatronDatasetBuilder` in megatron/core/datasets, and `build_sample_idx` and
`build_blending_indices` in its helpers.cpp, of megatron-core 0.11 to 0.15. Here a document is whole chunks,
and so is a sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from retro_db.export.corpora import Documents, Line, Places, normalized
from retro_db.reader.mapped import mapped_zeros

# Share of samples that a corpus is asked for beyond its own: mid_level_dataset_surplus.
_SURPLUS = 0.005
# Below this share of an epoch, the last epoch is shuffled by itself.
_LARGE_PART = 0.8


class CorpusSamples:
    """The samples of one split of a corpus, as `GPTDataset` orders them.

    Args:
        documents: Documents of the split.
        count: Number of samples that it is asked for, at least 1.
        chunks: Chunks of a sample.
        chunk_tokens: Tokens of a chunk.
        seed: Seed of the order.
    """

    def __init__(
        self, documents: Documents, count: int, chunks: int, chunk_tokens: int, seed: int
    ) -> None:
        self._chunks = chunks
        length = chunks * chunk_tokens
        epoch = int(documents.rows.sum()) * chunk_tokens
        # A sample takes the next one's first token, too, as its last label.
        epochs = -(-(count * length + 1) // epoch)
        before = ((epochs - 1) * epoch - 1) // length
        apart = epochs > 1 and count - before < int(_LARGE_PART * ((epoch - 1) // length))
        chance = np.random.RandomState(seed)
        order = mapped_zeros(np.int32, epochs * len(documents))
        order.reshape(epochs, -1)[:] = np.arange(len(documents))
        _shuffle(order, len(order) - len(documents) if apart else len(order), chance)
        self._line = Line(documents, chunk_tokens, order)
        total = (epochs * epoch - 1) // length
        self._shuffled = mapped_zeros(np.int64, total)
        self._shuffled[:] = np.arange(total)
        _shuffle(self._shuffled, before if apart else total, chance)

    def of(self, samples: np.ndarray) -> Places:
        """Returns the chunks of samples, and the chunk behind each, whose first token is the last label.

        Args:
            samples: Numbers of the samples, int64 [b].

        Returns:
            Places [b, chunks + 1].
        """
        begins = self._shuffled[samples] * self._chunks
        return self._line.at(begins[:, None] + np.arange(self._chunks + 1))


def _shuffle(items: np.ndarray, first: int, chance: np.random.RandomState) -> None:
    """Shuffles the first `first` items, and the others by themselves."""
    chance.shuffle(items[:first])
    chance.shuffle(items[first:])


def samples_of_each(weights: Sequence[float], count: int) -> list[int]:
    """Returns the number of samples that each corpus is asked for, of `count` samples in all."""
    return [math.ceil(math.ceil(count * weight) * (1 + _SURPLUS)) for weight in normalized(weights)]


def blended(weights: Sequence[float], count: int, block: int) -> Iterator[np.ndarray]:
    """Draws samples from corpora as `BlendedDataset` does: each from the corpus that lags most.

    Args:
        weights: Weights of the corpora.
        count: Number of samples in all.
        block: Number of samples that are drawn at a time.

    Yields:
        Number of the corpus and of the sample in it, int64 [b, 2].
    """
    # Both the builder and the dataset divide by the sum.
    shares = normalized(normalized(weights))
    taken = [0] * len(shares)
    for start in range(0, count, block):
        drawn = np.empty((min(block, count - start), 2), np.int64)
        for row in range(len(drawn)):
            due = max(start + row, 1)
            lags = [share * due - number for share, number in zip(shares, taken, strict=True)]
            corpus = lags.index(max(lags))
            drawn[row] = corpus, taken[corpus]
            taken[corpus] += 1
        yield drawn
