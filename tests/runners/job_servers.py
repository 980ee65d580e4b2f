"""Beam's job servers for the tests, put together from their libraries on Maven Central.

Users let Beam fetch the bundle of its own version, or name one. The tests name one whose parts are
pinned by version and sha256, and which therefore runs on exactly the Spark of the environment.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jgo
import pyspark

LOCKS = Path(__file__).parent
SPARK = "org.apache.beam:beam-runners-spark-3:2.62.0"
FLINK = "org.apache.beam:beam-runners-flink-1.19:2.62.0"
# A manifest's lines have at most 72 bytes; what is longer goes on behind a space.
_LINE = 70
_STAGED = ("beam-", "args4j-", "byte-buddy-", "classgraph-", "joda-time-")


@dataclass(frozen=True)
class SparkJobServer:
    """Attributes:
    jar: What `--spark_job_server_jar` names.
    staged: What executors need of it beside Spark.
    """

    jar: Path
    staged: list[Path]


def spark_job_server(folder: Path) -> SparkJobServer:
    """The job server, beside the classes of the pyspark that is installed."""
    beam = _jars(SPARK, LOCKS / "spark.lock")
    spark = sorted((Path(pyspark.__file__).parent / "jars").glob("*.jar"))
    # What both bring is to be Spark's, but for Guava, whose old one there lacks what Beam calls.
    guava = [jar for jar in beam if jar.name.startswith("guava-")]
    staged = [jar for jar in beam if jar.name.startswith(_STAGED) and "google" not in jar.name]
    main = "org.apache.beam.runners.spark.SparkJobServerDriver"
    return SparkJobServer(_write(folder / "spark.jar", main, [*guava, *spark, *beam]), staged)


def flink_job_server(folder: Path) -> Path:
    """The job server, with the cluster that it can start within itself."""
    jars = _jars(FLINK, LOCKS / "flink.lock")
    return _write(folder / "flink.jar", "org.apache.beam.runners.flink.FlinkJobServerDriver", jars)


def _jars(artifact: str, lock: Path) -> list[Path]:
    """An artifact and what it depends on, from Maven Central or the local Maven cache."""
    environment = jgo.build(artifact)
    got = [
        f"{jar.groupId}:{jar.artifactId}:{jar.version} {jar.sha256}"
        for jar in environment.lockfile.dependencies
    ]
    assert sorted(got) == lock.read_text("ascii").splitlines(), f"{artifact}: not what {lock} pins"
    return list(environment.all_jars)


def _write(path: Path, main: str, jars: Sequence[Path]) -> Path:
    """A jar that holds nothing but the names of others."""
    fields = {
        "Manifest-Version": "1.0",
        "Main-Class": main,
        "Class-Path": " ".join(jar.resolve().as_uri() for jar in jars),
    }
    lines = [f"{name}: {value}" for name, value in fields.items()]
    text = "".join(f"{_folded(line)}\r\n" for line in lines)
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", text)
    return path


def _folded(line: str) -> str:
    pieces = [line[start : start + _LINE] for start in range(0, len(line), _LINE)]
    return "\r\n ".join(pieces)
