"""A whole build on a real Spark cluster of two hosts gives the bytes of a local build."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retro_db.store.folder import Folder
from retro_db.store.records import Record, StageRecords
from retro_db_pipelines.commands.demo import encoder_folder
from runners.builds import elsewhere
from runners.cluster import HOSTS, Cluster, spark_cluster
from runners.job_servers import SparkJobServer, spark_job_server
from support.projects import Project, make_project
from support.soak import SOAKING, amount
from support.texts import wikitext

SHARDS = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> SparkJobServer:
    return spark_job_server(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with spark_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """WikiText-2's articles, built on this machine."""
    project = make_project(
        tmp_path_factory.mktemp("local"),
        [*wikitext("valid.txt"), *wikitext("test.txt")] if SOAKING else wikitext("valid.txt")[:30],
        tokenizer={"train": {"vocab_size": 8000}},
        # Its embedding lasts: an executor is killed in the midst of it, after both have begun.
        encoder={"model": str(encoder_folder())},
        chunk={"shard_size": amount(quick=20_000, soak=70_000)},
    )
    assert project.build("--workers", "2") == 0
    return project


@pytest.fixture(scope="module")
def built(
    cluster: Cluster,
    server: SparkJobServer,
    local: Project,
    tmp_path_factory: pytest.TempPathFactory,
) -> Project:
    """The same, built on the cluster."""
    project = elsewhere(local, tmp_path_factory.mktemp("built"))
    with start(cluster, server, project) as build:
        ended_well(build, project)
    return project


def start(cluster: Cluster, server: SparkJobServer, project: Project) -> subprocess.Popen[str]:
    """Starts the build on the cluster, which joins in partitions."""
    command = [sys.executable, "-m", "retro_db_pipelines", "build", str(project.config)]
    command += ["--set", "neighbors.partitions=3", "--"]
    command += ["--runner=SparkRunner", f"--spark_job_server_jar={server.jar}"]
    command += [*cluster.arguments(), *(f"--files_to_stage={jar}" for jar in server.staged)]
    return cluster.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended_well(build: subprocess.Popen[str], project: Project) -> None:
    told, _ = build.communicate()
    log = project.output / "state" / "build.log"
    assert build.returncode == 0, told + log.read_text("utf-8")[-5000:]


def embedded(project: Project) -> list[Record]:
    return list(StageRecords(Folder(str(project.output)), "embed").load().values())


def test_two_executors_give_the_same_bytes(built: Project, local: Project) -> None:
    assert built.files() == local.files()
    records = embedded(built)
    assert len(records) >= SHARDS
    assert {record.host for record in records} == {f"host{number}" for number in HOSTS}


def test_an_executor_is_killed_while_embedding(
    cluster: Cluster, server: SparkJobServer, built: Project, local: Project, tmp_path: Path
) -> None:
    """What comes after the embeddings is kept only where they are the same to the byte."""
    project = elsewhere(built, tmp_path)
    shutil.copytree(built.output, project.output)
    (project.output / "manifest.json").unlink()
    shutil.rmtree(project.output / "embeddings")
    (project.output / "state" / "records" / "embed.jsonl").unlink()
    with start(cluster, server, project) as build:
        while len(embedded(project)) < 3:
            assert build.poll() is None, build.communicate()[0]
            time.sleep(0.05)
        [executor] = cluster.executors(HOSTS[0])
        os.kill(executor, signal.SIGKILL)
        assert len(embedded(project)) < SHARDS - 2, "killed too late"
        ended_well(build, project)
    assert project.files() == local.files()
    assert {record.host for record in embedded(project)} == {f"host{number}" for number in HOSTS}
