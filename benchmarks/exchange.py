"""An exchange between tasks: through files of slices, as the join has it, and through Beam's GroupByKey.

    python benchmarks/exchange.py --kilobytes 800
    python benchmarks/exchange.py --kilobytes 1600 -- --runner=SparkRunner --spark_master_url=local[2]

As many tasks as there are partitions write a slice for each partition; then each partition's task reads its
slices. The ways take turns. Options of Beam stand behind --. Memory is that of this process and of all that
it has started, mapped files apart.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from memory import memory_of_all, peak_while


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
    ) -> float:
        """Exchanges once; returns the seconds."""
        total = Path(self.place) / "total"
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
        if int(total.read_text("ascii")) != self.tasks**2 * self.size:
            raise ValueError(f"{total.read_text('ascii')} bytes came")
        return seconds


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
                work = functools.partial(exchange.run, give, take, options.beam_options)
                seconds, peak = peak_while(memory_of_all, work)
                print(f"{name}: {size:,.0f} MB in {seconds:.1f} s, {peak / 1e9:.2f} GB", flush=True)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
