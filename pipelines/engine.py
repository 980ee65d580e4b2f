"""Which runner executes a stage, with how many workers and threads."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from retro_db.errors import (
    ExecutionError,
    InputError,
    RetroDBError,
    error_named,
    of_environment,
)
from retro_db.store.folder import Folder
from retro_db.threads import available_cores

from .briefs import BRIEFS, Brief, ReadBrief
from .quiet import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    beam,
)
from .shards import FAILURES, Job, Placement, RunShards, Task, read_failures

log = logging.getLogger(__name__)

LOG = "state/build.log"
# Beam hands an error over as the text of its trace.
_OURS = re.compile(r"(?:retro_db\.errors\.)(\w+): (.*?)(?: \[while running .*)?$")
_NO_MEMORY = re.compile(r"bad_alloc|can't allocate memory|MemoryError")
_WORKER_ENDED = (
    "a worker process ended ({}), perhaps for want of memory; give fewer --workers, or run the same "
    "command again"
)
_CLEANING_SECONDS = 10.0
_LOCAL = ("DirectRunner", "FnApiRunner")
# Those of a Java job server. Without a time to keep them, they start a Python process for every task:
# 156 instead of 12 in a small build on Spark.
_KEEPING = ("SparkRunner", "FlinkRunner", "PortableRunner")
_KEEP_WORKERS = "--environment_cache_millis=600000"
_RUNNERS = (
    *_LOCAL,
    "SparkRunner",
    "FlinkRunner",
    "PortableRunner",
    "PrismRunner",
    "DataflowRunner",
)


@dataclass(frozen=True)
class Engine:
    """How stages are executed.

    Attributes:
        workers: Tasks that run side by side on a local run; others take their engine's options.
        beam_options: What stands behind `--` on the command line.
    """

    workers: int = 1
    beam_options: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of one worker: workers times threads is the number of cores."""
        return max(1, available_cores() // self.workers)

    @property
    def is_local(self) -> bool:
        """Whether the tasks run on this machine."""
        return self.options().view_as(StandardOptions).runner == "FnApiRunner"

    def options(self, processes: bool = False) -> PipelineOptions:
        """Beam's options.

        Args:
            processes: Whether local workers are processes rather than threads of this one.

        Raises:
            InputError: The runner is unknown, or known to lose data.
        """
        given = PipelineOptions(list(self.beam_options), save_main_session=False)
        runner = given.view_as(StandardOptions).runner or "FnApiRunner"
        if runner not in _RUNNERS:
            reason = "loses elements silently" if runner == "DaskRunner" else "is not known"
            raise InputError(f"--runner={runner} {reason}; use one of {', '.join(_RUNNERS)}")
        if runner in _LOCAL:
            mode = "multi_processing" if processes else "multi_threading"
            local = [f"--direct_running_mode={mode}", f"--direct_num_workers={self.workers}"]
            # Beam's DirectRunner would first try to download Prism.
            arguments = [*local, *self.beam_options, "--runner=FnApiRunner"]
        elif runner in _KEEPING:
            arguments = [_KEEP_WORKERS, *self.beam_options]
        else:
            return given
        return PipelineOptions(arguments, save_main_session=False)

    def run(self, job: Job, tasks: Sequence[Task], placement: Placement) -> None:
        """Runs the tasks to their end.

        Args:
            job: What to do.
            tasks: With what.
            placement: Where.

        Raises:
            RetroDBError: What a task raised.
            ExecutionError: The engine failed, or a task in a way that nobody foresaw.
        """
        folder = job.folder
        folder.remove(FAILURES)
        log_path = log_place(folder)
        pipeline = self.pipeline(job, tasks, placement)
        # Beam's workers print the traces of what they raise; those go to the log.
        trace = io.StringIO()
        try:
            with (
                redirect_stderr(trace),
                _descriptor_to(Path(log_path)) as standard_error,
                _watching_workers(standard_error, log_path),
                pipeline,
            ):
                pass  # leaving runs it
        except ExecutionError as error:
            raise _traced(error, log_path) from error
        except Exception as error:  # runners raise whatever a worker raised, as their own classes
            log.exception("stage %s failed: %s", job.stage, trace.getvalue())
            for failure in read_failures(folder):
                raise _traced(failure, log_path) from error
            raise _traced(_unforeseen(job.stage, error), log_path) from error
        for failure in read_failures(folder):
            # What a retry mended is no failure.
            if not isinstance(failure, ExecutionError):
                raise failure
        folder.remove(BRIEFS)

    def pipeline(self, job: Job, tasks: Sequence[Task], placement: Placement) -> beam.Pipeline:
        """The pipeline of one stage, not run yet; what its workers are told is written.

        Args:
            job: What to do.
            tasks: With what.
            placement: Where.
        """
        pipeline = beam.Pipeline(options=self._stage_options(job.stage, placement))
        _ = (
            pipeline
            | f"{job.stage} tasks" >> ReadBrief(Brief.write(job.folder, "tasks", tasks))
            | job.stage >> RunShards(job.stage, Brief.write(job.folder, "job", [job]), placement)
        )
        return pipeline

    def _stage_options(self, stage: str, placement: Placement) -> PipelineOptions:
        options = self.options(placement.processes and self.workers > 1)
        if options.view_as(StandardOptions).runner != "DataflowRunner":
            return options
        # Names of jobs at work differ, and a dead driver's may still be.
        cloud = options.view_as(GoogleCloudOptions)
        cloud.job_name = f"{cloud.job_name or 'retro-db'}-{stage}-{uuid.uuid4().hex[:8]}"
        if placement.alone:
            # Else every core has a process with an index of its own in memory.
            debug = options.view_as(DebugOptions)
            debug.add_experiment("no_use_multiple_sdk_containers")
            debug.number_of_worker_harness_threads = 1
        return options


@contextmanager
def _descriptor_to(path: Path) -> Iterator[int]:
    """Sends what worker processes and native libraries print as errors to the log file.

    Yields:
        A descriptor of what standard error was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield before
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def _watching_workers(standard_error: int, log_path: str) -> Iterator[None]:
    """Ends the block when a local worker process dies: Beam would wait for it forever.

    Args:
        standard_error: Where the last line goes if even ending does not end.
        log_path: What that line names.

    Raises:
        ExecutionError: One was killed, or ended by itself.
    """
    died: list[str] = []
    before = threading.excepthook
    # Beam's own cleaning up may wait for the dead as well.
    impatient = threading.Timer(_CLEANING_SECONDS, _end_now, args=(died, standard_error, log_path))
    impatient.daemon = True

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if arguments.thread is None or arguments.thread.name != "run_worker":
            before(arguments)
            return
        died.append(str(arguments.exc_value))
        if len(died) == 1:
            impatient.start()
            os.kill(os.getpid(), signal.SIGINT)

    threading.excepthook = hook
    try:
        yield
    except KeyboardInterrupt as error:
        if not died:
            raise
        raise ExecutionError(_WORKER_ENDED.format(died[0])) from error
    finally:
        impatient.cancel()
        threading.excepthook = before


def _end_now(died: Sequence[str], standard_error: int, log_path: str) -> None:
    """Ends the process as it is: every commit is whole, and the workers notice."""
    message = f"{_WORKER_ENDED.format(died[0])} (traces: {log_path})"
    log.error(message)
    os.write(standard_error, f"error: {message}\n".encode())
    os._exit(ExecutionError.exit_code)


def _unforeseen(stage: str, error: Exception) -> RetroDBError:
    """What a runner's error says in its last line, which may be one of ours as text."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if ours := _OURS.match(lines[-1]):
        return error_named(ours[1], ours[2])
    if _NO_MEMORY.search(str(error)):
        return of_environment(MemoryError(stage))
    return ExecutionError(
        f"{stage}: {type(error).__name__}: {lines[-1][:300]}; mend the cause and run the same command "
        "again"
    )


def _traced(error: RetroDBError, log_path: str) -> RetroDBError:
    """The same error; one of the environment names the file with the runner's traces."""
    if isinstance(error, ExecutionError):
        return type(error)(f"{error} (traces: {log_path})")
    return error


def log_place(folder: Folder) -> str:
    """The log file of a build: in the database, or beside the call where that is no local folder."""
    return folder.locate(LOG) if folder.is_local else "retro-db-build.log"
