"""A whole build, one stage of it, or a dry run: one recipe, three actions."""

from __future__ import annotations

import json
from contextlib import suppress

from retro_db.config import Config
from retro_db.encoder.models import EncoderModel
from retro_db.manifest.model import Manifest
from retro_db.manifest.sealing import GENERATIONS, write_manifest
from retro_db.report.stage_report import STAGE_REPORT, StageReport
from retro_db.store.serialize import to_json

from ..engine.completing import Running, RunningAlone
from ..engine.console import Console
from ..engine.context import Build, IncompleteError
from ..engine.dry_run import DryRun
from ..engine.runner import Engine
from ..stages import STAGES
from ..stages.tune import BuiltIndex
from .folders import (
    check_files,
    checked_output,
    finished,
    keep_card,
    mark_finished,
    sweep,
    taken_output,
)
from .manifest_content import built_manifest
from .overwriting import expect_kept, loss_by
from .preflight import allow_files, check_addresses, check_ahead
from .prepare import prepare, record_locations
from .stage_order import Recipe


def build_database(
    config: Config,
    engine: Engine,
    console: Console,
    *,
    sample: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Builds a database, continuing where an earlier run stopped.

    Args:
        config: What to build.
        engine: What executes the stages.
        console: What people see.
        sample: Number of documents to build from, about; None for the whole corpus.
        overwrite: Whether a finished database may be replaced of which no embedding would be kept.

    Returns:
        The manifest.

    Raises:
        InputError: A setting or an input cannot be used; the message names it and the remedy.
        ExecutionError: The environment failed.
    """
    with taken_output(config) as folder:
        prepared = prepare(
            config, folder, engine=engine, console=console, action=Running(), sample=sample
        )
        build = prepared.build
        _claim(build, prepared.model, overwrite=overwrite)
        check_ahead(build, prepared.estimate, prepared.model, prepared.parts)
        record_locations(build)
        recipe = Recipe(build, prepared.queries, prepared.model)
        recipe.probe()
        for stage in recipe.stages():
            if stage == "screen" and (manifest := finished(folder, recipe.mark)):
                console.say(f"{config.output} is up to date: nothing to do")
                return manifest
        return _finish(recipe)


def _finish(recipe: Recipe) -> Manifest:
    """Writes the manifest, last of all that belongs to the database."""
    build, folder = recipe.build, recipe.build.home
    manifest = built_manifest(
        build.config,
        tokenizer=recipe.tokenizer,
        model=recipe.model,
        corpus=recipe.corpus,
        index=recipe.index,
        neighbors=recipe.neighbors,
        queries=recipe.queries,
    )
    check_files(folder, manifest)
    manifest = write_manifest(folder, manifest)
    sweep(folder, manifest)
    documents = build.whole_documents
    scale = 1.0 if documents is None else documents / manifest.counts.documents
    write_stages(build, manifest, recipe.index, max(scale, 1.0))
    keep_card(folder, manifest, build.console)
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


def _claim(build: Build, model: EncoderModel, *, overwrite: bool) -> None:
    """Makes sure that what the build replaces may be replaced."""
    if not overwrite:
        expect_kept(build, model)
    build.home.remove(GENERATIONS)  # of an append that was given up


def build_stage(
    name: str, config: Config, engine: Engine, console: Console, *, overwrite: bool = False
) -> None:
    """Runs one stage alone, of query corpora too; the stages before it must be complete.

    Args:
        name: One of `STAGES`.
        config: What to build.
        engine: What executes it.
        console: What people see.
        overwrite: As for `build_database`.

    Raises:
        IncompleteError: An earlier stage has tasks left.
    """
    with taken_output(config) as folder:
        action = RunningAlone(STAGES[name])
        prepared = prepare(config, folder, engine=engine, console=console, action=action)
        _claim(prepared.build, prepared.model, overwrite=overwrite)
        check_addresses()
        allow_files(prepared.parts)
        record_locations(prepared.build)
        recipe = Recipe(prepared.build, prepared.queries, prepared.model)
        for stage in recipe.stages():
            if stage == STAGES[name][-1]:
                recipe.check_queries(stage)
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
    action = DryRun()
    folder = checked_output(config)
    prepared = prepare(config, folder, engine=engine, console=console, action=action)
    check_ahead(prepared.build, prepared.estimate, prepared.model, prepared.parts)
    recipe = Recipe(prepared.build, prepared.queries, prepared.model)
    with suppress(IncompleteError):
        recipe.probe()
        for stage in recipe.stages():
            # Embeddings that were not kept are missing from a database that is complete all the same.
            if stage == "screen" and not config.embeddings.keep and finished(folder, recipe.mark):
                break
    if loss := loss_by(prepared.build, prepared.model):
        console.say(f"           {loss}; a build needs --overwrite")
    if action.pending:
        console.say(
            f"dry run    {', '.join(action.pending)} to do; the stages after that were not compared"
        )
    else:
        console.say("dry run    nothing to do")
