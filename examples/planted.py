"""Writes a corpus with repeated passages, so that neighbors help a model.

    python examples/planted.py FOLDER [--documents 240]

The text comes from Python's standard library, cut into passages of whole lines. A document is an opening of
some passages, which it shares with two other documents, and a passage that no other document has: versions
of a file, pages of a site and filled-in forms share as much. The folder gets `corpus.jsonl` and the
`config.yaml` of a build, which sets every eighth document apart for validation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import yaml

from retro_db_pipelines.commands.demo import encoder_folder

OPENING, COPIES = 3, 3  # passages of an opening, and documents that have it in common
CHARACTERS = (700, 1300)  # about the length of a passage: 3 to 8 chunks
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "encodings", "pydoc_data"}


def passages(chance: random.Random) -> Iterator[str]:
    """Yields runs of whole lines of the library's modules, each text once."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = [p for p in library.rglob("*.py") if not LEFT_OUT & set(p.relative_to(library).parts)]
    modules.sort()
    chance.shuffle(modules)
    for module in modules:
        passage, wanted = "", chance.randint(*CHARACTERS)
        for line in module.read_text("utf-8", errors="ignore").splitlines(keepends=True):
            passage += line
            if len(passage) >= wanted:
                yield passage
                passage, wanted = "", chance.randint(*CHARACTERS)


def documents(count: int, chance: random.Random) -> Iterator[str]:
    """Returns documents with common openings, in a shuffled order."""
    source = passages(chance)
    texts: list[str] = []
    while len(texts) < count:
        opening = "".join(itertools.islice(source, OPENING))
        texts += [opening + next(source) for _ in range(COPIES)]
    chance.shuffle(texts)
    return iter(texts[:count])


def write_corpus(folder: Path, count: int) -> None:
    """Writes the corpus, and a configuration that builds it to `db` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        for number, text in enumerate(documents(count, random.Random(0))):  # noqa: S311
            file.write(json.dumps({"id": f"document-{number}", "text": text}) + "\n")
    settings = {
        "output": str(folder / "db"),
        "corpus": [{"name": "planted", "paths": [str(corpus)], "id": "id"}],
        "tokenizer": {"train": {"vocab_size": 1000}},
        "split": {"validation": 0.125},
        "encoder": {"model": str(encoder_folder())},
        "neighbors": {"k": 4},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")


def main() -> None:
    """Reads the arguments, and writes the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=240)
    options = parser.parse_args()
    write_corpus(options.folder, options.documents)


if __name__ == "__main__":
    main()
