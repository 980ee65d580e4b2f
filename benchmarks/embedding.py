"""How fast chunks become embeddings, beside what the same model and device could do.

    python benchmarks/embedding.py [--rounds 3] [--texts FILE]      the stage, on this machine's CPU
    python benchmarks/embedding.py --device cuda [--seconds 10]     the encoder, on one GPU

On a CPU the stage as a build runs it, with real text and MiniLM, takes turns with a bare loop over the
same batches, and with RETRO-pytorch 0.3.9's embedding code over the same chunks (`pip install
retro-pytorch==0.3.9`; skipped if it is missing); ratios are medians over rounds. On a GPU random
weights of three shapes read random texts of 64 to 80 WordPieces; their rate is printed beside the rate
of a large matrix product of the same run. That part needs torch, transformers and pyarrow alone, and no
installation: a checkout will do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retro_db.encoder.batching import Tokenized
from retro_db.encoder.embedding import one_ahead
from retro_db.encoder.encoder import Encoder
from retro_db.encoder.models import EncoderModel, model_sha256
from retro_db.meter import Meter
from retro_db.threads import available_cores

SHAPES = {
    "MiniLM-L6": {"hidden": 384, "layers": 6, "heads": 12},
    "BERT-base": {"hidden": 768, "layers": 12, "heads": 12},
    "BERT-large": {"hidden": 1024, "layers": 24, "heads": 16},
}
WORDS = [f"word{number}" for number in range(1000)]


# On a GPU: random weights, random texts.


def random_encoder(folder: Path, shape: dict[str, int], batch_tokens: int) -> Encoder:
    """Returns an encoder of a shape on the GPU, whose vocabulary holds every word of our texts."""
    from transformers import BertConfig, BertModel, BertTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = BertConfig(
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["hidden"],
    )
    BertModel(settings).save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(vocab_file=str(vocabulary), vocab=str(vocabulary)).save_pretrained(folder)
    model = EncoderModel(
        sha256=model_sha256(folder),
        dimension=shape["hidden"],
        pooling="mean",
        max_length=256,
        batch_tokens=batch_tokens,
        device="cuda",
        dtype="bfloat16",
    )
    return Encoder(folder, model, threads=available_cores())


def random_texts(count: int) -> list[str]:
    """Returns texts of 64 to 80 WordPieces, [CLS] and [SEP] included."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(62, 79, count)
    return [" ".join(chance.choice(WORDS, length)) for length in lengths]


def matrix_rate() -> float:
    """Measures operations a second of a bfloat16 product of two random matrices of 8192 x 8192."""
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(30):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        left @ right
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return 2 * 8192**3 / statistics.median(seconds[5:])


def operations(shape: dict[str, int], lengths: np.ndarray) -> float:
    """Counts operations of the matrix products alone: four projections, two wide layers, and attention."""
    hidden, layers = shape["hidden"], shape["layers"]
    linear = 2 * 12 * hidden**2 * lengths.sum()
    attention = 4 * hidden * (lengths.astype(np.float64) ** 2).sum()
    return float(layers * (linear + attention))


def measure_gpu(seconds: float, batch_tokens: int) -> None:
    """Prints one row a shape: chunks a second with tokenization, and of tokenized windows alone."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16")
    rate = matrix_rate()
    print(f"matrix product: {rate / 1e12:,.0f} TFLOP/s; batches of {batch_tokens:,} WordPieces\n")
    texts = random_texts(8192)
    head = ("shape", "chunks/s", "of the matrix rate", "tokenized before", "of the matrix rate")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            encoder = random_encoder(Path(folder), shape, batch_tokens)
        window = encoder.tokenize(texts)
        work = operations(shape, window.lengths) / len(texts)
        cells = [name]
        for make in (partial(encoder.tokenize, texts), partial(next, repeat(window))):
            speed = gpu_speed(encoder, make, seconds)
            cells += [f"{speed:,.0f}", f"{speed * work / rate:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def gpu_speed(encoder: Encoder, make: Callable[[], Tokenized], seconds: float) -> float:
    """Measures texts a second, once warm, over windows that are made as they are needed."""
    list(encoder.encode_windows([make()], Meter()))
    end = time.perf_counter() + seconds

    def windows() -> Iterator[Tokenized]:
        while time.perf_counter() < end:
            yield make()

    start, done = time.perf_counter(), 0
    for embeddings in encoder.encode_windows(one_ahead(windows()), Meter()):
        done += len(embeddings)
    return done / (time.perf_counter() - start)


# On a CPU: the stage of a build.


class Chunked:
    """A corpus chunked by MiniLM's tokenizer, as in RETRO-pytorch, and ready to embed."""

    def __init__(self, folder: Path, texts: list[str]) -> None:
        import orjson

        from retro_db.config import parse_config
        from retro_db.corpus.sharding import plan_shards
        from retro_db.store.folder import Folder
        from retro_db_pipelines.commands.demo import encoder_folder
        from retro_db_pipelines.engine.completing import Running
        from retro_db_pipelines.engine.console import Console
        from retro_db_pipelines.engine.context import Build
        from retro_db_pipelines.engine.runner import Engine
        from retro_db_pipelines.stages.chunk import chunk_stage
        from retro_db_pipelines.stages.tokenizer import tokenizer_stage

        folder.mkdir()
        corpus = folder / "corpus.jsonl"
        corpus.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
        settings = {
            "output": str(folder / "db"),
            "corpus": [{"name": "texts", "paths": [str(corpus)]}],
            "tokenizer": {"path": str(encoder_folder())},
            # As the loops beside it pool, and RETRO-pytorch.
            "encoder": {"model": str(encoder_folder()), "normalize": False},
            "chunk": {"shard_size": max(1, corpus.stat().st_size // 4)},
        }
        self.config = parse_config(settings, "benchmark")
        self.model = encoder_folder()
        shards = plan_shards(self.config)
        output = Folder(self.config.output)
        self.build = Build(
            config=self.config,
            folder=output,
            home=output,
            engine=Engine(),
            console=Console(),
            shards=shards,
            action=Running(),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self.vocabulary = tokenizer_stage(self.build)
            self.chunked = chunk_stage(self.build, self.vocabulary, [None] * len(shards))
        self.parts = self.chunked.parts
        self.chunks = sum(part.rows for part in self.parts)

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields tokens and lengths of every part."""
        from retro_db.reader.opening import open_files

        kind = {"token_type": self.vocabulary.token_type, "chunk_tokens": 64}
        for part in self.parts:
            [file] = open_files(self.build.folder, [part.chunks], "chunks", kind)
            yield file.read("tokens", 0, file.rows), file.read("length", 0, file.rows)


def run_stage(corpus: Chunked, workers: int) -> tuple[float, float]:
    """Runs the stage from its start to its last record; returns seconds, and the share of padding."""
    from retro_db.encoder.models import describe_model
    from retro_db_pipelines.engine.runner import Engine
    from retro_db_pipelines.stages.embed import embed_stage

    corpus.build.folder.remove("state/records/embed.jsonl")
    build = replace(corpus.build, engine=Engine(workers))
    model = describe_model(corpus.config.encoder)
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        embed_stage(build, corpus.chunked, corpus.vocabulary, model)
        seconds = time.perf_counter() - start
    counts = build.stages["embed"].work.counts
    return seconds, counts["padding"] / (counts["padding"] + counts["tokens"])


def prepared(corpus: Chunked) -> tuple[Encoder, list[Tokenized]]:
    """Returns the encoder, and the windows that the stage makes of the corpus."""
    from retro_db.encoder.embedding import tokenized_windows
    from retro_db.encoder.models import describe_model
    from retro_db.reader.opening import open_files
    from retro_db.tokens.tokenizer import Tokenizer

    encoder = Encoder(corpus.model, describe_model(corpus.config.encoder), available_cores())
    tokenizer = Tokenizer.of_database(corpus.build.folder)
    kind = {"token_type": corpus.vocabulary.token_type, "chunk_tokens": 64}
    windows = []
    for part in corpus.parts:
        [file] = open_files(corpus.build.folder, [part.chunks], "chunks", kind)
        windows += tokenized_windows(file, encoder, tokenizer, Meter())
    return encoder, windows


def run_loop(windows: list[Tokenized], budget: int, network: Callable[..., torch.Tensor]) -> float:
    """Runs only the model, over batches that are ready; returns seconds."""
    batches = [
        (*window.padded(rows, 0), window.lengths[rows])
        for window in windows
        for rows in window.batches(budget)
    ]
    torch.set_num_threads(available_cores())
    start = time.perf_counter()
    for ids, weights, lengths in batches:
        network(ids, weights, lengths).numpy()
    return time.perf_counter() - start


def plain_network(model: Path) -> Callable[..., torch.Tensor]:
    """Returns the model as transformers runs it."""
    from transformers import AutoModel

    network = AutoModel.from_pretrained(model).eval()

    def run(ids: np.ndarray, weights: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        mask = torch.from_numpy((np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64))
        with torch.inference_mode():
            hidden = network(input_ids=torch.from_numpy(ids), attention_mask=mask)
            return torch.bmm(torch.from_numpy(weights)[:, None], hidden.last_hidden_state)

    return run


def run_peer(corpus: Chunked, folder: Path) -> float:
    """Runs RETRO-pytorch's function over the same chunks, its model loaded before; returns seconds."""
    from retro_pytorch import retrieval
    from transformers import AutoModel

    retrieval.MODEL = AutoModel.from_pretrained(corpus.model).eval()
    chunks = np.memmap(folder / "chunks.dat", np.int32, "w+", shape=(corpus.chunks, 65))
    row = 0
    for tokens, lengths in corpus.rows():
        is_token = np.arange(64) < lengths[:, None]
        chunks[row : row + len(tokens), :64] = np.where(is_token, tokens, 0)
        row += len(tokens)
    chunks.flush()
    torch.set_num_threads(available_cores())
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        retrieval.chunks_to_embeddings_(
            num_chunks=corpus.chunks,
            chunks_memmap_path=str(folder / "chunks.dat"),
            embeddings_memmap_path=str(folder / "embeddings.dat"),
            embed_dim=retrieval.MODEL.config.hidden_size,
        )
        return time.perf_counter() - start


def has_peer() -> bool:
    """Whether RETRO-pytorch is installed."""
    try:
        from retro_pytorch import retrieval  # noqa: F401
    except ImportError as error:
        print(f"RETRO-pytorch is left out: {error}")
        return False
    return True


def documents(path: Path | None) -> list[str]:
    """Returns articles of a WikiText file, or modules of Python's source."""
    if path:
        text = path.read_text("utf-8")
        return [part for part in re.split(r"(?m)^(?= = [^=].* = $)", text) if part.strip()]
    library = Path(sysconfig.get_path("stdlib"))
    files = [p for p in sorted(library.rglob("*.py")) if 8_000 < p.stat().st_size < 60_000]
    chosen = [p for p in files if not {"test", "tests", "site-packages"} & set(p.parts)][:60]
    return [file.read_text("utf-8", "replace") for file in chosen]


def sentences(texts: list[str], limit: int) -> list[str]:
    """Returns short documents: single sentences or lines of the long ones."""
    lines = [line.strip() for text in texts for line in re.split(r"(?<=[.!?]) |\n", text)]
    return [line for line in lines if 20 < len(line) < 160][:limit]


def measure_cpu(path: Path | None, rounds: int) -> None:
    """Measures and prints all ratios on this machine's processor."""
    texts = documents(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long = Chunked(folder / "long", texts)
        short = Chunked(folder / "short", sentences(texts, 8_000))
        print(f"{long.chunks:,} chunks of long documents, {short.chunks:,} of short ones")
        encoder, windows = prepared(long)
        budget = encoder.model.batch_tokens
        plain = plain_network(long.model)
        runs: dict[str, Callable[[], float]] = {
            "stage": lambda: run_stage(long, 1)[0],
            "stage, two workers": lambda: run_stage(long, 2)[0],
            "loop": lambda: run_loop(windows, budget, encoder.forward),
            "loop of transformers": lambda: run_loop(windows, budget, plain),
            "stage, short": lambda: run_stage(short, 1)[0],
        }
        if has_peer():
            runs["peer"] = lambda: run_peer(long, folder)
            runs["peer, short"] = lambda: run_peer(short, folder)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds):
            for name, run in runs.items():
                seconds[name].append(run())
            times = ", ".join(f"{name} {s[-1]:.1f} s" for name, s in seconds.items())
            print(f"round {number + 1}: {times}", flush=True)
        padding = [run_stage(corpus, 1)[1] for corpus in (long, short)]
    print(f"\nchunks/s of the stage: {long.chunks / statistics.median(seconds['stage']):,.0f}")
    print("\n| stage beside | ratio |\n|---|---|")
    pairs = [
        ("a bare loop, its own matrix products", "stage", "loop"),
        ("a bare loop, transformers alone", "stage", "loop of transformers"),
        ("itself with two workers of one thread", "stage", "stage, two workers"),
        ("RETRO-pytorch, long documents", "stage", "peer"),
        ("RETRO-pytorch, short documents", "stage, short", "peer, short"),
    ]
    for title, ours, other in pairs:
        if other in seconds:
            ratios = [b / a for a, b in zip(seconds[ours], seconds[other], strict=True)]
            print(f"| {title} | {statistics.median(ratios):.3f} |")
    print(f"\npadding: {padding[0]:.2%} of long documents, {padding[1]:.2%} of short ones")


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=Path, help="a WikiText file instead of Python's source")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch-tokens", type=int, default=65_536)
    options = parser.parse_args()
    if options.device == "cuda":
        measure_gpu(options.seconds, options.batch_tokens)
    else:
        measure_cpu(options.texts, options.rounds)


if __name__ == "__main__":
    main()
