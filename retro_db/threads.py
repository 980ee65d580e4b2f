"""The number of threads that the native libraries use: set here, never left to them."""

from __future__ import annotations

import os
from dataclasses import dataclass

# Spinning OpenMP threads on shared cores made training 60 times slower. Read when the library loads,
# so this module is imported before Faiss and torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True
    use_tokenizer_threads(1)


os.register_at_fork(after_in_child=_note_fork)


def begin_worker() -> None:
    """Lets this process use several threads, though it was forked: from one whose libraries had none."""
    global _is_forked
    _is_forked = False


def usable_threads(count: int) -> int:
    """The threads that native libraries may use, of those that are wanted.

    A forked process has one: its libraries believe in the threads of the process that it was forked from,
    and would wait for them forever.

    Args:
        count: Threads that are wanted.
    """
    return 1 if _is_forked else count


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Share:
    """A task's share of the cores of its machine, whichever machine that is.

    Attributes:
        tasks: Number of tasks that run side by side there; None if every core runs one.
    """

    tasks: int | None = None

    @property
    def threads(self) -> int:
        """Threads of the task, on this machine."""
        return max(1, available_cores() // self.tasks) if self.tasks else 1


def use_tokenizer_threads(count: int) -> None:
    """Sets whether the Rust tokenizers of this process use a pool of threads.

    Args:
        count: Threads of a worker. With one, the worker itself encodes the texts, which is also faster:
            threads of a pool wait for one another at the cache of merges.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if usable_threads(count) > 1 else "false"


def use_torch_threads(count: int) -> None:
    """Sets the threads of torch operations started from the calling thread.

    Sets them even if torch reports this number already: Faiss may share torch's OpenMP and set only that
    number, and MKL's products in more threads than OpenMP's differ in their last bits.
    """
    import torch

    torch.set_num_threads(usable_threads(count))


def use_faiss_threads(count: int) -> None:
    """Sets the threads of Faiss calls made from the calling thread."""
    import faiss

    faiss.omp_set_num_threads(usable_threads(count))
