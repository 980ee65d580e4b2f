"""Which runner executes a stage, with how many workers and threads."""

from __future__ import annotations

import difflib
import functools
import io
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from retro_db.errors import ExecutionError, InputError, RetroDBError, error_named, of_environment
from retro_db.store.folder import Folder
from retro_db.threads import Share

from . import worker_processes
from .beam import DebugOptions, GoogleCloudOptions, PipelineOptions, StandardOptions, beam
from .briefs import BRIEFS, Brief, ReadBrief
from .commit import RunTasks
from .failure_records import FAILURES, read_failures
from .jobs import Job, Placement, Task

log = logging.getLogger(__name__)

LOG = "state/build.log"
# Beam hands an error over as the text of its trace.
_OURS = re.compile(r"(?:retro_db\.errors\.)(\w+): (.*?)(?: \[while running .*)?$")
_NO_MEMORY = re.compile(r"bad_alloc|can't allocate memory|MemoryError|can't start new thread")
_LOCAL = ("DirectRunner", "FnApiRunner")
_OF_LOCAL = ("--direct_running_mode", "--direct_num_workers")
# Runners with a Java job server. Unless told how long to keep workers, one starts a process for every
# task: 156 instead of 12 in a small build on Spark.
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
        workers: Number of tasks that run side by side on a machine. By default one on this machine, and
            elsewhere one on every core, as most engines do.
        beam_options: Options of Beam, from behind `--` on the command line.
    """

    workers: int | None = None
    beam_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses options that Beam would ignore with a warning that nobody sees.

        Raises:
            InputError: An option that no runner here reads. Job servers have options of their own.
        """
        if self.beam_options and self.runner not in _KEEPING:
            _refuse_unknown(self.beam_options)

    @functools.cached_property
    def runner(self) -> str:
        """The name of Beam's runner."""
        return self.options().view_as(StandardOptions).runner

    @property
    def is_local(self) -> bool:
        """Whether the tasks run on this machine."""
        return self.runner == "FnApiRunner"

    def share(self, tasks: int, placement: Placement | None = None) -> Share:
        """What each task of a stage has of its machine's cores.

        Args:
            tasks: Number of tasks of the stage.
            placement: Where they run.
        """
        if tasks == 1:
            return Share(tasks=1)
        if placement and placement.alone and self.runner in ("FnApiRunner", "DataflowRunner"):
            return Share(tasks=1)
        if self.is_local:
            return Share(min(self.workers or 1, max(tasks, 1)))
        return Share(self.workers)

    def options(self) -> PipelineOptions:
        """Beam's options.

        Raises:
            InputError: The runner is unknown, or known to lose data, or an option is `--workers`'s.
        """
        given = PipelineOptions(list(self.beam_options), save_main_session=False)
        runner = given.view_as(StandardOptions).runner or "FnApiRunner"
        if runner not in _RUNNERS:
            reason = "loses elements silently" if runner == "DaskRunner" else "is not known"
            raise InputError(f"--runner={runner} {reason}; use one of {', '.join(_RUNNERS)}")
        if runner in _LOCAL:
            for option in self.beam_options:
                if option.startswith(_OF_LOCAL):
                    raise InputError(f"{option}: leave it out; --workers N says how many work here")
            # Beam's DirectRunner would first try to download Prism. Tasks run outside the main thread, where
            # signals arrive: Beam would turn what a handler raises inside a task into its own error.
            local = ["--direct_running_mode=multi_threading", "--runner=FnApiRunner"]
            arguments = [*self.beam_options, *local]
        elif runner in _KEEPING:
            arguments = [_KEEP_WORKERS, *self._job_server(), *self.beam_options]
        else:
            return given
        return PipelineOptions(arguments, save_main_session=False)

    def _job_server(self) -> list[str]:
        """Options that make the command which starts the Java job server the same for every stage.

        Beam starts a server for each pipeline, keeps it until the driver ends, and takes the one that it
        has where the commands are equal.
        """
        return [f"--job_port={self._job_port}", f"--artifacts_dir={self._artifacts.name}"]

    @functools.cached_property
    def _job_port(self) -> int:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            return int(free.getsockname()[1])

    @functools.cached_property
    def _artifacts(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="retro-db-", ignore_cleanup_errors=True)

    def run(self, job: Job, tasks: Sequence[Task], placement: Placement) -> None:
        """Runs the tasks to their end.

        Args:
            job: Job of the stage.
            tasks: Tasks to run.
            placement: Where they run.

        Raises:
            RetroDBError: What a task raised.
            ExecutionError: The engine failed, or a task in a way that nobody foresaw.
        """
        folder = job.folder
        folder.remove(FAILURES)
        path = log_path(folder)
        pipeline = self.pipeline(job, tasks, placement)
        # Beam's workers print the traces of what they raise; those go to the log.
        trace = io.StringIO()
        try:
            with redirect_stderr(trace), _descriptor_to(Path(path)), pipeline:
                pass  # leaving runs it
        except KeyboardInterrupt:
            sys.stderr = cast(TextIO, _MainThreadAlone(sys.stderr))
            raise
        except Exception as error:  # runners raise whatever a worker raised, as their own classes
            worker_processes.stop()
            log.exception("stage %s failed: %s", job.name, trace.getvalue())
            for failure in read_failures(folder):
                raise _traced(failure, path) from error
            raise _traced(_unforeseen(job.name, error), path) from error
        for failure in read_failures(folder):
            # A failure that a retry mended does not count.
            if not isinstance(failure, ExecutionError):
                raise failure
        folder.remove(BRIEFS)

    def pipeline(self, job: Job, tasks: Sequence[Task], placement: Placement) -> beam.Pipeline:
        """The pipeline of one stage, ready to run; the briefs of its workers are written.

        Args:
            job: Job of the stage.
            tasks: Tasks to run.
            placement: Where they run.
        """
        brief = Brief.write(job.folder, "job", [job])
        workers = self.workers or 1
        processes = workers if self.is_local and workers > 1 and not placement.alone else 0
        pipeline = beam.Pipeline(options=self._stage_options(job.name, placement))
        _ = (
            pipeline
            | f"{job.name} tasks" >> ReadBrief(Brief.write(job.folder, "tasks", tasks))
            | job.name >> RunTasks(job.name, brief, placement, processes)
        )
        return pipeline

    def _stage_options(self, stage: str, placement: Placement) -> PipelineOptions:
        options = self.options()
        if options.view_as(StandardOptions).runner != "DataflowRunner":
            return options
        # Names of jobs at work differ, and a dead driver's may still be.
        cloud = options.view_as(GoogleCloudOptions)
        cloud.job_name = f"{cloud.job_name or 'retro-db'}-{stage}-{uuid.uuid4().hex[:8]}"
        # A process for every core, and a task for every process.
        debug = options.view_as(DebugOptions)
        debug.number_of_worker_harness_threads = debug.number_of_worker_harness_threads or 1
        if placement.alone:
            debug.add_experiment("no_use_multiple_sdk_containers")
        return options


def _refuse_unknown(options: Sequence[str]) -> None:
    for option in options[:1]:
        if option.startswith("--"):
            continue
        if "=" in option:
            raise InputError(f"{option}: after -- go options of Beam, such as --runner=SparkRunner")
        raise InputError(
            f"{option}: is one argument too many; leave it out (options of Beam go after --, such as "
            "--runner=SparkRunner)"
        )
    parsed = PipelineOptions(list(options))
    known = parsed.get_all_options()
    for name in sorted(parsed.get_all_options(retain_unknown_options=True).keys() - known.keys()):
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean --{near[0]}?" if near else "retro-db's own options go before --"
        raise InputError(f"--{name} is not an option of Beam; {remedy}")


class _MainThreadAlone:
    """Standard error after a stop: threads of Beam live on for a moment, and print what it did to them.

    Args:
        stream: Standard error, which the main thread writes to as before.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes what the main thread says."""
        is_main = threading.current_thread() is threading.main_thread()
        return self._stream.write(text) if is_main else len(text)


@contextmanager
def _descriptor_to(path: Path) -> Iterator[None]:
    """Sends what worker processes and native libraries print as errors to the log file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _unforeseen(stage: str, error: Exception) -> RetroDBError:
    """The error in the last line of a runner's message, perhaps one of our own classes as text."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if ours := _OURS.match(lines[-1]):
        return error_named(ours[1], ours[2])
    if _NO_MEMORY.search(str(error)):
        return of_environment(MemoryError(stage))
    return ExecutionError(
        f"{stage}: {type(error).__name__}: {lines[-1][:300]}; mend the cause and run the same command "
        "again"
    )


def _traced(error: RetroDBError, path: str) -> RetroDBError:
    """The same error; one of the environment names the file with the runner's traces."""
    if isinstance(error, ExecutionError):
        return type(error)(f"{error} (traces: {path})")
    return error


def log_path(folder: Folder) -> str:
    """Path of a build's log file: in the database if that is local, else in the working directory."""
    folder.expect_inside(LOG)
    return folder.locate(LOG) if folder.is_local else "retro-db-build.log"
