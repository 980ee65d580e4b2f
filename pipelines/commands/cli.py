"""Commands and exit codes: 0 done, 1 the database is not sound, 2 bad input, 3 the environment."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import click

from retro_db.errors import ExecutionError, RetroDBError, of_environment

from ..engine import worker_processes
from ..engine.console import Console
from ..stages import STAGES
from .signals import Stopped, stopping
from .usage import remedy

_CONFIG = click.argument("config", metavar="CONFIG.yaml", type=click.Path())
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="a.b=value",
    help="Change one setting; may be repeated.",
)
_OVERWRITE = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a finished database even if none of its embeddings can be kept.",
)
_WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tasks that run side by side on a machine and share its cores. On this machine each has a process, "
    "and the default is 1; with another runner the default is a task on each core.",
)
_OPEN = click.option(
    "--open",
    "opens",
    is_flag=True,
    help="Open the report in the desktop's browser, if there is one.",
)
_BEAM_OPTIONS = click.argument(
    "beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM OPTIONS]"
)
_DATABASE = click.argument("database", metavar="DB")
_ENCODER = click.option(
    "--encoder",
    metavar="MODEL",
    help="Folder or hub name of the encoder, if it moved since the build.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def _neighbors(default: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "-k",
        type=click.IntRange(min=1),
        metavar="N",
        default=default,
        show_default=True,
        help="Number of neighbors.",
    )


@click.group("retro-db", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="retro-db")
def cli() -> None:
    """Builds and reads retrieval databases for RETRO-style language models."""


@cli.command()
@_CONFIG
@_SET
@_WORKERS
@click.option(
    "--smoke",
    is_flag=False,
    flag_value=1000,
    type=click.IntRange(min=1),
    metavar="[DOCUMENTS]",
    help="Try every stage on a sample of about 1,000 documents, verify it, and say what the whole "
    "build would take.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and why.")
@click.option(
    "--append",
    "adds",
    is_flag=True,
    help="Add the corpus to the database that is there, as a new generation.",
)
@click.option(
    "--refresh",
    is_flag=True,
    help="With --append: chunks that are there already find neighbors among the new ones, too.",
)
@_OVERWRITE
@_OPEN
@_BEAM_OPTIONS
def build(
    *,
    config: str,
    overrides: tuple[str, ...],
    workers: int,
    smoke: int | None,
    dry_run: bool,
    adds: bool,
    refresh: bool,
    overwrite: bool,
    opens: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Build a database, or continue an interrupted build.

    Options of Apache Beam, such as --runner=SparkRunner, go after --.
    """
    from retro_db.config import load_config

    if sum((dry_run, adds, smoke is not None)) > 1:
        raise click.UsageError("--smoke, --dry-run and --append cannot be combined")
    if refresh and not adds:
        raise click.UsageError("--refresh belongs to --append")
    if overwrite and (adds or smoke is not None):
        raise click.UsageError(
            "--overwrite belongs to a build: --append and --smoke replace nothing"
        )
    if opens and (dry_run or smoke is not None):
        raise click.UsageError("--open belongs to a build: --dry-run and --smoke leave no database")
    settings = load_config(config, overrides, of_database=adds)
    # Beam takes seconds to import: mistakes are told before.
    from .build import BuildOptions, build_as_told

    options = BuildOptions(smoke, dry_run, adds, refresh, overwrite, opens)
    build_as_told(settings, options, workers, beam_options, Console())


@cli.command()
@click.argument("config", metavar="[CONFIG.yaml]", required=False, type=click.Path())
@_SET
@click.option(
    "--tokens", metavar="COUNT", help="Size of the corpus in tokens, such as 1.75T or 300B."
)
@click.option(
    "--tokens-per-document",
    metavar="COUNT",
    help="With --tokens: mean length of a document; by default 1,000, as in the paper's corpus.",
)
@click.option(
    "--vocab-size",
    metavar="COUNT",
    help="With --tokens: vocabulary of the tokenizer; by default 128,000.",
)
@click.option(
    "--dimension",
    metavar="COUNT",
    help="With --tokens: dimension of the embeddings; by default 768.",
)
@click.option("--k", metavar="COUNT", help="Neighbors of a chunk, as --set neighbors.k=COUNT.")
@click.option(
    "--index-memory",
    metavar="SIZE",
    help="Memory of a worker, such as 512GB, as --set index.memory=SIZE.",
)
@click.option(
    "--no-embeddings", is_flag=True, help="Drop embeddings, as --set embeddings.keep=false."
)
@click.option(
    "--bytes-per-token",
    metavar="COUNT",
    help="Bytes of text for each token, about; by default 4, as in English.",
)
@click.option(
    "--chunks-per-second",
    metavar="COUNT",
    help="Rate at which one of your devices embeds, as benchmarks/embedding.py prints it.",
)
@click.option(
    "--nprobe",
    metavar="COUNT",
    help="Lists that a chunk visits to find its neighbors; by default 64. A build measures how many it "
    "takes.",
)
@click.option(
    "--sample",
    metavar="DB",
    help="A database of 100,000 chunks of the corpus or more, with embeddings: measures in nested samples "
    "of it how many lists recalls take, and predicts that at full size.",
)
@click.option(
    "--probe",
    is_flag=True,
    help="Measure for some seconds what this machine embeds and joins, and plan hours by it.",
)
@_JSON
def plan(
    *,
    config: str | None,
    overrides: tuple[str, ...],
    k: str | None,
    index_memory: str | None,
    no_embeddings: bool,
    chunks_per_second: str | None,
    nprobe: str | None,
    sample: str | None,
    probe: bool,
    as_json: bool,
    **corpus: str | None,
) -> None:
    """Say what a build would take, for a configuration or a number of tokens, before anything runs."""
    from .plan import CorpusOptions, plan_build, show_plan

    short = {"neighbors.k": k, "index.memory": index_memory}
    settings = [
        *overrides,
        *(f"{key}={value}" for key, value in short.items() if value is not None),
    ]
    if no_embeddings:
        settings.append("embeddings.keep=false")
    planned = plan_build(
        config,
        CorpusOptions(**corpus),
        settings,
        chunks_per_second,
        nprobe,
        sample,
        probing=probe,
    )
    show_plan(planned, Console(), as_json=as_json)


@cli.command()
@_DATABASE
@_JSON
def inspect(*, database: str, as_json: bool) -> None:
    """Show counts, sizes, settings and health of a database."""
    from .show import show_database

    show_database(database, Console(), as_json=as_json)


@cli.command()
@_DATABASE
@click.argument("text", required=False)
@click.option("--chunk", type=int, metavar="ID", help="A chunk, in place of a text.")
@_neighbors(5)
@_ENCODER
@_JSON
def query(
    *,
    database: str,
    text: str | None,
    chunk: int | None,
    k: int,
    encoder: str | None,
    as_json: bool,
) -> None:
    """Show the chunks nearest to a text, or those stored as a chunk's neighbors."""
    from .query import show_near_chunk, show_near_text

    if chunk is not None and text is None:
        show_near_chunk(database, chunk, k, Console(), as_json=as_json)
    elif text is not None and chunk is None:
        show_near_text(database, text, k, encoder, Console(), as_json=as_json)
    else:
        raise click.UsageError("give a text or --chunk ID")


@cli.command()
@_DATABASE
@click.option(
    "--recompute",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="SHARE",
    help="Share of the documents whose embeddings, codes and neighbors are computed again, such as 0.01; "
    "for each corpus one document at the least. Run it on the kind of machine that built them.",
)
@_ENCODER
@click.option(
    "--inputs",
    metavar="CONFIG.yaml",
    type=click.Path(),
    help="Configuration of the build: documents and tokens of as large a share of its corpus are compared.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    help="Seed of the sample where not everything is looked at; by default another one each time, which is "
    "printed.",
)
@_JSON
def verify(
    *,
    database: str,
    recompute: float,
    encoder: str | None,
    inputs: str | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Check every checksum and every invariant; exit 1 and a list where anything is wrong."""
    from .show_problems import show_problems

    if inputs and not recompute:
        raise click.UsageError("--inputs belongs to --recompute, which says how much is compared")
    exit_code = show_problems(
        database, recompute, encoder, Console(), inputs=inputs, seed=seed, as_json=as_json
    )
    sys.exit(exit_code)


@cli.command()
@_DATABASE
@click.option("--queries", metavar="NAME", help="A query corpus, in place of the validation split.")
@_neighbors(10)
@click.option("--save", metavar="FILE", help="Parquet file for the figures of every chunk.")
@_JSON
def leakage(*, database: str, queries: str | None, k: int, save: str | None, as_json: bool) -> None:
    """Measure how much of an evaluation set its neighbors contain, word for word.

    r(C) is the longest run of tokens that a chunk has in common with one of its neighbors and its
    continuation, over the chunk's length.
    """
    from .show_leakage import show_leakage

    show_leakage(database, queries, k, save, Console(), as_json=as_json)


@cli.command()
@_DATABASE
@click.option(
    "--beside",
    metavar="DB",
    help="Another database to show beside DB, with the settings that differ.",
)
@click.option(
    "--beside-generation",
    type=click.IntRange(min=1),
    metavar="N",
    help="Generation to show beside DB: of the database of --beside, or else of DB itself.",
)
@click.option(
    "--out",
    metavar="FILE",
    help="Path or URL; by default report/report.html in DB, or report/beside.html where two are shown.",
)
@_OPEN
def report(
    *,
    database: str,
    beside: str | None,
    beside_generation: int | None,
    out: str | None,
    opens: bool,
) -> None:
    """Write a page about a database: one HTML file that needs no network."""
    import retro_db

    from .opening import show_report

    other = None
    if beside or beside_generation:
        other = retro_db.open(beside or database, beside_generation)
    show_report(retro_db.open(database), out, other, Console(), opens=opens)


@cli.command()
@_DATABASE
@click.option(
    "--documents",
    required=True,
    type=click.Path(),
    metavar="FILE",
    help="One document per line: its id, or its source, a tab and its id. In a file named .jsonl, objects "
    "with id and, where ids repeat, source.",
)
def remove(database: str, documents: str) -> None:
    """Remove documents: they are neither neighbors nor training text from now on.

    Ids stay as they are, and what was opened before goes on undisturbed.
    """
    from retro_db.updates.removal import remove_documents

    from .show import show_removed

    show_removed(database, remove_documents(database, documents), Console())


@cli.command()
@_DATABASE
@click.argument("new", metavar="NEW")
@_WORKERS
@_BEAM_OPTIONS
def compact(database: str, new: str, workers: int, beam_options: tuple[str, ...]) -> None:
    """Copy DB to the folder NEW without what was removed, with a map from old ids to new."""
    from ..builds.compact import compact as run_compact
    from ..engine.runner import Engine
    from .show import show_built

    console = Console()
    manifest = run_compact(database, new, Engine(workers, beam_options), console)
    show_built(new, manifest, console)


@cli.command()
@_DATABASE
@click.argument("out", metavar="OUT", type=click.Path())
@click.option(
    "--to", required=True, type=click.Choice(["megatron"]), help="Trainer whose layout is written."
)
@click.option(
    "--seq-len",
    type=click.IntRange(min=1),
    metavar="N",
    default=2048,
    show_default=True,
    help="Tokens of a sample, a multiple of the chunk length.",
)
@click.option(
    "-k",
    type=click.IntRange(min=1),
    metavar="N",
    default=2,
    show_default=True,
    help="Number of neighbors of a chunk.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples of the whole training; by default about one epoch.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    default=256,
    show_default=True,
    help="Samples of a step, over all ranks.",
)
@click.option(
    "--eval-interval",
    type=click.IntRange(min=1),
    metavar="N",
    default=1000,
    show_default=True,
    help="Steps between evaluations.",
)
@click.option(
    "--eval-iters",
    type=click.IntRange(min=0),
    metavar="N",
    default=100,
    show_default=True,
    help="Batches of an evaluation; 0 exports no validation documents.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    default=1234,
    show_default=True,
    help="Seed of the trainer, from which the order of samples follows.",
)
@click.option(
    "--end-token",
    metavar="TOKEN",
    help="Token that ends documents; by default the tokenizer's eos_token.",
)
def export(database: str, out: str, to: str, **settings: Any) -> None:
    """Write DB in another trainer's layout to the folder OUT: as a project of Megatron-LM's Retro."""
    from retro_db.export import MegatronSettings

    from .export import export_to_megatron

    export_to_megatron(database, out, MegatronSettings(**settings), Console())


@cli.command()
@click.argument("name", metavar="NAME", type=click.Choice(list(STAGES)))
@_CONFIG
@_SET
@_WORKERS
@_OVERWRITE
@_BEAM_OPTIONS
def stage(
    *,
    name: str,
    config: str,
    overrides: tuple[str, ...],
    workers: int,
    overwrite: bool,
    beam_options: tuple[str, ...],
) -> None:
    """Run one stage of a build alone; the stages before it must be complete.

    NAME index stands for the four stages train, encode, assemble and tune.
    """
    from retro_db.config import load_config

    settings = load_config(config, overrides)
    from ..builds.build import build_stage
    from ..engine.runner import Engine

    engine = Engine(workers, beam_options)
    build_stage(name, settings, engine, Console(), overwrite=overwrite)


@cli.group("config")
def config_group() -> None:
    """Write, check and explain configurations."""


@config_group.command("init")
@click.argument("file", metavar="[FILE]", required=False, default="config.yaml", type=click.Path())
@click.option(
    "--corpus",
    "paths",
    multiple=True,
    metavar="PATH",
    help="File, folder, glob or URL with your text; may be repeated.",
)
@click.option(
    "--tokenizer",
    metavar="PATH",
    help="Your language model's tokenizer: a file, a folder or a hub name; by default, one is trained.",
)
@click.option("--encoder", metavar="MODEL", help="The frozen BERT: a folder or a hub name.")
def config_init(
    *, file: str, paths: tuple[str, ...], tokenizer: str | None, encoder: str | None
) -> None:
    """Write a commented configuration to start from; never over an existing file."""
    from .configuration import Starter, write_starter

    write_starter(file, Starter(paths, tokenizer, encoder), Console())


@config_group.command("check")
@_CONFIG
@_SET
def config_check(*, config: str, overrides: tuple[str, ...]) -> None:
    """Check a configuration, and show the settings that differ from the defaults.

    It looks at the file and the files that it includes, and not at the corpus.
    """
    from .configuration import show_checked

    sys.exit(show_checked(config, overrides, Console()))


@config_group.command("explain")
@click.argument("key", metavar="[KEY]", required=False)
def config_explain(*, key: str | None) -> None:
    """Explain a setting, such as neighbors.k, or a section; without KEY, list all settings."""
    from .configuration import explain_setting, list_settings

    if key is None:
        list_settings(Console())
    else:
        explain_setting(key, Console())


def run(arguments: Sequence[str], command: click.Command = cli) -> int:
    """Runs one command.

    Returns:
        The exit code.
    """
    console = Console()
    # Libraries warn while they are imported; a build gives them a log file later.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        with stopping():
            command.main(list(arguments), prog_name=command.name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        if line := remedy(error, arguments):
            click.echo(line, err=True)
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except RetroDBError as error:
        console.fail(str(error))
        return error.exit_code
    except click.Abort as error:  # what click makes of an interrupt
        if not isinstance(error.__cause__, Stopped):
            raise
        console.fail(str(error.__cause__))
        return error.__cause__.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    except (OSError, MemoryError) as error:
        console.fail(str(of_environment(error)))
        return ExecutionError.exit_code
    except Exception as error:
        logging.getLogger(__name__).exception("unforeseen")
        console.fail(f"{type(error).__name__}: {error}; mend the cause and run the command again")
        return ExecutionError.exit_code
    return 0


def main(arguments: Sequence[str], command: click.Command = cli) -> NoReturn:
    """Runs one command, and ends the process with its exit code."""
    ended: list[int] = []
    # What is registered first runs last.
    atexit.register(_leave, ended)
    ended.append(run(arguments, command))
    # All is said; threads that lose their workers, or an engine's job server, would add traces.
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    worker_processes.stop()
    sys.exit(ended[0])


def _leave(ended: list[int]) -> None:
    """After a failure, threads of native libraries may still run, and would abort an orderly exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    if any(ended):
        os._exit(ended[0])
