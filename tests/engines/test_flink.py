"""A whole build on Flink's own cluster within its job server gives the bytes of a local build."""

from __future__ import annotations

from pathlib import Path

from conftest import Project, make_project, python_sources

from engines.job_servers import flink_job_server


def test_the_same_bytes(tmp_path: Path) -> None:
    local = make_project(tmp_path, python_sources(30), chunk={"shard_size": 5_000})
    assert local.build() == 0
    output = tmp_path / "flink" / "db"
    output.parent.mkdir()
    project = Project(output.parent, local.texts, local.settings | {"output": str(output)})
    jar = flink_job_server(tmp_path)
    options = ["--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--parallelism=2"]
    assert project.build("--", *options, "--environment_type=LOOPBACK") == 0
    assert project.files() == local.files()
