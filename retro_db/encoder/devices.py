"""What differs between a CPU and a GPU: moving arrays, waiting, and measuring time."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
import torch

from retro_db.threads import use_torch_threads


class Device(Protocol):
    """Where a model computes.

    Attributes:
        name: As torch calls it.
        ahead: Batches that the host starts before it waits for the first of them.
    """

    name: str
    ahead: int

    def use(self) -> None:
        """Makes the calling thread work on it, before anything else here."""

    def put(self, array: np.ndarray) -> torch.Tensor:
        """A host array on the device; a copy may still be on its way."""

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """A device's tensor on the host; whole once a later mark is reached."""

    def mark(self) -> Any:
        """This point in the device's work."""

    def seconds(self, start: Any, end: Any) -> float:
        """Waits for the second mark, and returns the device's time since the first."""


class Cpu:
    """The host itself: nothing moves, and nothing runs ahead.

    Args:
        threads: Of one forward pass.
    """

    name = "cpu"
    ahead = 0

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def use(self) -> None:
        """Sets the thread's number of threads."""
        use_torch_threads(self._threads)

    def put(self, array: np.ndarray) -> torch.Tensor:
        """The same memory."""
        return torch.from_numpy(array)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """The difference."""
        return end - start


class Cuda:
    """One GPU, fed through pinned memory.

    Args:
        number: Among those that this process sees.
    """

    ahead = 2

    def __init__(self, number: int) -> None:
        self.name = f"cuda:{number}"

    def use(self) -> None:
        """Otherwise pinned memory would be the first GPU's, and hold a context there."""
        torch.cuda.set_device(self.name)

    def put(self, array: np.ndarray) -> torch.Tensor:
        """Starts the copy."""
        return torch.from_numpy(array).pin_memory().to(self.name, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Starts the copy."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """An event behind all work that was started."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.name))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """The device's own clock."""
        end.synchronize()
        return start.elapsed_time(end) / 1000
