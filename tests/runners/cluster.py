"""A real Spark cluster on this machine: a master, and hosts with a worker and a pool of Python workers."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyspark

from runners.island import Program, address
from support.places import TESTS
from support.processes import children

SPARK_HOME = Path(pyspark.__file__).parent
HOSTS = (1, 2)
_POOL_PORT = 50000
_START_SECONDS = 120


@dataclass(frozen=True)
class Cluster:
    """A running one.

    Attributes:
        folder: Where its logs are.
        pid: Of the process with which everything ends.
    """

    folder: Path
    pid: int

    def start(self, command: list[str], **arguments: object) -> subprocess.Popen[str]:
        """Starts a program where the master is."""
        enter = ["nsenter", f"--target={self.pid}", "--user", "--net", "--pid", "--mount"]
        environment = _environment(0, self.folder)
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [*enter, "--preserve-credentials", *command], env=environment, text=True, **arguments
        )

    def executors(self, host: int) -> list[int]:
        """The executors that run on a host."""
        return [
            process
            for process in children(self.pid)
            if b"CoarseGrainedExecutorBackend" in (line := _command_line(process))
            and address(host).encode() in line
        ]

    def arguments(self) -> list[str]:
        """Beam's options, but for the runner and its jar."""
        return [
            f"--spark_master_url=spark://{address(0)}:7077",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{_POOL_PORT}",
            # As many tasks as there are shards at most, so that a lost executor costs little.
            "--job_server_jvm_properties=-Dspark.default.parallelism=16",
        ]


@contextmanager
def spark_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that is gone afterwards, also if this process is killed."""
    programs = json.dumps([dataclasses.asdict(program) for program in _programs(folder)])
    apart = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
    command = [sys.executable, "-m", "runners.island", programs]
    with subprocess.Popen(
        [*apart, "--mount-proc", *command],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", "the network could not be made"
        cluster = Cluster(folder, children(process.pid)[0])
        try:
            _wait(cluster)
            yield cluster
        finally:
            process.stdin.close()


def _programs(folder: Path) -> list[Program]:
    java = str(SPARK_HOME / "bin" / "spark-class")
    master = "org.apache.spark.deploy.master.Master"
    command = [java, master, "--host", address(0), "--port", "7077"]
    programs = [Program(0, command, _environment(0, folder), str(folder / "master.log"))]
    for host in HOSTS:
        environment = _environment(host, folder)
        worker = [java, "org.apache.spark.deploy.worker.Worker", "--host", address(host)]
        worker += ["--cores", "1", "--memory", "2g", "--work-dir", str(folder / f"worker{host}")]
        worker += [f"spark://{address(0)}:7077"]
        pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
        pool += [f"--service_port={_POOL_PORT}"]
        programs += [
            Program(host, worker, environment, str(folder / f"worker{host}.log")),
            Program(host, pool, environment, str(folder / f"pool{host}.log")),
        ]
    return programs


def _environment(host: int, folder: Path) -> dict[str, str]:
    # The pool starts `python`, which must be this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {
        "PATH": path,
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_CONF_DIR": str(folder),
        "SPARK_LOCAL_DIRS": str(folder / f"local{host}"),
        "SPARK_LOCAL_IP": address(host),
    }


def _wait(cluster: Cluster) -> None:
    """Until every worker has registered with the master."""
    page = (
        "import json, sys, urllib.request as r; "
        "print(json.load(r.urlopen(sys.argv[1]))['aliveworkers'])"
    )
    command = [sys.executable, "-c", page, f"http://{address(0)}:8080/json/"]
    end = time.monotonic() + _START_SECONDS
    while True:
        with cluster.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as asked:
            alive, _ = asked.communicate()
        if alive.strip() == str(len(HOSTS)):
            return
        assert time.monotonic() < end, (cluster.folder / "master.log").read_text("utf-8")
        time.sleep(0.5)


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
