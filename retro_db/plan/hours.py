"""Hours of work, at rates that somebody measured: the user's own, or published ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """How fast something was measured to be.

    Attributes:
        chunks_per_second: Of one device.
        device: Which.
        source: Of what, and where the figure is from.
    """

    chunks_per_second: float
    device: str
    source: str


# By the dimension of the encoder; the nearest is taken.
EMBEDDING_RATES = {
    384: Rate(211, "two-core CPU", "MiniLM-L6 in float32; benchmarks/RESULTS.md of retro-db"),
    768: Rate(
        1_667, "GPU", "RTX A5000, a model of BERT-base's size; M. Gordon, RETRO is blazingly fast"
    ),
    1024: Rate(1_728, "GPU", "A100, BERT-large; InstructRetro, arXiv 2310.07713, appendix B.2"),
}
CHUNKING_RATE = Rate(8_772, "CPU", "tokenizing alone; M. Gordon, RETRO is blazingly fast")
SEARCHING_RATE = Rate(
    250, "CPU", "4 ms a query, index in memory; InstructRetro, arXiv 2310.07713, appendix B"
)


@dataclass(frozen=True)
class HoursPlan:
    """What a stage takes of one device: chunks / rate / 3600.

    Attributes:
        stage: Its name.
        chunks: That it works on.
        chunks_per_second: Of one device.
        device: Whose hours these are.
        hours: Of it.
        source: Where the rate is from.
    """

    stage: str
    chunks: int
    chunks_per_second: float
    device: str
    hours: float
    source: str


def plan_hours(
    chunks: int, dimension: int, on_gpu: bool, chunks_per_second: float | None
) -> list[HoursPlan]:
    """Hours of the stages for which a rate is known: not those of training, encoding and tuning.

    Args:
        chunks: That are cut, embedded and searched for.
        dimension: Of the encoder.
        on_gpu: Whether it runs on one, if the user measured it.
        chunks_per_second: As the user measured it; None for a published rate.
    """
    if chunks_per_second is None:
        nearest = min(EMBEDDING_RATES, key=lambda known: abs(known - dimension))
        embedding = EMBEDDING_RATES[nearest]
    else:
        embedding = Rate(chunks_per_second, "GPU" if on_gpu else "CPU worker", "as given")
    rates = {"chunk": CHUNKING_RATE, "embed": embedding, "neighbors": SEARCHING_RATE}
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
