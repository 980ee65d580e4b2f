"""Hours of work, at measured rates: the user's or published ones."""

from __future__ import annotations

from dataclasses import dataclass


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


def plan_hours(
    chunks: int, dimension: int, *, on_gpu: bool, chunks_per_second: float | None
) -> list[HoursPlan]:
    """Plans the hours of the stages whose rate is known: cutting and embedding.

    Args:
        chunks: Number of chunks that are cut and embedded.
        dimension: Dimension of the embeddings.
        on_gpu: Whether the encoder runs on a GPU; names the device of the user's rate.
        chunks_per_second: Embedding rate that the user measured; None for a published rate.
    """
    if chunks_per_second is None:
        nearest = min(EMBEDDING_RATES, key=lambda known: abs(known - dimension))
        embedding = EMBEDDING_RATES[nearest]
    else:
        embedding = Rate(chunks_per_second, "GPU" if on_gpu else "CPU worker", "as given")
    rates = {"chunk": CHUNKING_RATE, "embed": embedding}
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
