"""How many lists a million keys take for a recall: predicted from a hundred thousand of them, and measured.

python benchmarks/breadth.py
python benchmarks/breadth.py --synthetic 1000000 --sample 100000
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from vectors import vectors

from retro_db.plan.breadth_law import BreadthLaw
from retro_db.plan.breadth_measuring import measure_breadth_at, measure_breadths

RECALLS = (0.90, 0.95, 0.98)
RATIOS = (1, 2, 4)


def main() -> None:
    """Reads the command line, and prints the prediction beside what is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    options = parser.parse_args()
    embeddings, documents = vectors(options.synthetic, options.dimension)
    documents = documents.astype(np.int64)
    sampled = documents < documents[options.sample]
    points = measure_breadths(embeddings[sampled], documents[sampled], RECALLS)
    laws = [BreadthLaw(recall, points[recall]) for recall in RECALLS]
    for ratio in RATIOS:
        lists = round(ratio * math.sqrt(options.synthetic))
        measured = measure_breadth_at(embeddings, documents, lists, RECALLS)
        for law, nprobe in zip(laws, measured, strict=True):
            breadth = law.predict(options.synthetic, lists)
            print(
                f"{options.synthetic:,} keys, {lists:,} lists, recall {breadth.recall}: {breadth.nprobe} "
                f"predicted ({breadth.least} to {breadth.most}), {nprobe:.1f} measured: "
                f"{breadth.nprobe / nprobe:.2f} of it",
                flush=True,
            )


if __name__ == "__main__":
    main()
