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
    """Where a training run stands; the same on every rank.

    Attributes:
        epoch: From 0.
        position: Sequences of the epoch that all ranks together have had.
        seed: Of the order.
        sequences: What there was to read: the dataset's identity.
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

    Iterating begins where the state says, at first at the beginning, and each time after that with the next
    epoch, whether or not the one before was read to its end.

    Args:
        dataset: Whose sequences.
        batch_size: Sequences of a batch, for each rank.
        rank: Which one this is.
        ranks: How many there are.
        seed: Decides the order.
        weighted: Whether the weights of the sources count.
        drop_last: Whether the sequences at an epoch's end that do not fill a batch for each rank are left
            out. Else they are divided among the ranks, of which some may have one batch less.

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
        """Sequences that all ranks together take at once."""
        return self.ranks * self.batch_size

    def __len__(self) -> int:
        """Batches of this rank from where the state stands to the end of the epoch."""
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
        """Where training stands after some batches.

        A `DataLoader` draws batches before they are asked for, so only the training loop knows how many
        it has used.

        Args:
            batches: That were used of the epoch in hand, since iterating began.

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
        """Goes on from a state; ranks and batch size may be others.

        Raises:
            InputError: The state is of other sequences or of another seed.
        """
        for name, own in (("seed", self._order.seed), ("sequences", self._reads)):
            if state[name] != own:  # type: ignore[literal-required]
                raise InputError(
                    f"state: its {name} is {state[name]}, here it is {own}"  # type: ignore[literal-required]
                )
        self._epoch, self._position, self._begun = state["epoch"], state["position"], False


def _share(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """Which of `count` sequences a rank takes: the first, and how many."""
    first = rank * count // ranks
    return first, (rank + 1) * count // ranks - first


@dataclass(frozen=True)
class _Sources:
    """The sources with sequences, and where in the dataset their sequences are.

    Attributes:
        weights: Of each source.
        counts: Sequences of each source.
        firsts: First sequence of each run, ordered by source: int64 [runs].
        ends: Sequences of these runs, summed up: int64 [runs].
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
        """Numbers in the dataset of those that count source after source: int64 [n]."""
        run = np.searchsorted(self.ends, numbers, side="right")
        return numbers - self.ends[run] + np.diff(self.ends, prepend=0)[run] + self.firsts[run]
