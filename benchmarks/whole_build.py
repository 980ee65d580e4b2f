"""Our whole build beside RETRO-pytorch 0.3.9's, from text files to stored neighbors.

    python benchmarks/whole_build.py [--texts FILE] [--rounds 5] [--environments FOLDER]

Both read the same folder of text files, one a document: articles of a WikiText file, or modules of Python's
own source. Both use MiniLM, its WordPieces as tokens, 10 neighbors, the same torch and two cores. Ours is
`retro-db build`; RETRO-pytorch does what its trainer does first, in an environment of its own that pip
fills. They take turns; seconds are those of the whole process, ratios medians over rounds, with the lowest
and the highest. Seconds of processors tell the work, however busy the machine is. RETRO-pytorch leaves its
index to autofaiss, which tunes and tries it for some seconds; a second ratio leaves those out of its time,
and nothing out of ours. Memory is what all processes of a build hold at once, seen twenty times a second,
pages that they share counted for each. Where the processor multiplies bfloat16, ours builds a second
time in each round, with `encoder.dtype: bfloat16`.

Recall@10 is told against exact search over each side's own embeddings, other documents only, in NumPy. Last
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
    "index": ("train", "encode", "assemble", "sample", "truth", "tune"),
    "neighbors": ("neighbors",),
}
TUNING = ("sample", "truth", "tune")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Run:
    """One whole build.

    Attributes:
        seconds: Of the process.
        work: Seconds of processors, of all its processes.
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
    """What a build left.

    Attributes:
        keys: float32 [n, d]; zeros where a chunk has none.
        documents: Document of each chunk, [n].
        neighbors: Ids [n, K]; -1 where there is none.
    """

    keys: np.ndarray
    documents: np.ndarray
    neighbors: np.ndarray


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it."""
    words = Path("/proc/cpuinfo").read_text("utf-8").split()
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(words)


def run_ours(texts: Path, place: Path, dtype: str) -> Run:
    """`retro-db build` on a folder of texts."""
    settings = {
        "output": str(place / "db"),
        "corpus": [{"name": "texts", "paths": [str(texts / "*.txt")]}],
        "tokenizer": {"path": str(encoder_folder())},
        "encoder": {"model": str(encoder_folder()), "dtype": dtype},
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
    """RETRO-pytorch on the same folder."""
    run = measured(peer_command(python, "build", texts, place), place / "log.txt")
    return replace(run, stages=json.loads((place / "stages.json").read_text("utf-8")))


def peer_command(python: Path, task: str, texts: Path, place: Path) -> list[str]:
    """What starts RETRO-pytorch's script."""
    script = Path(__file__).parent / "peers" / "retro_pytorch_build.py"
    return [str(python), str(script), task, str(texts), str(place), str(encoder_folder()), str(K)]


def measured(command: list[str], log: Path) -> Run:
    """Runs a command whose stages are told elsewhere."""
    start, before, memory = time.perf_counter(), processor_seconds(), 0
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            memory = max(memory, held_by(process.pid))
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command}: {log.read_text('utf-8')[-3000:]}")
    return Run(seconds, processor_seconds() - before, memory, {})


def processor_seconds() -> float:
    """Of all processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def held_by(process: int) -> int:
    """Bytes in memory of a process and of those that it started; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
        tasks = list(Path(f"/proc/{process}/task").glob("*/children"))
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return PAGE * pages + sum(map(held_by, children))


def built_by_us(place: Path) -> Built:
    """Reads our database."""
    database = retro_db.open(str(place / "db"))
    every = np.arange(len(database))
    keys = database.embeddings[every].astype(np.float32)
    return Built(keys, database.chunks.documents(every), database.neighbors[every])


def built_by_peer(place: Path) -> Built:
    """Reads RETRO-pytorch's files, whose shapes lie beside them."""
    count = json.loads((place / "stats.json").read_text("utf-8"))["chunks"]
    keys = np.fromfile(place / "chunks.dat.embedded", np.float32).reshape(count, -1)
    documents_of_chunks = np.fromfile(place / "documents.dat", np.int32, count)
    neighbors = np.fromfile(place / "chunks.knn.dat", np.int32).reshape(count, K)
    return Built(keys, documents_of_chunks, neighbors)


def recall(built: Built) -> float:
    """Recall@10 among other documents; what is as near as the tenth counts as found."""
    keyed = built.keys.any(axis=1)
    norms = (built.keys**2).sum(axis=1)
    shares = []
    for row in np.flatnonzero(keyed):
        exact = norms + norms[row] - 2 * built.keys @ built.keys[row]
        exact[~keyed | (built.documents == built.documents[row])] = np.inf
        tenth = np.partition(exact, K - 1)[K - 1]
        ids = built.neighbors[row]
        shares.append(np.mean((ids >= 0) & (exact[ids] <= tenth + 1e-4 * norms[row])))
    return float(np.mean(shares))


def write_texts(texts: list[str], folder: Path) -> Path:
    """A file for each document."""
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:06}.txt").write_text(text, "utf-8")
    return folder


def print_stages(runs: dict[str, list[Run]]) -> None:
    """A row for each stage, medians over rounds."""
    rows: dict[str, Callable[[Run], float]] = {
        **{stage: lambda run, stage=stage: run.stages[stage] for stage in STAGES},
        "of the index: tuning and trying it": lambda run: run.stages["tuning"],
        "the rest: starting, checks, ending": lambda run: run.seconds - run.staged,
        "whole process": lambda run: run.seconds,
        "of all processors": lambda run: run.work,
    }
    print("\n| seconds | " + " | ".join(runs) + " |\n|---|" + "---|" * len(runs))
    for title, take in rows.items():
        cells = [statistics.median(map(take, own)) for own in runs.values()]
        print(f"| {title} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    held = [statistics.median(run.memory for run in own) / 1e6 for own in runs.values()]
    print("| peak memory, MB | " + " | ".join(f"{megabytes:,.0f}" for megabytes in held) + " |\n")


def print_ratios(ours: list[Run], peers: list[Run]) -> None:
    """How much more RETRO-pytorch takes."""
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
        found = [ratio(own, peer) for own, peer in zip(ours, peers, strict=True)]
        print(f"{title}: {statistics.median(found):.3f} {spread(found)}")


def print_built(ours: Built, peer: Built, looked: dict) -> None:
    """What both left, and what is in RETRO-pytorch's files.

    Args:
        ours: What is compared.
        peer: With what.
        looked: What RETRO-pytorch's script counted.
    """
    short = [int((built.neighbors < 0).any(axis=1).sum()) for built in (ours, peer)]
    print(f"chunks: {len(ours.keys):,}, {PEER} {len(peer.keys):,}")
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
    """Measures and prints."""
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
            told = ", ".join(f"{side} {own[-1].seconds:.1f} s" for side, own in runs.items())
            print(f"round {number + 1}: {told}", flush=True)
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
