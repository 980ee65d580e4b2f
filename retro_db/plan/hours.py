"""Hours of work, at measured rates: the user's, a sample's or published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from retro_db.manifest.model import Manifest
from retro_db.plan.join_plan import multiplications

# Stages whose work grows with the number of chunks, and those whose work is products.
_BY_CHUNKS = ("chunk", "embed", "encode", "assemble", "truth", "route", "neighbors")
_JOINED = ("home", "visit")
JOIN = ", ".join(_JOINED)


@dataclass(frozen=True)
class Rate:
    """A measured speed.

    Attributes:
        chunks_per_second: Chunks that one device handles in a second.
        device: Kind of the device.
        source: What was measured, and who published it.
    """

    chunks_per_second: float
    device: str
    source: str


# By the dimension of the encoder; a plan takes the nearest one.
EMBEDDING_RATES = {
    384: Rate(211, "two-core CPU", "MiniLM-L6 in float32; benchmarks/RESULTS.md of retro-db"),
    768: Rate(
        1_667, "GPU", "RTX A5000, a model of BERT-base's size; M. Gordon, RETRO is blazingly fast"
    ),
    1024: Rate(1_728, "GPU", "A100, BERT-large; InstructRetro, arXiv 2310.07713, appendix B.2"),
}
CHUNKING_RATE = Rate(8_772, "CPU", "tokenizing alone; M. Gordon, RETRO is blazingly fast")


@dataclass(frozen=True)
class HoursPlan:
    """The hours that a stage takes on one device: chunks / rate / 3600.

    Attributes:
        stage: Name of the stage.
        chunks: Number of chunks that the stage works on.
        chunks_per_second: Chunks that one device handles in a second.
        device: Kind of the device.
        hours: Hours of one device.
        source: Origin of the rate.
    """

    stage: str
    chunks: int
    chunks_per_second: float
    device: str
    hours: float
    source: str


@dataclass(frozen=True)
class MeasuredRates:
    """What was measured: of a database's own stages, one task at a time, or of a machine that was probed.

    Attributes:
        chunks_per_second: Chunks that a device handles in a second, by stage.
        multiplications_per_second: Multiplications of the join's products in a second; None if that was not
            measured.
        device: Kind of the device.
        source: What was measured, in words.
    """

    chunks_per_second: dict[str, float]
    multiplications_per_second: float | None
    device: str
    source: str

    @classmethod
    def of(cls, seconds: Mapping[str, float], manifest: Manifest, source: str) -> Self:
        """Rates of the stages whose work grows with the number of chunks, and of the join.

        Args:
            seconds: Seconds of all tasks of each stage, added up.
            manifest: Manifest of the database that they made.
            source: The database.
        """
        chunks = manifest.counts.chunks
        rates = {name: chunks / seconds[name] for name in _BY_CHUNKS if seconds.get(name)}
        joined = sum(seconds.get(name, 0) for name in _JOINED)
        operations = multiplications(
            chunks, manifest.neighbors.nprobe, manifest.index.lists, manifest.encoder.dimension
        )
        return cls(rates, operations / joined if joined else None, "task", f"as {source} took")


def plan_hours(
    chunks: int,
    dimension: int,
    operations: int,
    *,
    on_gpu: bool,
    chunks_per_second: float | None,
    measured: Sequence[MeasuredRates],
) -> list[HoursPlan]:
    """Plans the hours of the stages whose rate is known.

    Args:
        chunks: Number of chunks that are cut and embedded.
        dimension: Dimension of the embeddings.
        operations: Multiplications of the join's products.
        on_gpu: Whether the encoder runs on a GPU; names the device of the user's rate.
        chunks_per_second: Embedding rate that the user measured; else a measured or a published one.
        measured: Rates of a sample's stages and of a machine, if they were measured; later ones count.
    """
    nearest = min(EMBEDDING_RATES, key=lambda known: abs(known - dimension))
    rates = {"chunk": CHUNKING_RATE, "embed": EMBEDDING_RATES[nearest]}
    for known in measured:
        rates |= {
            stage: Rate(rate, known.device, known.source)
            for stage, rate in known.chunks_per_second.items()
        }
        if known.multiplications_per_second:
            rate = chunks * known.multiplications_per_second / operations
            source = (
                f"{known.multiplications_per_second:.1e} multiplications a second, {known.source}"
            )
            rates[JOIN] = Rate(rate, known.device, source)
    if chunks_per_second is not None:
        rates["embed"] = Rate(chunks_per_second, "GPU" if on_gpu else "CPU worker", "as given")
    return [
        HoursPlan(
            stage,
            chunks,
            rate.chunks_per_second,
            rate.device,
            round(chunks / rate.chunks_per_second / 3600, 3),
            rate.source,
        )
        for stage, rate in rates.items()
    ]
