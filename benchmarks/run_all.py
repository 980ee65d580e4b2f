"""Runs every benchmark and writes what each printed, word for word, to the end of RESULTS.md.

    python benchmarks/run_all.py DATABASE [NAME ...] [--texts TEXTS] [--results FILE]

DATABASE is one with kept embeddings, such as the database of `make demo`. With names, such as `reading.py`,
only those run, and the page has only them. Some options are smaller than the defaults, so that two cores are
done in about an hour. TEXTS, a WikiText file, replaces Python's source where texts are read. The text above
the heading in the page is written by hand, and stays. The page says which benchmarks failed, and the exit
code is then 1; the others still run.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from retro_db.threads import available_cores

FOLDER = Path(__file__).resolve().parent
HEADING = "## What `make bench` last printed\n"
BENCHMARKS = (
    "chunking.py --rounds 3",
    "embedding.py --rounds 1 --texts TEXTS",
    "index.py --synthetic 100000 --rounds 3",
    "index.py --memory",
    "recall.py DATABASE",
    "reading.py",
    "stores.py",
    "whole_build.py --texts TEXTS",
)
PACKAGES = ("retro-db", "apache-beam", "faiss-cpu", "numpy", "pyarrow", "torch")


def machine() -> str:
    """Returns processor, memory and versions, in one sentence."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    models = {line.split(": ", 1)[1] for line in lines if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    versions = [f"{name} {version(name)}" for name in PACKAGES]
    return (
        f"{available_cores()} cores of {' and '.join(sorted(models)) or platform.machine()}, "
        f"{memory:.0f} GB of memory, {', '.join([f'Python {platform.python_version()}', *versions])}."
    )


def run(benchmark: str, given: dict[str, Path]) -> tuple[int, str]:
    """Runs a benchmark and shows what it prints; returns its exit code, and a section of the page."""
    name, *options = [str(given.get(word, word)) for word in benchmark.split()]
    load, start = os.getloadavg()[0], time.perf_counter()
    print(f"\n{benchmark}", flush=True)
    printed = []
    command = [sys.executable, "-u", str(FOLDER / name), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            printed.append(line)
    ended = f"failed with exit code {process.returncode}" if process.returncode else "done"
    seconds = time.perf_counter() - start
    end = f"{ended} after {seconds:,.0f} s; load average before it {load:.1f}"
    text = "".join(printed).strip()
    section = f"### `python benchmarks/{benchmark}`\n\n```\n{text}\n```\n\n{end}\n"
    return process.returncode, section


def main() -> None:
    """Runs the benchmarks, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--texts", type=Path, help="a WikiText file instead of Python's source")
    parser.add_argument("--results", type=Path, default=FOLDER / "RESULTS.md")
    options = parser.parse_args()
    chosen = [b for b in BENCHMARKS if not options.names or b.split()[0] in options.names]
    if options.texts is None:
        chosen = [benchmark.removesuffix(" --texts TEXTS") for benchmark in chosen]
    given = {"DATABASE": options.database, "TEXTS": options.texts}
    kept = options.results.read_text("utf-8").split(HEADING)[0].rstrip()
    done = [run(benchmark, given) for benchmark in chosen]
    sections = [HEADING, machine() + "\n", *(section for _, section in done)]
    options.results.write_text(f"{kept}\n\n" + "\n".join(sections), "utf-8")
    sys.exit(any(code for code, _ in done))


if __name__ == "__main__":
    main()
