"""Batches of sequences in a shuffled order, for one of several ranks, resumable anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from retro_db.errors import InputError
from retro_db.reader.dataset import RetroDataset
from retro_db.reader.order import Order


class SamplerState(TypedDict):
    """The point that a training run has reached; the same on every rank.

    Attributes:
        epoch: Number of the epoch, from 0.
        position: Number of sequences of the epoch that all ranks together have had.
        seed: Seed of the order.
        sequences: Identity of the dataset that was read.
    """

    epoch: int
    position: int
    seed: int
    sequences: str


class RetroSampler:
    """Numbers of sequences, batch by batch: the `batch_sampler` of a torch `DataLoader`.

    A step takes the next `batch_size` sequences of the epoch for each rank. The order is a function of the
    seed, whatever the number of ranks and the batch size, which may change when a run is resumed.

    By default a source's share of an epoch is its weight's share of all weights, and its sequences come
    again only when all of them have come, in this epoch or a later one. With `weighted=False` every
    sequence comes exactly once in each epoch.

    The first iteration begins at the loaded state, or else at the beginning; each further one begins with
    the next epoch, whether or not the one before was read to its end.

    Args:
        dataset: Dataset whose sequences are numbered.
        batch_size: Sequences of a batch, for each rank.
        rank: Number of this rank, from 0.
        ranks: Number of ranks.
        seed: Seed of the order.
        weighted: Whether the weights of the sources count.
        drop_last: Whether to skip the sequences at an epoch's end that do not fill a batch for each rank.
            Else they are divided among the ranks, of which some may have one batch less.

    Raises:
        InputError: A setting is out of range.
    """

    def __init__(
        self,
        dataset: RetroDataset,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        *,
        weighted: bool = True,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size} is below 1")
        if not 0 <= rank < ranks:
            raise InputError(f"rank: {rank} is not between 0 and ranks - 1 = {ranks - 1}")
        if seed < 0:
            raise InputError(f"seed: {seed} is below 0")
        self.batch_size = batch_size
        self.rank = rank
        self.ranks = ranks
        self.drop_last = drop_last
        self._sources = _Sources.of(dataset)
        weights = self._sources.weights if weighted else None
        self._order = Order(self._sources.counts, weights, seed)
        self._reads = dataset.identity
        self._epoch = 0
        self._position = 0
        self._begun = False

    @property
    def _step(self) -> int:
        """Number of sequences that all ranks together take at once."""
        return self.ranks * self.batch_size

    def __len__(self) -> int:
        """Number of this rank's batches from the present state to the end of the epoch."""
        whole, rest = divmod(len(self._order) - self._position, self._step)
        return whole + bool(not self.drop_last and _share(rest, self.rank, self.ranks)[1])

    def __iter__(self) -> Iterator[list[int]]:
        if self._begun:
            self._epoch, self._position = self._epoch + 1, 0
        self._begun = True
        epoch = self._epoch
        for start in range(self._position, len(self._order), self._step):
            taken = min(len(self._order) - start, self._step)
            if self.drop_last and taken < self._step:
                return
            first, count = _share(taken, self.rank, self.ranks)
            if count:
                positions = np.arange(start + first, start + first + count)
                yield self._sources.sequences(self._order.sequences(epoch, positions)).tolist()

    def state_dict(self, batches: int = 0) -> SamplerState:
        """The point that training has reached after some batches.

        A `DataLoader` draws batches before they are asked for, so only the training loop knows how many
        it has used.

        Args:
            batches: Number of batches of the present epoch that were used since iterating began.

        Returns:
            The state, to be saved beside the model by any of the ranks.
        """
        epoch, position = self._epoch, self._position + batches * self._step
        left = len(self._order) - position
        if left <= 0 or (self.drop_last and left < self._step):
            epoch, position = epoch + 1, 0
        return SamplerState(
            epoch=epoch, position=position, seed=self._order.seed, sequences=self._reads
        )

    def load_state_dict(self, state: SamplerState) -> None:
        """Continues from a state; ranks and batch size may have changed.

        Raises:
            InputError: The state belongs to other sequences or to another seed.
        """
        for name, expected in (("seed", self._order.seed), ("sequences", self._reads)):
            if state[name] != expected:  # type: ignore[literal-required]
                raise InputError(
                    f"state: its {name} is {state[name]}, here it is {expected}"  # type: ignore[literal-required]
                )
        self._epoch, self._position, self._begun = state["epoch"], state["position"], False


def _share(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """The share of `count` sequences that a rank takes: the first, and their number."""
    first = rank * count // ranks
    return first, (rank + 1) * count // ranks - first


@dataclass(frozen=True)
class _Sources:
    """The sources that have sequences, and the places of their sequences in the dataset.

    Attributes:
        weights: Weight of each source.
        counts: Number of sequences of each source.
        firsts: First sequence of each run, ordered by source: int64 [runs].
        ends: Number of sequences up to the end of each of these runs: int64 [runs].
    """

    weights: tuple[float, ...]
    counts: tuple[int, ...]
    firsts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, dataset: RetroDataset) -> _Sources:
        runs = dataset.runs
        names = list(dict.fromkeys(run.source for run in runs))
        runs = sorted(runs, key=lambda run: names.index(run.source))
        return cls(
            tuple(dataset.weights[name] for name in names),
            tuple(sum(run.count for run in runs if run.source == name) for name in names),
            np.array([run.first for run in runs], np.int64),
            np.cumsum([run.count for run in runs], dtype=np.int64),
        )

    def sequences(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers in the dataset of sequences that are numbered source after source: int64 [n]."""
        run = np.searchsorted(self.ends, numbers, side="right")
        return numbers - self.ends[run] + np.diff(self.ends, prepend=0)[run] + self.firsts[run]
