"""The chunk stage beside the bare tokenizer, and its memory when the corpus grows tenfold.

    python benchmarks/chunking.py [--megabytes 24] [--rounds 5]

The corpus is the Python standard library's own source as JSON lines, repeated up to the size. In every
round the tokenizer alone, the stage with one worker of one thread, and the stage with two workers take
their turn in fresh processes; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import orjson
import yaml
from tokenizers import Tokenizer

BATCH = 256


def write_corpus(folder: Path, size: int, tokenizer: Path | None) -> Path:
    """Writes JSON lines of about `size` bytes in ten files, and a configuration for them."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = [p for p in sorted(library.rglob("*.py")) if "site-packages" not in p.parts]
    texts = [path.read_text("utf-8", "replace") for path in modules]
    (folder / "corpus").mkdir(parents=True)
    written, number = 0, 0
    files = [(folder / "corpus" / f"{n}.jsonl").open("wb") for n in range(10)]
    while written < size:
        text = f"# copy {number // len(texts)}\n{texts[number % len(texts)]}"
        written += files[number % len(files)].write(orjson.dumps({"text": text}) + b"\n")
        number += 1
    for file in files:
        file.close()
    settings = {
        "output": str(folder / "db"),
        "corpus": [{"name": "python", "paths": [str(folder / "corpus")]}],
        "tokenizer": {"path": str(tokenizer)} if tokenizer else {"train": {"vocab_size": 32_000}},
        "encoder": {"model": "unused"},
        "chunk": {"shard_size": size // 10},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(settings), "utf-8")
    return config


def run_bare(config: Path) -> dict[str, float]:
    """Runs only the tokenizer, on texts that are in memory already."""
    settings = yaml.safe_load(config.read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(Path(settings["tokenizer"]["path"], "tokenizer.json")))
    files = sorted(Path(settings["corpus"][0]["paths"][0]).iterdir())
    texts = [orjson.loads(line)["text"] for file in files for line in file.open("rb")]
    tokens, start = 0, time.perf_counter()
    for first in range(0, len(texts), BATCH):
        encodings = tokenizer.encode_batch(texts[first : first + BATCH], add_special_tokens=False)
        tokens += sum(map(len, encodings))
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def run_stage(config: Path, workers: int) -> dict[str, float]:
    """Runs the stage as a build does, into a new folder."""
    from retro_db.config import load_config
    from retro_db.corpus.sharding import plan_shards
    from retro_db.store.folder import Folder
    from retro_db_pipelines.engine.console import Console
    from retro_db_pipelines.engine.context import Build
    from retro_db_pipelines.engine.runner import Engine
    from retro_db_pipelines.engine.running import Running
    from retro_db_pipelines.stages.chunk import chunk_stage
    from retro_db_pipelines.stages.tokenizer import tokenizer_stage

    with tempfile.TemporaryDirectory() as output:
        settings = load_config(config, [f"output={output}"])
        shards = plan_shards(settings)
        folder = Folder(output)
        build = Build(settings, folder, folder, Engine(workers), Console(), shards, Running())
        vocabulary = tokenizer_stage(build)
        start = time.perf_counter()
        corpus = chunk_stage(build, vocabulary, [None] * len(shards))
        seconds = time.perf_counter() - start
    tokens = sum(part.tokens for shard in corpus.shards for part in shard.parts)
    return {"tokens": tokens, "seconds": seconds}


def in_process(what: str, config: Path, cores: int) -> dict[str, float]:
    """Runs once in a new process, on `cores` cores."""
    command = [sys.executable, __file__, "--run", what, "--config", str(config)]
    command += ["--cores", str(cores)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def child(what: str, config: Path, cores: int) -> None:
    """Runs in the process that `in_process` starts, and prints the result as JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    result = run_bare(config) if what == "bare" else run_stage(config, int(what))
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        child(options.run, options.config, options.cores)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.megabytes * 1_000_000, options.rounds)


def measure(folder: Path, size: int, rounds: int) -> None:
    """Measures and prints all figures."""
    from retro_db.config import TrainTokenizerConfig
    from retro_db.tokens.tokenizer_training import train_tokenizer

    library = Path(sysconfig.get_path("stdlib"))
    sample = [path.read_text("utf-8", "replace") for path in sorted(library.glob("*.py"))]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    trained = train_tokenizer(sample, TrainTokenizerConfig(vocab_size=32_000))
    for name, data in trained.files.items():
        (tokenizer / name).write_bytes(data)
    once = write_corpus(folder / "once", size, tokenizer)
    rates: dict[str, list[float]] = {"bare": [], "1": [], "2": []}
    for number in range(rounds):
        for what, cores in (("bare", 1), ("1", 1), ("2", 2)):
            run = in_process(what, once, cores)
            rates[what].append(run["tokens"] / run["seconds"])
        print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:,.0f}" for k, v in rates.items()))
    ratio = statistics.median(a / b for a, b in zip(rates["1"], rates["bare"], strict=True))
    scaling = statistics.median(a / b for a, b in zip(rates["2"], rates["1"], strict=True))
    print(f"one worker of one thread beside encode_batch: {ratio:.3f}")
    print(f"two workers beside one: {scaling:.3f}")
    tenfold = write_corpus(folder / "tenfold", 10 * size, tokenizer)
    peaks = [in_process("1", config, 1)["peak"] for config in (once, tenfold)]
    print(f"peak memory: {peaks[0]:,.0f} MiB, of ten times the corpus {peaks[1]:,.0f} MiB")
    print(f"peak memory, ten times the corpus beside one: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
