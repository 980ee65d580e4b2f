"""Cutting documents into chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_db.config import TrainTokenizerConfig
from retro_db.corpus.chunking import chunk_documents
from retro_db.tokens.tokenizer import Tokenizer
from retro_db.tokens.tokenizer_training import train_tokenizer
from support.projects import make_project

documents = st.lists(st.lists(st.integers(0, 65_535), max_size=300), max_size=20)


@given(documents, st.integers(1, 70), st.sampled_from([np.uint16, np.uint32]))
def test_chunks_hold_every_token_of_every_document_once(
    ids: list[list[int]], m: int, dtype: type
) -> None:
    tokens, lengths, counts = chunk_documents([np.array(d, dtype) for d in ids], m, pad_id=7)
    assert tokens.shape == (len(lengths), m)
    assert counts.tolist() == [(len(document) + m - 1) // m for document in ids]
    row = 0
    for document, count in zip(ids, counts, strict=True):
        held = tokens[row : row + count].reshape(-1)
        assert held[: len(document)].tolist() == document
        assert (held[len(document) :] == 7).all()
        assert lengths[row : row + count].sum() == len(document)
        assert (lengths[row : row + max(count - 1, 0)] == m).all()
        row += count


@given(st.lists(st.text(max_size=200), min_size=1, max_size=8))
def test_a_byte_level_tokenizer_gives_any_text_back(texts: list[str]) -> None:
    tokenizer = _tokenizer()
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


def _tokenizer() -> Tokenizer:
    return train_tokenizer(["any text at all, with words"], TrainTokenizerConfig(vocab_size=300))


def test_a_pickled_tokenizer_still_keeps_special_tokens_as_text() -> None:
    import pickle

    tokenizer = pickle.loads(pickle.dumps(_tokenizer()))  # noqa: S301 - our own bytes
    [ids] = tokenizer.encode(["<|endoftext|>"])
    assert len(ids) > 1
    assert 0 not in ids


def test_documents_of_every_length_build(tmp_path: Path) -> None:
    # One letter and a space is one token of this tokenizer, whatever it learns: see the assertion.
    lengths = [0, 1, 63, 64, 65, 128, 129]
    texts = [" a" * length for length in lengths]
    texts += ["  \n\t  ", "x" * 300_000, "🐘" * 50]
    texts += [f"word{i}" for i in range(2_000)]
    project = make_project(tmp_path, texts, tokenizer={"train": {"vocab_size": 300}})
    assert project.build() == 0
    database = project.open()
    tokenizer = Tokenizer.of_database(database.folder)
    token_counts = [len(ids) for ids in tokenizer.encode(texts)]
    assert token_counts[: len(lengths)] == lengths
    expected = [-(-count // 64) for count in token_counts]
    assert database.documents["chunk_count"].to_pylist() == expected
    assert database.manifest.counts.tokens == sum(token_counts)
    assert database.manifest.counts.documents == len(texts)
    # The white space alone has no WordPiece: kept, with its id, but nobody's neighbor.
    assert database.manifest.counts.keyless_chunks == expected[7]
    blank = database.documents["first_chunk"].to_pylist()[7]
    assert (database.neighbors[blank] == -1).all()
    assert not (database.neighbors[:] == blank).any()


def test_a_ten_megabyte_line_goes_through_the_chunk_stage(tmp_path: Path) -> None:
    from retro_db_pipelines.commands.cli import run

    line = ("some words of a very long line, number {} and so on. " * 200).format(*range(200))
    text = line * (10_000_000 // len(line) + 1)
    project = make_project(tmp_path, [text], tokenizer={"train": {"vocab_size": 1000}})
    for stage in ("tokenizer", "chunk"):
        assert run(["stage", stage, str(project.config)]) == 0
    with pytest.raises(Exception, match=r"no manifest\.json"):
        project.open()
    records = (project.output / "state/records/chunk.jsonl").read_text()
    assert '"rejected":{}' in records
    assert '"read":1' in records
