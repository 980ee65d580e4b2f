"""Starts a build on Dataflow and returns: the program of the flex template.

A build is many pipelines, each made of what the ones before it found, and a flex template starts one: its
program must end once that is described, and must not wait for it
(https://docs.cloud.google.com/dataflow/docs/guides/templates/configuring-flex-templates). So the pipeline
that it starts has a single task, the driver: a worker runs `retro-db build`, which takes the folder, checks
everything, and starts the stages as Dataflow jobs of their own, one after the other. Should its worker fail,
Dataflow runs the task again, and the build goes on where it stopped; so does another launch.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from retro_db.config import load_config
from retro_db.errors import ExecutionError, InputError

from ..commands import cli
from ..engine.beam import PipelineOptions, StandardOptions, WorkerOptions, beam

# What Google's launcher says of the one pipeline that it starts: no other may have it.
_OF_THE_LAUNCH = ("--job_name", "--template_location")


@dataclass
class Drive(beam.DoFn):
    """Runs a build in a process of its own, whose lines go to the worker's log.

    Args:
        arguments: Arguments of `retro-db build`.
    """

    arguments: list[str]

    def process(self, element: None) -> None:
        """Waits for the build.

        Raises:
            RetroDBError: It failed, with its own line.
        """
        command = [sys.executable, "-m", "retro_db_pipelines", "build", *self.arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(done.stderr)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            kind = InputError if done.returncode == InputError.exit_code else ExecutionError
            raise kind(last.removeprefix("error: "))


def driver_pipeline(
    config: str,
    image: str,
    overrides: Sequence[str],
    stages: Sequence[str],
    launch: Sequence[str],
) -> beam.Pipeline:
    """The pipeline that drives a build, not run yet.

    Args:
        config: Path or URL of the configuration, as workers see it.
        image: Image of all workers, with retro-db in it.
        overrides: Settings that are changed.
        stages: Beam's options for the stages' jobs alone; they override the options of the launch.
        launch: Beam's options for this pipeline and the stages'.

    Raises:
        ConfigError: The configuration cannot be read, or is wrong.
    """
    load_config(config, overrides)
    launch = [*launch, f"--sdk_container_image={image}"]
    options = PipelineOptions(launch, save_main_session=False)
    standard, workers = options.view_as(StandardOptions), options.view_as(WorkerOptions)
    standard.runner = standard.runner or "DataflowRunner"
    workers.num_workers = workers.max_num_workers = 1
    inherited = [option for option in launch if not option.startswith(_OF_THE_LAUNCH)]
    beam_options = [f"--runner={standard.runner}", *inherited, *stages]
    settings = [f"--set={override}" for override in overrides]
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | "Build" >> beam.Create([None])
        | "Drive" >> beam.ParDo(Drive([config, *settings, "--", *beam_options]))
    )
    return pipeline


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, help="Path or URL of the configuration.")
@click.option("--sdk_container_image", required=True, help="Image of all workers.")
@click.option("--set", "overrides", default="", help="Settings to change: a.b=value ...")
@click.option("--beam_options", default="", help="Options of Beam for the stages' jobs alone.")
@click.argument("launch", nargs=-1, type=click.UNPROCESSED)
def command(
    config: str,
    sdk_container_image: str,
    overrides: str,
    beam_options: str,
    launch: tuple[str, ...],
) -> None:
    """Start a build on Dataflow and return; other options are Beam's."""
    changed, stages = shlex.split(overrides), shlex.split(beam_options)
    driver_pipeline(config, sdk_container_image, changed, stages, launch).run()


def main() -> None:
    """Launches, from the command line."""
    cli.main(sys.argv[1:], command)
