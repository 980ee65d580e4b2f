"""What a database of a sample tells a plan."""

from __future__ import annotations

import logging

import numpy as np

from retro_db.config import Config
from retro_db.errors import InputError, SampleError
from retro_db.manifest.model import TRAIN
from retro_db.plan import BreadthLaw, MeasuredRates
from retro_db.plan.breadth_measuring import LEAST_CHUNKS, MOST_CHUNKS, measure_breadths
from retro_db.reader.database import Database
from retro_db.reader.database import open as open_database
from retro_db.report.stage_report import read_stages
from retro_db.store.embedded import is_embedded

_LOG = logging.getLogger(__name__)
# Recalls that are measured, beside the one that is configured.
_RECALLS = (0.90, 0.95, 0.98)


def measure_sample(sample: str, settings: Config) -> tuple[list[BreadthLaw], MeasuredRates | None]:
    """Measures how many lists recalls take in a database of a sample, and reads how long its stages took.

    Args:
        sample: Folder or URL of the database.
        settings: Configuration of the build that is planned.

    Returns:
        A law for each recall, and rates, if they are on record.

    Raises:
        InputError: The sample is too small.
    """
    database = open_database(sample)
    report = read_stages(database.folder)
    rates = None
    if report is not None:
        seconds = {name: stage.seconds for name, stage in report.stages.items()}
        rates = MeasuredRates.of(seconds, database.manifest, sample)
    return _laws(database, sample, settings), rates


def _laws(database: Database, sample: str, settings: Config) -> list[BreadthLaw]:
    documents = database.chunks.documents(np.arange(min(len(database), MOST_CHUNKS)))
    splits = database.documents_at(documents)["split"].to_numpy()
    ids = np.flatnonzero(splits == TRAIN)
    vectors = database.embeddings[ids]
    embedded = is_embedded(vectors)
    vectors, documents = vectors[embedded], documents[ids[embedded]]
    if len(vectors) < LEAST_CHUNKS:
        raise InputError(
            f"--sample: {sample} has {len(vectors):,} chunks with an embedding; give a database of at least "
            f"{LEAST_CHUNKS:,}, better 100,000"
        )
    recalls = sorted({*_RECALLS, settings.index.recall_target})
    measured = measure_breadths(vectors, documents, recalls)
    laws = []
    for recall, points in measured.items():
        try:
            laws.append(BreadthLaw(recall, points))
        except SampleError as error:
            _LOG.warning("--sample: %s", error)
    return laws
