"""How many WordPieces of a batch a GPU takes: tried before anything is embedded."""

from __future__ import annotations

import numpy as np
import torch

from retro_db.encoder.encoder import Encoder
from retro_db.errors import DeviceMemoryError

# On any card that we know of, larger batches do not run faster.
LARGEST = 131_072
SMALLEST = 1_024
# Share of the free memory that a probe may take: other widths of batches fragment the memory.
_SHARE = 0.7


def find_budget(encoder: Encoder) -> int:
    """Finds the largest power of two of WordPieces, up to a limit, whose batches fit with room to spare.

    Powers of two, so that cards of a kind find the same budget, and so write the same bytes.

    Args:
        encoder: An encoder on a CUDA device.

    Returns:
        A value for `encoder.batch_tokens`.

    Raises:
        DeviceMemoryError: Even the smallest batch does not fit.
    """
    budget = SMALLEST
    try_budget(encoder, budget)
    while budget < LARGEST and _has_room(encoder, 2 * budget):
        budget *= 2
    return budget


def try_budget(encoder: Encoder, budget: int) -> None:
    """Runs the largest batches of a budget: one of the longest texts, and one of short texts.

    Args:
        encoder: The encoder.
        budget: Padded WordPieces of a batch.

    Raises:
        DeviceMemoryError: A batch does not fit.
    """
    encoder.device.use()
    # Of models that take thousands, no chunk is as long.
    longest = min(encoder.model.max_length, budget)
    for width in (longest, min(16, longest)):
        rows = max(1, budget // width)
        lengths = np.full(rows, width, np.int64)
        # One row is shorter, so that attention needs its mask.
        lengths[0] = width - 1
        ids, weights = np.zeros((rows, width), np.int64), np.full((rows, width), 1 / width)
        with encoder.naming_the_budget(rows, width):
            start = encoder.device.mark()
            encoder.device.fetch(encoder.forward(ids, weights.astype(np.float32), lengths))
            encoder.device.seconds(start, encoder.device.mark())


def _has_room(encoder: Encoder, budget: int) -> bool:
    """Whether the largest batches of a budget leave memory free."""
    device = encoder.device.name
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        try_budget(encoder, budget)
    except DeviceMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    needed = torch.cuda.max_memory_allocated(device) - before
    free, _ = torch.cuda.mem_get_info(device)
    return needed < _SHARE * free
