"""How fast random chunks and their continuations are read from our store, beside other formats.

    python benchmarks/stores.py [--chunks 1000000] [--rounds 7] [--peers NAME,NAME] [--environments FOLDER]

The random tokens of one database are written once more as a bare array, HDF5, Parquet, a dataset of Hugging
Face's `datasets` and MosaicML's MDS, on the same disk. Each store is read in a separate process, as its
documentation recommends for batches of random rows: [N, F] of 4,096 random chunks at a time, N a chunk and F
the one after it, as uint16 [4096, 128]. Stores take turns; a turn is whole batches for at least a second,
the same batches for all, so that slow stores read fewer. Ratios are medians over rounds, with the lowest
and the highest. All files are in the page cache. Ours also looks up where documents end, which the others
leave to the trainer; the bytes of ours hold each chunk's length and document beside its tokens. Formats
that our environment lacks get a separate one, which pip fills.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from databases import write_database
from peers.environments import ENVIRONMENTS, environment
from peers.process import PeerProcess
from reading import spread

import retro_db

PART_ROWS, READ, BATCHES = 250_000, 4096, 100
OURS = "retro-db"
# Stores that the packages of our environment read.
AT_HOME = (OURS, "np.memmap", "Parquet")
PEERS = ("np.memmap", "HDF5", "Parquet", "datasets", "datasets-arrow", "streaming")


class Store(PeerProcess):
    """A store that a separate process reads.

    Args:
        name: One of PEERS, or ours.
        python: Interpreter of the store's environment.
        tokens: File of the tokens uint16 [chunks, 64].
        place: Folder of the store.
    """

    def __init__(self, name: str, python: Path, tokens: Path, place: Path) -> None:
        place.mkdir(exist_ok=True)
        super().__init__(python, "stores_reader.py", name, tokens, place)
        self.answer("ready")
        files = place / "chunks" if name == OURS else place
        self.bytes = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())

    def rate(self, batches: Path, seconds: float) -> float:
        """Measures rows [N, F] read a second, over at least `seconds`."""
        self.ask(f"{batches} {seconds}")
        return float(self.answer("rate"))


def compare(stores: list[Store], chunks: int, rounds: int, seconds: float, place: Path) -> None:
    """Prints a row for each store."""
    chance = np.random.default_rng(1)
    rates: dict[str, list[float]] = {store.name: [] for store in stores}
    for number in range(rounds + 1):
        np.save(place / "batches.npy", chance.integers(0, chunks - 1, (BATCHES, READ)))
        for store in stores:
            rate = store.rate(place / "batches.npy", seconds)
            # The first round warms up.
            if number:
                rates[store.name].append(rate)
    print("| store | [N, F] a second | ours beside it | bytes a chunk |\n|---|---|---|---|")
    for store in stores:
        theirs, ours = rates[store.name], rates[OURS]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        beside = f"{statistics.median(ratios):,.3g} {spread(ratios)}"
        print(
            f"| {store.name} | {statistics.median(theirs):,.0f} {spread(theirs)} "
            f"| {beside if store.name != OURS else ''} | {store.bytes / chunks:.1f} |"
        )


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, at least")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    options = parser.parse_args()
    stores = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_database(place / OURS, options.chunks, PART_ROWS)
        database = retro_db.open(str(place / OURS))
        np.save(place / "tokens.npy", database.chunks[np.arange(options.chunks)])
        for store in [OURS, *options.peers.split(",")]:
            home = store in AT_HOME
            python = Path(sys.executable) if home else environment("stores", options.environments)
            stores.append(Store(store, python, place / "tokens.npy", place / store))
        compare(stores, options.chunks, options.rounds, options.seconds, place)
        for opened in stores:
            opened.close()


if __name__ == "__main__":
    main()
