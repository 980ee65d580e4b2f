"""An exchange between tasks: through files of slices, as the join has it, and through Beam's GroupByKey.

    python benchmarks/exchange.py --kilobytes 800
    python benchmarks/exchange.py --kilobytes 1600 -- --runner=SparkRunner --spark_master_url=local[2]

As many tasks as there are partitions write a slice for each partition; then each partition's task reads its
slices. The ways take turns. Options of Beam stand behind --. Memory is that of this process and of all that
it has started, mapped files apart.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions


@dataclass(frozen=True)
class Exchange:
    """What is exchanged.

    Attributes:
        tasks: Number of tasks before and after the exchange.
        size: Bytes of a slice.
        place: Folder of the files.
    """

    tasks: int
    size: int
    place: str

    def hand_over(self, task: int) -> Iterator[tuple[int, bytes]]:
        """Yields a slice for every partition."""
        for partition in range(self.tasks):
            yield partition, os.urandom(self.size)

    def write(self, task: int) -> Iterator[tuple[int, tuple[str, int]]]:
        """Writes a slice for every partition to one file; yields where each lies."""
        path = f"{self.place}/{task}"
        with open(path, "wb") as file:
            for partition in range(self.tasks):
                file.write(os.urandom(self.size))
                yield partition, (path, partition * self.size)

    def read(self, partition: tuple[int, Iterable[tuple[str, int]]]) -> int:
        """Reads a partition's slices, and counts their bytes."""
        count = 0
        for path, start in partition[1]:
            with open(path, "rb") as file:
                file.seek(start)
                count += len(file.read(self.size))
        return count

    def count(self, partition: tuple[int, Iterable[bytes]]) -> int:
        """Counts the bytes of a partition's slices."""
        return sum(map(len, partition[1]))

    def run(
        self, give: Callable[[int], Iterator], take: Callable[[tuple], int], options: list[str]
    ) -> tuple[float, float]:
        """Exchanges once: seconds, and the most GB of memory."""
        total = Path(self.place) / "total"
        peaks, done = [0.0], threading.Event()

        def look() -> None:
            while not done.wait(0.1):
                peaks[0] = max(peaks[0], own_memory())

        looking = threading.Thread(target=look)
        looking.start()
        start = time.perf_counter()
        with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
            _ = (
                pipeline
                | beam.Create([(task, task) for task in range(self.tasks)])
                | "Deal" >> beam.GroupByKey()
                | beam.Keys()
                | "Give" >> beam.FlatMap(give)
                | "Exchange" >> beam.GroupByKey()
                | "Take" >> beam.Map(take)
                | beam.CombineGlobally(sum)
                | "Tell"
                >> beam.Map(lambda count, path=str(total): Path(path).write_text(str(count)))
            )
        seconds = time.perf_counter() - start
        done.set()
        looking.join()
        if int(total.read_text("ascii")) != self.tasks**2 * self.size:
            raise ValueError(f"{total.read_text('ascii')} bytes came")
        return seconds, peaks[0] / 1e9


def own_memory() -> int:
    """Bytes of memory of this process and all below it, without mapped files."""
    kilobytes: dict[int, int] = {}
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            continue  # it has ended
        process = int(fields["Pid"])
        parents[process] = int(fields["PPid"])
        kilobytes[process] = int(fields.get("RssAnon", "0 kB").split()[0])

    def is_own(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_own(parents[process]))

    return 1024 * sum(size for process, size in kilobytes.items() if is_own(process))


def main() -> None:
    """Reads the command line and prints both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--kilobytes", type=int, default=800, help="of a slice")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("beam_options", nargs="*")
    options = parser.parse_args()
    place = tempfile.mkdtemp(prefix="retro-db-exchange-")
    exchange = Exchange(options.tasks, 1000 * options.kilobytes, place)
    size = exchange.tasks**2 * exchange.size / 1e6
    ways = {
        "files of slices": (exchange.write, exchange.read),
        "GroupByKey": (exchange.hand_over, exchange.count),
    }
    try:
        for _ in range(options.rounds):
            for name, (give, take) in ways.items():
                seconds, memory = exchange.run(give, take, options.beam_options)
                print(f"{name}: {size:,.0f} MB in {seconds:.1f} s, {memory:.2f} GB", flush=True)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
