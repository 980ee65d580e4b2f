"""Apache Beam, imported without its warning of Google client libraries that a local run never needs."""

from __future__ import annotations

import logging

logging.disable(logging.WARNING)
try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import (
        DebugOptions,
        GoogleCloudOptions,
        PipelineOptions,
        StandardOptions,
        WorkerOptions,
    )
    from apache_beam.utils.shared import Shared
finally:
    logging.disable(logging.NOTSET)

__all__ = [
    "DebugOptions",
    "GoogleCloudOptions",
    "PipelineOptions",
    "Shared",
    "StandardOptions",
    "WorkerOptions",
    "beam",
]
