"""Which rows and documents are looked at where all would take too long, and what that may miss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retro_db.hashing import fractions_of

# The part of wrong things whose chance to be missed is told.
_WRONG = 0.001


@dataclass(frozen=True)
class Sample:
    """A hashed choice of ids: the same for the same seed, another for another.

    Attributes:
        share: Share of the ids that is chosen, 0 to 1.
        seed: Seed of the choice.
    """

    share: float
    seed: int

    def takes(self, ids: np.ndarray) -> np.ndarray:
        """Whether each id is chosen, bool [n].

        Args:
            ids: int64 [n].
        """
        return (
            np.ones(len(ids), bool)
            if self.share >= 1
            else fractions_of(ids, self.seed) < self.share
        )

    def missing(self, of: int) -> str:
        """Says in words how likely it is that one wrong thing in a thousand stays unseen.

        Args:
            of: Number of ids that there are.
        """
        chance = (1 - self.share) ** max(1, round(_WRONG * of))
        few = min(of, round(1 / _WRONG))
        return f"if 1 of {few:,} is wrong, the chance to have missed all of them is {chance:.1g}"
