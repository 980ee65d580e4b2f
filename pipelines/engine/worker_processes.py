"""Worker processes of a local run: started once, kept for every stage, gone with their driver."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import Synchronized

from retro_db.errors import ExecutionError
from retro_db.threads import begin_worker


@dataclass(frozen=True)
class _Pool:
    """Worker processes, which exit when the driver closes its end of the pipe."""

    executor: ProcessPoolExecutor
    line: Connection


_pools: dict[int, _Pool] = {}
_guard = threading.Lock()


def submit(processes: int, do: Callable[..., None], *arguments: object) -> Future[None]:
    """Has one of the processes do something, when its turn comes.

    Args:
        processes: How many there are; a first call starts them.
        do: A module-level function.
        *arguments: Its arguments, picklable.

    Raises:
        ExecutionError: One of them is dead.
    """
    with _guard, _telling():
        if processes not in _pools:
            _pools[processes] = _start(processes)
        return _pools[processes].executor.submit(do, *arguments)


def wait_for(submitted: Iterable[Future[None]]) -> None:
    """Waits until all is done.

    Raises:
        ExecutionError: A process was killed, or ended by itself.
        Exception: Whatever a call raised.
    """
    with _telling():
        for future in submitted:
            future.result()


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise ExecutionError(
            "a worker process ended by itself or was killed, perhaps for want of memory; give fewer "
            "--workers, or run the same command again"
        ) from error


def stop() -> None:
    """Ends all processes as they are: every commit is whole. The next call starts others."""
    with _guard:
        for pool in _pools.values():
            pool.line.close()
            pool.executor.shutdown(cancel_futures=True)
        _pools.clear()


def _start(processes: int) -> _Pool:
    # Each is forked from a process that has imported everything, and done nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded())
    # Its start unblocks what is blocked below.
    resource_tracker.ensure_running()
    # A terminal interrupts the driver's children with it; what they end for is the driver's end. They
    # inherit the mask: a handler of their own would come after seconds of imports.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    end, line = context.Pipe(duplex=False)
    number = context.Value("i", 0)
    return _Pool(ProcessPoolExecutor(processes, context, _begin, (number, end)), line)


def _preloaded() -> list[str]:
    """Modules that are imported once for all processes: ours that the driver needs, and the encoder's."""
    packages = {__name__.split(".")[0], "retro_db"}
    modules = [name for name in sys.modules if name.split(".")[0] in packages]
    return [*(name for name in modules if not name.endswith("__main__")), "transformers"]


def _begin(number: Synchronized[int], end: Connection) -> None:
    """Makes a process a worker, with a number that tells it from its siblings."""
    begin_worker()
    with number.get_lock():
        os.environ["WORKER_ID"] = str(number.value)
        number.value += 1
    threading.Thread(target=_end_with_driver, args=(end,), daemon=True).start()


def _end_with_driver(end: Connection) -> None:
    wait([end])
    # No orderly end: native threads are at work, and nothing of theirs is wanted.
    os._exit(ExecutionError.exit_code)
