"""Our whole build beside RETRO-pytorch 0.3.9's, from text files to stored neighbors.

    python benchmarks/whole_build.py [--texts FILE] [--rounds 5] [--environments FOLDER]

Both read the same folder of text files, one a document: articles of a WikiText file, or modules of Python's
source. Both use MiniLM, its WordPieces as tokens, 10 neighbors, the same torch and two cores. Ours is
`retro-db build`; RETRO-pytorch does what its trainer does first, in a separate environment that pip
fills. They take turns; seconds are of the whole process, ratios medians over rounds, with the lowest
and the highest. Seconds of processors measure the work, however busy the machine is. RETRO-pytorch leaves its
index to autofaiss, which tunes and tries it for some seconds; a second ratio subtracts those from its time,
and nothing from ours. Memory is what all processes of a build hold at once, seen twenty times a second,
pages that they share counted for each. If the processor multiplies bfloat16, ours builds a second
time in each round, with `encoder.dtype: bfloat16`.

Recall@10 is measured against exact search over each side's embeddings, other documents only, in NumPy. Last
come counts from RETRO-pytorch's files: chunks without text, padding, and bytes before and after reading.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from embedding import documents
from peers.environments import ENVIRONMENTS, environment
from reading import spread

import retro_db
from retro_db_pipelines.commands.demo import encoder_folder

K, CORES = 10, 2
OURS, HALVED, PEER = "retro-db", "retro-db, bfloat16", "RETRO-pytorch"
# Stages of our report, by what RETRO-pytorch calls them.
STAGES = {
    "chunk": ("tokenizer", "chunk"),
    "embed": ("embed",),
    "index": ("draw", "train", "encode", "assemble", "sample", "truth", "tune"),
    "neighbors": ("neighbors",),
}
TUNING = ("sample", "truth", "tune")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Run:
    """One whole build.

    Attributes:
        seconds: Seconds of the process.
        work: Seconds of processors, over all its processes.
        memory: Bytes that all its processes held at most.
        stages: Seconds of each stage, and `tuning`, which is a part of `index`.
    """

    seconds: float
    work: float
    memory: int
    stages: dict[str, float]

    @property
    def staged(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages[stage] for stage in STAGES)


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        embeddings: float32 [n, d]; zeros for a chunk without one.
        documents: Document of each chunk, [n].
        neighbors: Ids [n, K]; -1 for a missing neighbor.
    """

    embeddings: np.ndarray
    documents: np.ndarray
    neighbors: np.ndarray


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    words = Path("/proc/cpuinfo").read_text("utf-8").split()
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(words)


def run_ours(texts: Path, place: Path, dtype: str) -> Run:
    """Runs `retro-db build` on a folder of texts."""
    settings = {
        "output": str(place / "db"),
        "corpus": [{"name": "texts", "paths": [str(texts / "*.txt")]}],
        "tokenizer": {"path": str(encoder_folder())},
        # As RETRO-pytorch pools, which knows no Normalize.
        "encoder": {"model": str(encoder_folder()), "dtype": dtype, "normalize": False},
        "neighbors": {"k": K},
    }
    config = place / "config.yaml"
    config.write_text(yaml.safe_dump(settings), "utf-8")
    command = [str(Path(sys.executable).with_name("retro-db")), "build", str(config)]
    run = measured(command, place / "log.txt")
    report = json.loads((place / "db" / "report" / "stages.json").read_text("utf-8"))["stages"]

    def took(names: Sequence[str]) -> float:
        return sum(report[name]["seconds"] for name in names if name in report)

    stages = {stage: took(names) for stage, names in STAGES.items()}
    return replace(run, stages=stages | {"tuning": took(TUNING)})


def run_peer(python: Path, texts: Path, place: Path) -> Run:
    """Runs RETRO-pytorch on the same folder."""
    run = measured(peer_command(python, "build", texts, place), place / "log.txt")
    return replace(run, stages=json.loads((place / "stages.json").read_text("utf-8")))


def peer_command(python: Path, task: str, texts: Path, place: Path) -> list[str]:
    """Returns the command that starts RETRO-pytorch's script."""
    script = Path(__file__).parent / "peers" / "retro_pytorch_build.py"
    return [str(python), str(script), task, str(texts), str(place), str(encoder_folder()), str(K)]


def measured(command: list[str], log: Path) -> Run:
    """Runs a command, and measures all but the seconds of its stages."""
    start, before, memory = time.perf_counter(), processor_seconds(), 0
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            memory = max(memory, memory_of(process.pid))
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command}: {log.read_text('utf-8')[-3000:]}")
    return Run(seconds, processor_seconds() - before, memory, {})


def processor_seconds() -> float:
    """Returns the seconds of processors of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_of(process: int) -> int:
    """Returns the bytes in memory of a process and all processes that it started; 0 once it has ended."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        tasks = list(Path(f"/proc/{process}/task").glob("*/children"))
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return PAGE * pages + sum(map(memory_of, children))


def built_by_us(place: Path) -> Built:
    """Reads our database."""
    database = retro_db.open(str(place / "db"))
    ids = np.arange(len(database))
    embeddings = database.embeddings[ids].astype(np.float32)
    return Built(embeddings, database.chunks.documents(ids), database.neighbors[ids])


def built_by_peer(place: Path) -> Built:
    """Reads RETRO-pytorch's files, with the shapes in the file beside them."""
    count = json.loads((place / "stats.json").read_text("utf-8"))["chunks"]
    embeddings = np.fromfile(place / "chunks.dat.embedded", np.float32).reshape(count, -1)
    documents_of_chunks = np.fromfile(place / "documents.dat", np.int32, count)
    neighbors = np.fromfile(place / "chunks.knn.dat", np.int32).reshape(count, K)
    return Built(embeddings, documents_of_chunks, neighbors)


def recall(built: Built) -> float:
    """Returns recall@10 among other documents; a neighbor as near as the tenth counts as a hit."""
    embeddings = built.embeddings
    embedded = embeddings.any(axis=1)
    norms = (embeddings**2).sum(axis=1)
    shares = []
    for row in np.flatnonzero(embedded):
        exact = norms + norms[row] - 2 * embeddings @ embeddings[row]
        exact[~embedded | (built.documents == built.documents[row])] = np.inf
        tenth = np.partition(exact, K - 1)[K - 1]
        ids = built.neighbors[row]
        shares.append(np.mean((ids >= 0) & (exact[ids] <= tenth + 1e-4 * norms[row])))
    return float(np.mean(shares))


def write_texts(texts: list[str], folder: Path) -> Path:
    """Writes a file for each document."""
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:06}.txt").write_text(text, "utf-8")
    return folder


def print_stages(runs: dict[str, list[Run]]) -> None:
    """Prints a row for each stage, medians over rounds."""
    rows: dict[str, Callable[[Run], float]] = {
        **{stage: lambda run, stage=stage: run.stages[stage] for stage in STAGES},
        "of the index: tuning and trying it": lambda run: run.stages["tuning"],
        "the rest: starting, checks, ending": lambda run: run.seconds - run.staged,
        "whole process": lambda run: run.seconds,
        "of all processors": lambda run: run.work,
    }
    print("\n| seconds | " + " | ".join(runs) + " |\n|---|" + "---|" * len(runs))
    for title, take in rows.items():
        cells = [statistics.median(map(take, rounds)) for rounds in runs.values()]
        print(f"| {title} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    memory = [statistics.median(run.memory for run in rounds) / 1e6 for rounds in runs.values()]
    print("| peak memory, MB | " + " | ".join(f"{megabytes:,.0f}" for megabytes in memory) + " |\n")


def print_ratios(ours: list[Run], peers: list[Run]) -> None:
    """Prints how much more RETRO-pytorch takes than ours."""
    ratios: dict[str, Callable[[Run, Run], float]] = {
        "whole build beside RETRO-pytorch, times as fast": lambda own, peer: (
            peer.seconds / own.seconds
        ),
        "the same, autofaiss's tuning left out of RETRO-pytorch's time": lambda own, peer: (
            (peer.seconds - peer.stages["tuning"]) / own.seconds
        ),
        "processor seconds, times as few": lambda own, peer: peer.work / own.work,
        "peak memory beside RETRO-pytorch": lambda own, peer: own.memory / peer.memory,
    }
    for title, ratio in ratios.items():
        values = [ratio(own, peer) for own, peer in zip(ours, peers, strict=True)]
        print(f"{title}: {statistics.median(values):.3f} {spread(values)}")


def print_built(ours: Built, peer: Built, looked: dict) -> None:
    """Prints what both builds made, and what is in RETRO-pytorch's files.

    Args:
        ours: Result of our build.
        peer: Result of RETRO-pytorch's build.
        looked: Counts of RETRO-pytorch's script.
    """
    short = [int((built.neighbors < 0).any(axis=1).sum()) for built in (ours, peer)]
    print(f"chunks: {len(ours.embeddings):,}, {PEER} {len(peer.embeddings):,}")
    print(f"recall@{K} of {PEER} against the same: {recall(peer):.4f}")
    print(f"chunks with fewer than {K} neighbors: {short[0]:,}, {PEER} {short[1]:,}")
    print(
        f"{PEER}'s chunks of nothing but [CLS], [SEP] and padding: {looked['empty']:,}, stored as "
        f"neighbors {looked['empty_neighbors']:,} times"
    )
    print(
        f"{PEER}'s padding: {looked['padding']:.2%} of the positions that BERT computes; without it "
        f"no element of an embedding changes by more than {looked['moved']:.1e}"
    )
    for name, before in looked["before"].items():
        after = looked["after"][name]
        print(f"{PEER}'s {name}: {before:,} bytes, and {after:,} after one item is read")


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, help="a WikiText file instead of Python's source")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    options = parser.parse_args()
    python = environment("retro-pytorch", options.environments.absolute())
    # All that is started from here stays on them; RETRO-pytorch's threads wait for each other without
    # spinning, as ours do, since importing retro_db has set OMP_WAIT_POLICY.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["HF_HUB_OFFLINE"] = "1"
    sides: dict[str, Callable[[Path, Path], Run]] = {
        OURS: partial(run_ours, dtype="float32"),
        HALVED: partial(run_ours, dtype="bfloat16"),
        PEER: partial(run_peer, python),
    }
    if not multiplies_bfloat16():
        del sides[HALVED]
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        texts = write_texts(documents(options.texts), Path(name) / "texts")
        for number in range(options.rounds):
            places = {side: Path(name) / f"{side}-{number}" for side in sides}
            for side, build in sides.items():
                places[side].mkdir()
                runs[side].append(build(texts, places[side]))
            times = ", ".join(f"{side} {done[-1].seconds:.1f} s" for side, done in runs.items())
            print(f"round {number + 1}: {times}", flush=True)
        built = {side: built_by_us(places[side]) for side in sides if side != PEER}
        peer, place = built_by_peer(places[PEER]), places[PEER]
        measured(peer_command(python, "look", texts, place), place / "look.txt")
        looked = json.loads((place / "look.json").read_text("utf-8"))
    print_stages(runs)
    for side in built:
        print(f"{side}:")
        print_ratios(runs[side], runs[PEER])
        print()
    for side, ours in built.items():
        print(f"recall@{K} of {side} against exact search over other documents: {recall(ours):.4f}")
    print_built(built[OURS], peer, looked)


if __name__ == "__main__":
    main()
