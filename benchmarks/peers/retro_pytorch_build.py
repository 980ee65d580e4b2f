"""RETRO-pytorch's whole build in its environment, with a local model and tokenizer in place of a hub's.

    python retro_pytorch_build.py build TEXTS FOLDER MODEL K     chunks to neighbors, as its trainer does it
    python retro_pytorch_build.py look TEXTS FOLDER MODEL K      counts of its files, and effects of reading

`build` leaves the seconds of its stages in FOLDER/stages.json, `look` its counts in FOLDER/look.json.
"""

import functools
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import autofaiss.external.optimize
import numpy as np
import torch
from retro_pytorch import retrieval
from retro_pytorch.data import RETRODataset
from transformers import BertModel, BertTokenizerFast

CHUNK, SEQUENCE = 64, 2048
# Neighbors that its TrainingWrapper asks for beyond k.
EXTRA_NEIGHBORS = 100
PAD, CLS, SEP = 0, 101, 102
CHUNKS, NEIGHBORS = "chunks.dat", "chunks.knn.dat"
SEQUENCES, DOCUMENTS = "sequences.dat", "documents.dat"

seconds = defaultdict(float)


def timed(module, name, stage):
    """Adds what a module's function takes to a stage."""
    function = getattr(module, name)

    @functools.wraps(function)
    def run(*arguments, **options):
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[stage] += time.perf_counter() - start

    setattr(module, name, run)


def load(model):
    """Loads model and tokenizer, so that it does not ask `torch.hub` for them."""
    retrieval.TOKENIZER = BertTokenizerFast.from_pretrained(model, local_files_only=True)
    retrieval.MODEL = BertModel.from_pretrained(model, local_files_only=True).eval()


def build(texts, k):
    """Builds as its TrainingWrapper does before it trains."""
    timed(retrieval, "text_folder_to_chunks_", "chunk")
    timed(retrieval, "chunks_to_embeddings_", "embed")
    timed(retrieval, "memmap_file_to_chunks_", "index")
    timed(retrieval, "index_embeddings", "index")
    timed(autofaiss.external.optimize, "get_optimal_hyperparameters", "tuning")
    timed(autofaiss.external.optimize, "compute_fast_metrics", "tuning")
    timed(retrieval, "chunks_to_precalculated_knn_", "chunks to neighbors")
    stats = retrieval.text_folder_to_chunks_(
        folder=texts,
        chunks_memmap_path=CHUNKS,
        seqs_memmap_path=SEQUENCES,
        doc_ids_memmap_path=DOCUMENTS,
        chunk_size=CHUNK,
        seq_len=SEQUENCE,
    )
    # It takes a number of dimensions, but does not pass it on.
    retrieval.chunks_to_index_and_embed = functools.partial(
        retrieval.chunks_to_index_and_embed, embed_dim=retrieval.MODEL.config.hidden_size
    )
    retrieval.chunks_to_precalculated_knn_(
        num_nearest_neighbors=k,
        num_chunks=stats["chunks"],
        chunk_size=CHUNK,
        chunk_memmap_path=CHUNKS,
        doc_ids_memmap_path=DOCUMENTS,
        num_extra_neighbors=EXTRA_NEIGHBORS,
    )
    all_after = seconds.pop("chunks to neighbors")
    seconds["neighbors"] = all_after - seconds["embed"] - seconds["index"]
    Path("stats.json").write_text(json.dumps(stats))
    Path("stages.json").write_text(json.dumps(seconds))


def sizes():
    """Returns the bytes of its files."""
    return {name: os.path.getsize(name) for name in (CHUNKS, NEIGHBORS, SEQUENCES)}


def look(k):
    """Counts chunks and padding in its files, then reads one item of its dataset."""
    stats = json.loads(Path("stats.json").read_text())
    count = stats["chunks"]
    tokens = np.fromfile(CHUNKS, np.int32, count * (CHUNK + 1)).reshape(count, -1)[:, :CHUNK]
    embeddings = np.fromfile(f"{CHUNKS}.embedded", np.float32).reshape(count, -1)
    neighbors = np.fromfile(NEIGHBORS, np.int32)
    empty = np.isin(tokens, (PAD, CLS, SEP)).all(axis=1)
    before = sizes()
    dataset = RETRODataset(
        num_chunks=count,
        chunk_size=CHUNK,
        seq_len=SEQUENCE,
        num_sequences=stats["seqs"],
        num_neighbors=k,
        chunk_memmap_path=CHUNKS,
        chunk_nn_memmap_path=NEIGHBORS,
        seq_memmap_path=SEQUENCES,
    )
    _ = dataset[0]
    counts = {
        "chunks": count,
        "empty": int(empty.sum()),
        "empty_neighbors": int(empty[neighbors[neighbors >= 0]].sum()),
        "padding": float((tokens == PAD).sum() / (count * (CHUNK + 1))),
        "moved": moved_by_padding(tokens, embeddings),
        "before": before,
        "after": sizes(),
    }
    Path("look.json").write_text(json.dumps(counts))


def moved_by_padding(tokens, embeddings):
    """Returns the largest change of an element of an embedding when its chunk is embedded without padding."""
    short = np.flatnonzero((tokens == PAD).any(axis=1))[:200]
    changes = [0.0]
    for row in short:
        bare = np.append(CLS, tokens[row][tokens[row] != PAD])
        alone = retrieval.bert_embed(torch.from_numpy(bare[None])).numpy()
        changes.append(float(np.abs(alone - embeddings[row]).max()))
    return max(changes)


def main():
    """Runs the task in FOLDER, since the peer makes its folders where it is started."""
    task, texts, folder, model, k = sys.argv[1:]
    texts = os.path.abspath(texts)
    os.chdir(folder)
    load(model)
    if task == "build":
        build(texts, int(k))
    else:
        look(int(k))


if __name__ == "__main__":
    main()
