"""The dataset card: README.md beside the manifest, in the form of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

from huggingface_hub import DatasetCard, DatasetCardData

from retro_db.config import in_units
from retro_db.manifest.model import CARD, Manifest
from retro_db.printing import printable
from retro_db.report.sizes import size_row, size_rows
from retro_db.store.folder import Folder

# Behind the card: what tells it from a card that somebody else wrote or changed.
_SEAL = re.compile(rb"<!-- retro-db replaces this card as long as it is unchanged: (\w{64}) -->\n")
_TAGS = ["retro", "retro-db", "retrieval"]
# Bounds of the hub's categories, each ten times the one before.
_ROWS = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]


def write_card(folder: Folder, manifest: Manifest) -> bool:
    """Writes the card of a database, but never over one that somebody else wrote or changed.

    Args:
        folder: The database.
        manifest: Its manifest, which alone decides what the card says.

    Returns:
        Whether the card is now that of the manifest.
    """
    card = render_card(manifest)
    if folder.exists(CARD):
        written = folder.read(CARD)
        if written == card or not _is_own(written):
            return written == card
    folder.write(CARD, card)
    return True


def _is_own(card: bytes) -> bool:
    """Whether a card is as it was written here."""
    seal = _SEAL.search(card)
    return (
        seal is not None
        and seal.end() == len(card)
        and hashlib.sha256(card[: seal.start()]).hexdigest().encode() == seal[1]
    )


def render_card(manifest: Manifest) -> bytes:
    """The card as a file in UTF-8: equal manifests give equal bytes."""
    counts = manifest.counts
    described = DatasetCardData(
        pretty_name=f"Retrieval database of {_names(manifest)}",
        size_categories=size_category(counts.chunks),
        tags=_TAGS,
    )
    card = DatasetCard.from_template(
        described,
        template_str=resources.files("retro_db.report").joinpath("card.md").read_text("utf-8"),
        manifest=manifest,
        names=_cell(_names(manifest)),
        documents=f"{counts.documents - counts.removed_documents:,}",
        chunks=f"{counts.chunks - counts.removed_chunks:,}",
        sources=_sources(manifest),
        sizes=[*size_rows(manifest), size_row(manifest, "total", manifest.files)],
        facts=[(name, _cell(text)) for name, text in _facts(manifest)],
    )
    content = f"{card.content.rstrip()}\n\n".encode()
    digest = hashlib.sha256(content).hexdigest()
    seal = f"<!-- retro-db replaces this card as long as it is unchanged: {digest} -->\n"
    return content + seal.encode()


def size_category(rows: int) -> str:
    """The hub's category for a number of rows, such as `1K<n<10K`."""
    larger = sum(rows >= 10**power for power in range(3, 3 + len(_ROWS)))
    if larger in (0, len(_ROWS)):
        return f"n<{_ROWS[0]}" if larger == 0 else f"n>{_ROWS[-1]}"
    return f"{_ROWS[larger - 1]}<n<{_ROWS[larger]}"


def _names(manifest: Manifest) -> str:
    return ", ".join(printable(source.name) for source in manifest.sources)


def _cell(text: str) -> str:
    """A text in Markdown that marks nothing up."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", printable(text))


def _sources(manifest: Manifest) -> list[list[str]]:
    counted = [(source, f"{source.weight:g}") for source in manifest.sources]
    counted += [(query.source, "queries") for query in manifest.queries]
    return [
        [
            _cell(source.name),
            weight,
            *(
                f"{count:,}"
                for count in (
                    source.documents,
                    source.chunks,
                    source.tokens,
                    source.dropped,
                    source.rejected,
                )
            ),
        ]
        for source, weight in counted
    ]


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    """What people ask of a database, each with its answer."""
    chunk, encoder, index = manifest.chunk, manifest.encoder, manifest.index
    trained = manifest.setting("tokenizer.train")
    origin = f"{trained['model']} trained on the corpus" if trained else "given"
    recall = manifest.neighbors.recall or index.recall
    return [
        (
            "tokenizer",
            f"{origin}, vocabulary of {chunk.vocab_size:,}; sha256 {manifest.tokenizer.sha256}",
        ),
        (
            "encoder",
            f"{encoder.model}, {encoder.dimension} dimensions, {encoder.pooling}, {encoder.dtype}; sha256 "
            f"{encoder.sha256}",
        ),
        (
            "embeddings",
            in_units(sum(file.bytes for file in manifest.tables.embeddings))
            if manifest.tables.embeddings
            else "not kept",
        ),
        ("index", f"{index.key}, nprobe {index.nprobe} of {index.lists:,} lists"),
        ("neighbors", f"{manifest.neighbors.k} of each chunk, from other documents"),
        (
            "recall@10",
            f"{recall[-1].recall:.3f} against exact search; of distinct chunks at least "
            f"{recall[-1].lower_bound:.3f}"
            if recall
            else "not measured",
        ),
        ("validation", f"{manifest.counts.validation_chunks:,} chunks, nobody's neighbors"),
        ("generation", f"{manifest.generation}, format {manifest.version}"),
        ("manifest", f"sha256 {manifest.sha256}"),
    ]
