"""Exporting a database into the layout of another trainer."""

from __future__ import annotations

import retro_db
from retro_db.export import MegatronProject, MegatronSettings
from retro_db.manifest.model import TRAIN, VALIDATION
from retro_db.meter import Meter

from ..engine.console import Console


def export_to_megatron(url: str, out: str, settings: MegatronSettings, console: Console) -> None:
    """Writes a project of Megatron-LM's Retro, and prints the options for its trainer.

    Args:
        url: The database.
        out: A local folder that is not there.
        settings: What the trainer will find in the project.
        console: What people read.
    """
    project = MegatronProject(retro_db.open(url), out, settings)
    meter = Meter()
    with console.stage("export", "chunks", project.work, lambda: meter.work) as remark:
        project.write(meter)
        remark(f"{out}: {settings.k} neighbors for each chunk of a sample")
    trained, evaluated = project.samples[TRAIN], project.samples.get(VALIDATION, 0)
    console.say(
        f"samples    {trained:,} to train, {evaluated:,} to evaluate, of {settings.seq_len:,} tokens"
    )
    console.say(
        f"train      pretrain_retro.py --retro-project-dir {out} --retro-add-retriever "
        f"--retro-num-neighbors {settings.k} --split {project.corpora.shares}"
    )
