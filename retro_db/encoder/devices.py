"""Differences between a CPU and a GPU: moving arrays, waiting, and measuring time."""

from __future__ import annotations

import os
import time
from typing import Any, Protocol

import numpy as np
import torch

from retro_db.errors import InputError
from retro_db.threads import use_torch_threads


def multiplies_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 natively: by AVX-512 or AMX."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Device(Protocol):
    """A device that a model computes on.

    Attributes:
        name: Name of the device in torch.
        ahead: Number of batches that the host starts before it waits for the first of them.
    """

    name: str
    ahead: int

    def use(self) -> None:
        """Makes the calling thread work on the device; called before all other methods."""

    def put(self, array: np.ndarray) -> torch.Tensor:
        """Puts a host array on the device; the copy may still be under way."""

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fetches a device's tensor to the host; complete once a later mark is reached."""

    def mark(self) -> Any:
        """Marks this point in the device's work."""

    def seconds(self, start: Any, end: Any) -> float:
        """Waits for the second mark, and returns the device's time since the first."""


class Cpu:
    """The host itself: nothing moves, and nothing runs ahead.

    Args:
        threads: Number of threads of one forward pass.
    """

    name = "cpu"
    ahead = 0

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def use(self) -> None:
        """Sets the number of threads that torch uses in the calling thread."""
        use_torch_threads(self._threads)

    def put(self, array: np.ndarray) -> torch.Tensor:
        """Returns a tensor over the array's memory."""
        return torch.from_numpy(array)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor itself, which is on the host already."""
        return tensor

    def mark(self) -> float:
        """Returns the host's clock, in seconds."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Returns the seconds between two readings of the clock."""
        return end - start


class Cuda:
    """One GPU, fed through pinned memory.

    Args:
        number: Number of the GPU among the GPUs that this process sees.
    """

    ahead = 2

    def __init__(self, number: int) -> None:
        self.name = f"cuda:{number}"
        self._process = os.getpid()

    def use(self) -> None:
        """Selects the GPU: otherwise pinned memory would belong to the first GPU, with a context there.

        Raises:
            InputError: This process was forked from the one that opened the encoder; CUDA does not take it.
        """
        if os.getpid() != self._process:
            raise InputError(
                "encoder.device: an encoder on a GPU cannot be used in a forked process; start workers by "
                "spawn, and open the encoder there"
            )
        torch.cuda.set_device(self.name)

    def put(self, array: np.ndarray) -> torch.Tensor:
        """Starts the copy to the GPU."""
        return torch.from_numpy(array).pin_memory().to(self.name, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Starts the copy to the host."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """Records an event behind all work that was started."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.name))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Waits for the second event, and reads the device's own clock."""
        end.synchronize()
        return start.elapsed_time(end) / 1000
