"""The dataset card: read by the hub's library, always that of the manifest, never over somebody's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

import retro_db
from retro_db.report.card import render_card, size_category, write_card
from retro_db.verify import verify_database
from support.projects import Project, remove_documents


def expect_card(db: Path) -> DatasetCard:
    """The card of a database, which is the one that its manifest makes."""
    manifest = retro_db.open(db).manifest
    assert (db / "README.md").read_bytes() == render_card(manifest)
    return DatasetCard.load(db / "README.md")


def test_a_build_writes_a_card_that_the_hub_reads(six: Project) -> None:
    card = expect_card(six.output)
    assert card.data.size_categories == "n<1K"
    assert card.data.tags == ["retro", "retro-db", "retrieval"]
    assert card.data.license is None
    manifest = six.open().manifest
    for words in (
        "# A retrieval database of test",
        "6 documents in ",
        "| asked | queries | 1 |",
        f"bpe trained on the corpus, vocabulary of {manifest.chunk.vocab_size}",
        f"tiny-encoder, {manifest.encoder.dimension} dimensions",
        f"recall@10 | {manifest.neighbors.recall[-1].recall:.3f} against",
        "generation | 1, format",
        manifest.sha256,
        'retro_db.open("FOLDER")',
    ):
        assert words in card.text, words
    assert str(six.folder) not in card.content


def test_a_card_follows_a_removal(db: Path) -> None:
    assert remove_documents(db, ["doc-2"]) == 0
    card = expect_card(db)
    assert "5 documents in " in card.text
    assert "generation | 2, format" in card.text
    assert "1 documents of these were removed since" in card.text
    assert verify_database(str(db)).problems == []


@pytest.mark.parametrize("change", ["own", "license", "behind"])
def test_a_card_of_ones_own_is_kept(db: Path, change: str) -> None:
    card = (db / "README.md").read_text()
    changed = {
        "own": "# My data",
        "license": card.replace("---", "---\nlicense: cc0-1.0", 1),
        "behind": f"{card}More.\n",
    }
    (db / "README.md").write_text(changed[change])
    assert remove_documents(db, ["doc-2"]) == 0
    assert (db / "README.md").read_text() == changed[change]
    assert verify_database(str(db)).problems == []


def test_texts_of_strangers_mark_nothing_up(db: Path) -> None:
    database = retro_db.open(db)
    [source] = database.manifest.sources
    name = "a|b\n<img src=x> {{ 7 * 7 }}: [x](y)"
    strange = [dataclasses.replace(source, name=name)]
    manifest = dataclasses.replace(database.manifest, sources=strange)
    assert write_card(database.folder, manifest)
    card = DatasetCard.load(db / "README.md")
    assert card.data.pretty_name.startswith("Retrieval database of a|b")
    [row] = [line for line in card.text.splitlines() if line.startswith(r"| a\|b")]
    assert r"\<img src=x\> {{ 7 \* 7 }}: \[x\](y)" in row


def test_categories_are_those_of_the_hub() -> None:
    categories = {rows: size_category(rows) for rows in (0, 999, 1000, 10**7, 10**12 - 1, 10**12)}
    assert list(categories.values()) == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "10M<n<100M",
        "100B<n<1T",
        "n>1T",
    ]
