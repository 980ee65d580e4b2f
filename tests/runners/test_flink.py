"""A whole build on Flink's own cluster within its job server gives the bytes of a local build."""

from __future__ import annotations

from pathlib import Path

from runners.builds import check_equals_local
from runners.job_servers import flink_job_server


def test_the_same_bytes(tmp_path: Path) -> None:
    jar = flink_job_server(tmp_path)
    options = ["--runner=FlinkRunner", f"--flink_job_server_jar={jar}", "--parallelism=2"]
    check_equals_local(tmp_path, *options, "--environment_type=LOOPBACK")
