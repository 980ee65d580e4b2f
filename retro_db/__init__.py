"""Retrieval databases for RETRO-style language models (Borgeaud et al., arXiv 2112.04426).

Reading needs NumPy, PyArrow and fsspec alone; building and `Retriever` need the extra `build`.
"""

from typing import TYPE_CHECKING, Any

from retro_db.errors import RetroDBError
from retro_db.reader.database import Database, open  # noqa: A004 - read as retro_db.open
from retro_db.reader.dataset import RetroDataset
from retro_db.reader.sampler import RetroSampler

if TYPE_CHECKING:
    from retro_db.search.retriever import Retriever

__all__ = ["Database", "Retriever", "RetroDBError", "RetroDataset", "RetroSampler", "open"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Retriever":
        from retro_db.search.retriever import Retriever

        return Retriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
