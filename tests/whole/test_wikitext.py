"""The database of WikiText-2's articles, against the text itself and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from retro_db.tokens.tokenizer import Tokenizer
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.demo import encoder_folder
from support import brute_force
from support.projects import Project
from support.soak import amount


def document_ids(project: Project, row: int) -> np.ndarray:
    """A document's token ids without padding."""
    database = project.open()
    document = database.documents.slice(row, 1).to_pylist()[0]
    first, count = document["first_chunk"], document["chunk_count"]
    tokens = database.chunks[first : first + count]
    lengths = database.chunks.lengths(slice(first, first + count))
    return np.concatenate([row[:length] for row, length in zip(tokens, lengths, strict=True)])


def test_decoding_a_document_gives_its_exact_text(wiki: Project) -> None:
    database = wiki.open()
    tokenizer = Tokenizer.of_database(database.folder)
    assert database.documents["id"].to_pylist() == [f"doc-{i}" for i in range(len(wiki.texts))]
    for row, text in enumerate(wiki.texts):
        assert tokenizer.decode([document_ids(wiki, row)]) == [text]


def test_a_character_is_really_cut_by_a_chunk_edge(wiki: Project) -> None:
    database = wiki.open()
    tokenizer = Tokenizer.of_database(database.folder)
    document = database.documents.to_pylist()[-1]
    first, count = document["first_chunk"], document["chunk_count"]
    texts = tokenizer.decode(database.chunks[first : first + count])
    assert any("\ufffd" in text for text in texts)


def test_neighbors_follow_the_rules(wiki: Project) -> None:
    database = wiki.open()
    every = np.arange(len(database))
    ids, distances = database.neighbors[every], database.neighbors.distances(every)
    keys = database.embeddings[every]
    keyed = keys.any(axis=1)
    assert keyed.sum() >= len(database) - 10
    documents = database.chunks.documents(every)
    held_out = np.array(database.documents["split"].to_pylist())[documents] == "validation"
    assert held_out.sum() > 100

    assert (ids[keyed] >= 0).all(), "20 neighbors exist for every chunk with a key"
    assert (ids[~keyed] == -1).all()
    assert (documents[ids[keyed]] != documents[keyed][:, None]).all()
    assert not held_out[ids[keyed]].any(), "no validation chunk is anyone's neighbor"
    assert all(len(set(row)) == 20 for row in ids[keyed].tolist())
    assert (np.diff(distances[keyed], axis=1) >= 0).all()
    for row in every[keyed]:
        difference = keys[ids[row]].astype(np.float64) - keys[row].astype(np.float64)
        exact = (difference**2).sum(axis=1)
        np.testing.assert_allclose(distances[row], exact, rtol=1e-5)


def test_recall_of_the_default_settings_with_a_share_of_the_lists(wiki: Project) -> None:
    database = wiki.open()
    every = np.arange(len(database))
    keys, documents = database.embeddings[every], database.chunks.documents(every)
    training = np.array(database.documents["split"].to_pylist())[documents] == "train"
    keyed = keys.any(axis=1)
    asked = np.random.default_rng(0).permutation(every[keyed])[:500]
    truth, _ = brute_force.neighbors(keys, documents, keyed & training, 10, asked)
    found = database.neighbors[asked]
    assert brute_force.recall(found, truth, 10) >= 0.98
    index = database.manifest.index
    # Fewer chunks need a larger share of their lists.
    assert index.nprobe <= index.lists / amount(quick=2, soak=4)
    point = index.recall[-1]
    assert (point.nprobe, point.rerank) == (index.nprobe, index.rerank)
    assert point.lower_bound >= 0.98
    assert index.recall_queries >= 1000


def test_embeddings_equal_transformers_one_chunk_at_a_time(wiki: Project) -> None:
    database = wiki.open()
    decoder = Tokenizer.of_database(database.folder)
    model = AutoModel.from_pretrained(encoder_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    lengths = database.chunks.lengths(slice(0, len(database)))
    short = np.flatnonzero(lengths < 64)
    assert len(short) > 40
    chosen = np.unique(np.concatenate([short, np.linspace(0, len(database) - 1, 100).astype(int)]))
    for chunk in chosen:
        [text] = decoder.decode([database.chunks[int(chunk)][: lengths[chunk]]])
        batch = tokenizer(text, return_tensors="pt")
        stored = database.embeddings[int(chunk)].astype(np.float64)
        if batch["input_ids"].shape[1] == 2:
            assert not stored.any(), "no WordPiece, no key"
            continue
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state[0].double().numpy()
        mask = batch["attention_mask"][0].numpy().astype(bool)
        expected = hidden[mask].mean(axis=0)
        # As the folder of the model says.
        expected /= np.linalg.norm(expected)
        assert np.abs(stored - expected).max() <= 1e-3 * np.abs(expected).max()
        cosine = stored @ expected / np.linalg.norm(stored) / np.linalg.norm(expected)
        assert cosine > 0.99999


def test_values_are_the_chunk_and_its_continuation(wiki: Project) -> None:
    database = wiki.open()
    documents = database.documents.to_pylist()
    pad = database.manifest.chunk.pad_id
    for row in (0, 17, len(documents) - 1):
        first, count = documents[row]["first_chunk"], documents[row]["chunk_count"]
        values = database.chunks.values(range(first, first + count))
        assert (values[:, :64] == database.chunks[first : first + count]).all()
        assert (values[:-1, 64:] == database.chunks[first + 1 : first + count]).all()
        assert (values[-1, 64:] == pad).all()


def test_query_finds_the_text_that_it_quotes(
    wiki: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["query", str(wiki.output), wiki.texts[-1][:200], "-k", "1"]) == 0
    assert "chunk" in capsys.readouterr().out
    assert run(["query", str(wiki.output), "a literal <|endoftext|> is text", "--json"]) == 0
    shown = capsys.readouterr().out
    assert f'"doc-{len(wiki.texts) - 2}"' in shown
