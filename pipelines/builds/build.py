"""A whole build, one stage of it, or what it would do: the same recipe, gone about in three ways."""

from __future__ import annotations

import json
from contextlib import suppress

from retro_db.config import Config
from retro_db.manifest.model import Manifest
from retro_db.manifest.sealing import write_manifest
from retro_db.report.stage_report import STAGES as STAGE_REPORT
from retro_db.report.stage_report import StageReport
from retro_db.store.serialize import to_json

from ..engine.console import Console
from ..engine.context import Build
from ..engine.dry_run import NothingYetError, Telling
from ..engine.runner import Engine
from ..engine.running import Running, RunningAlone
from ..stages import STAGES
from ..stages.embed import probe_stage
from ..stages.tune import BuiltIndex
from .folders import checked_output, finished, mark_finished, sweep, taken_output
from .manifest_content import built_manifest
from .preflight import allow_files, check_ahead
from .prepare import prepare, record_locations
from .recipe import Recipe


def build(
    config: Config, engine: Engine, console: Console, *, sample: int | None = None
) -> Manifest:
    """Builds a database, continuing where an earlier run stopped.

    Args:
        config: What to build.
        engine: What executes the stages.
        console: What people see.
        sample: Number of documents to build from, about; None for the whole corpus.

    Returns:
        The manifest.

    Raises:
        InputError: A setting or an input cannot be used; the message names it and the remedy.
        ExecutionError: The environment failed.
    """
    engine.options()
    with taken_output(config) as folder:
        prepared = prepare(
            config, folder, engine=engine, console=console, action=Running(), sample=sample
        )
        started = prepared.build
        check_ahead(started, prepared.estimate, prepared.model, prepared.parts)
        record_locations(started)
        # A GPU that is missing, or too small, shows before any shard is read.
        model = probe_stage(started, prepared.model)
        recipe = Recipe(started, prepared.queries, model)
        for stage in recipe.stages():
            if stage == "screen" and (manifest := finished(folder, recipe.mark)):
                console.say(f"{config.output} is up to date: nothing to do")
                return manifest
        return _finish(recipe)


def _finish(recipe: Recipe) -> Manifest:
    """Writes the manifest, last of all that belongs to the database."""
    started, folder = recipe.build, recipe.build.home
    manifest = built_manifest(
        started.config,
        tokenizer=recipe.tokenizer,
        model=recipe.model,
        corpus=recipe.corpus,
        index=recipe.index,
        neighbors=recipe.neighbors,
        queries=recipe.queries,
    )
    manifest = write_manifest(folder, manifest)
    sweep(folder, manifest)
    documents = started.documents
    scale = 1.0 if documents is None else documents / manifest.counts.documents
    write_stages(started, manifest, recipe.index, max(scale, 1.0))
    mark_finished(folder, recipe.mark, manifest)
    return manifest


def write_stages(build: Build, manifest: Manifest, index: BuiltIndex, scale: float = 1.0) -> None:
    """Keeps what the stages took beside the database that they made.

    Args:
        build: The build that ran them.
        manifest: Manifest of the database.
        index: The index, with what its search took.
        scale: Documents of the whole corpus for each one that was built.
    """
    report = StageReport(manifest.generation, build.stages, scale, index.search.speeds)
    build.home.write(STAGE_REPORT, json.dumps(to_json(report), indent=1).encode())


def build_stage(name: str, config: Config, engine: Engine, console: Console) -> None:
    """Runs one stage alone, of query corpora too; the stages before it must be complete.

    Args:
        name: One of `STAGES`.
        config: What to build.
        engine: What executes it.
        console: What people see.

    Raises:
        InputError: An earlier stage has tasks left.
    """
    engine.options()
    with taken_output(config) as folder:
        action = RunningAlone(STAGES[name])
        prepared = prepare(config, folder, engine=engine, console=console, action=action)
        allow_files(prepared.parts)
        record_locations(prepared.build)
        last = STAGES[name][-1]
        for stage in Recipe(prepared.build, prepared.queries, prepared.model).stages():
            if stage == last:
                return


def dry_run(config: Config, engine: Engine, console: Console) -> None:
    """Says what a build would do and why, and writes nothing.

    Args:
        config: What to build.
        engine: What would execute it.
        console: What people see.

    Raises:
        InputError: A setting or an input cannot be used; the message names it and the remedy.
    """
    engine.options()
    action = Telling()
    folder = checked_output(config)
    prepared = prepare(config, folder, engine=engine, console=console, action=action)
    check_ahead(prepared.build, prepared.estimate, prepared.model, prepared.parts)
    recipe = Recipe(prepared.build, prepared.queries, prepared.model)
    with suppress(NothingYetError):
        for stage in recipe.stages():
            # Embeddings that were not kept are missing from a database that is complete all the same.
            if stage == "screen" and not config.embeddings.keep and finished(folder, recipe.mark):
                break
    if action.pending:
        console.say(
            f"dry run    {', '.join(action.pending)} to do; what comes after is redone where its input "
            "changes"
        )
    else:
        console.say("dry run    nothing to do")
