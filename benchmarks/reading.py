"""How fast a trainer reads, beside np.memmap, and whether its memory follows the database.

    python benchmarks/reading.py [--chunks 2000000] [--rounds 9]

A database of random tokens is written in files of 250,000 chunks, and its tokens once more as a bare array.
[N, F] of random chunks, 4,096 at a time as a batch of 64 sequences with two neighbors has them, are read from
both in turns; ratios are medians over rounds, with the lowest and the highest. All files are in the page
cache: on a disk, the disk decides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from databases import TOKENS, write_database

import retro_db

PART_ROWS, READ, BATCH = 250_000, 4096, 64


def bare_array(database: retro_db.Database, path: Path) -> np.ndarray:
    """Writes the tokens as one memory-mapped array [chunks, TOKENS]."""
    shape = (len(database), TOKENS)
    array = np.memmap(path, np.uint16, "w+", shape=shape)
    for start in range(0, len(database), PART_ROWS):
        ids = np.arange(start, min(start + PART_ROWS, len(database)))
        array[ids] = database.chunks[ids]
    array.flush()
    return np.memmap(path, np.uint16, "r", shape=shape)


def bare_values(array: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Reads [N, F] without looking up where documents end."""
    following = np.minimum(ids + 1, len(array) - 1)
    return np.concatenate([array[ids], array[following]], axis=1)


def rate(read: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> float:
    """Measures rows read a second."""
    start = time.perf_counter()
    for batch in batches:
        read(batch)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def compare(database: retro_db.Database, array: np.ndarray, rounds: int) -> None:
    """Prints rates of both, and the ratio."""
    chance = np.random.default_rng(0)
    ours, bare = [], []
    for _ in range(rounds):
        batches = [chance.integers(0, len(database), READ) for _ in range(100)]
        bare.append(rate(lambda ids: bare_values(array, ids), batches))
        ours.append(rate(database.chunks.values, batches))
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    print(
        f"[N, F] a second: {statistics.median(ours):,.0f}, np.memmap {statistics.median(bare):,.0f}"
    )
    print(f"[N, F] beside np.memmap: {statistics.median(ratios):.3f} {spread(ratios)}")


def sequences(database: retro_db.Database, rounds: int) -> None:
    """Prints how many sequences of 2,048 tokens with two neighbors a chunk one process reads."""
    dataset = retro_db.RetroDataset(database, seq_len=2048, k=2)
    sampler = retro_db.RetroSampler(dataset, BATCH)
    rates = []
    for _ in range(rounds):
        start, read = time.perf_counter(), 0
        for number, indices in enumerate(sampler):
            read += len(dataset[indices]["tokens"])
            if number == 19:
                break
        rates.append(read / (time.perf_counter() - start))
    print(
        f"sequences of 2,048 tokens with k=2 a second: {statistics.median(rates):,.0f} {spread(rates)}"
    )


def spread(values: list[float]) -> str:
    """Returns the lowest and the highest value in words."""
    return f"({min(values):,.3g} to {max(values):,.3g})"


def memory_of(folder: Path) -> int:
    """Returns the bytes that a new process holds after an epoch, without the files that it maps."""
    done = subprocess.run(
        [sys.executable, __file__, "--read", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout))


def read_all(folder: Path) -> None:
    """Reads an epoch in the process that `memory_of` starts, and prints the bytes that it holds."""
    dataset = retro_db.RetroDataset(retro_db.open(str(folder)), seq_len=2048, k=2)
    for indices in retro_db.RetroSampler(dataset, BATCH):
        _ = dataset[indices]
    status = Path("/proc/self/status").read_text()
    [kibibytes] = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    print(json.dumps(1024 * int(kibibytes)))


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_all(options.read)
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_database(place / "db", options.chunks, PART_ROWS)
        database = retro_db.open(str(place / "db"))
        compare(database, bare_array(database, place / "tokens"), options.rounds)
        sequences(database, options.rounds)
        memory = []
        for number, chunks in enumerate((options.chunks // 10, options.chunks)):
            write_database(place / str(number), chunks, PART_ROWS // 5)
            memory.append(memory_of(place / str(number)))
    print(
        f"memory of a reader, ten times the database beside one: {memory[1] / memory[0]:.3f} "
        f"({memory[1] / 1e6:,.0f} MB)"
    )


if __name__ == "__main__":
    main()
