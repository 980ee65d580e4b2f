"""Dataflow without Google's cloud: every stage's pipeline as its runner would submit it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, WorkerOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from click.testing import CliRunner
from google.cloud.dataflow_v1beta3.types import TemplateMetadata

from retro_db.config import load_config
from retro_db.corpus.estimating import CorpusEstimate
from retro_db.encoder.models import describe_model
from retro_db.errors import ConfigError, DamagedFileError, InputError
from retro_db.index.drawing import Drawing, Drawn
from retro_db.join.setting import JoinSetting
from retro_db.join.span_routing import RoutedSpan
from retro_db.manifest.parts import Part
from retro_db.screening.duplicates import SignedShard
from retro_db.store.folder import Folder, TableEntry
from retro_db.store.packing import pack_numbers
from retro_db.store.slices import SlicedFile
from retro_db.threads import Share
from retro_db_pipelines.builds.build import build_database
from retro_db_pipelines.builds.preflight import check_ahead
from retro_db_pipelines.dataflow import flex
from retro_db_pipelines.engine.briefs import BRIEFS, Brief
from retro_db_pipelines.engine.completing import Running
from retro_db_pipelines.engine.console import Console
from retro_db_pipelines.engine.context import Build
from retro_db_pipelines.engine.jobs import Job, Placement, Task, fingerprint
from retro_db_pipelines.engine.runner import Engine
from retro_db_pipelines.stages.assemble import AssembleJob, ListRange
from retro_db_pipelines.stages.draw import DrawJob
from retro_db_pipelines.stages.embed import EmbedJob, ProbeJob
from retro_db_pipelines.stages.home import HomeJob, RoutedChunks
from retro_db_pipelines.stages.screen import GatherBands, PairsJob
from retro_db_pipelines.stages.train import TrainJob
from support.projects import Project, make_project
from support.texts import python_sources

IMAGE = "europe-west4-docker.pkg.dev/test-project/images/retro-db:1"
DATAFLOW = (
    "--runner=DataflowRunner",
    "--dry_run=True",
    "--no_auth",
    "--project=test-project",
    "--region=europe-west4",
    "--staging_location=gs://bucket/stg",
    "--temp_location=gs://bucket/tmp",
    "--job_name=wiki",
    f"--sdk_container_image={IMAGE}",
)
GPU = "type:nvidia-l4;count:1;install-nvidia-driver"
MEMORY = 2_000_000_000
# What a pipeline may say in one place.
MOST_BYTES = 20_000


@dataclass(frozen=True)
class Submitted:
    """What Dataflow would get."""

    proto: beam_runner_api_pb2.Pipeline
    job_name: str
    experiments: list[str]
    threads: int | None

    @property
    def hints(self) -> dict[str, dict[str, str]]:
        """The hints of every step that has some."""
        components = self.proto.components
        found = {}
        for step in components.transforms.values():
            environment = components.environments.get(step.environment_id)
            if environment and environment.resource_hints:
                hints = environment.resource_hints.items()
                found[step.unique_name] = {k.split(":")[-2]: v.decode() for k, v in hints}
        return found

    @property
    def images(self) -> set[str]:
        payload = beam_runner_api_pb2.DockerPayload
        environments = self.proto.components.environments.values()
        assert all(e.urn == common_urns.environments.DOCKER.urn for e in environments)
        return {payload.FromString(e.payload).container_image for e in environments}


def submit(job: Job, tasks: Sequence[Task], placement: Placement) -> Submitted:
    pipeline = Engine(beam_options=DATAFLOW).pipeline(job, tasks, placement)
    assert isinstance(pipeline.runner, DataflowRunner)
    pipeline.run()
    return Submitted(
        pipeline.runner.proto_pipeline,
        pipeline.options.view_as(GoogleCloudOptions).job_name,
        pipeline.options.view_as(DebugOptions).experiments or [],
        pipeline.options.view_as(DebugOptions).number_of_worker_harness_threads,
    )


@dataclass(frozen=True)
class Rehearsing(Engine):
    """Submits every stage in a dry run before it runs here."""

    submitted: dict[str, Submitted] = field(default_factory=dict)

    def run(self, job: Job, tasks: Sequence[Task], placement: Placement) -> None:
        self.submitted[job.stage] = submit(job, tasks, placement)
        super().run(job, tasks, placement)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Submitted]:
    """What a build with every kind of stage submits."""
    texts = python_sources(30)
    folder = tmp_path_factory.mktemp("dataflow")
    evaluation = folder / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"text": texts[0]}) + "\n", "utf-8")
    project = make_project(
        folder,
        texts,
        leakage={"paths": [str(evaluation)]},
        dedup={"jaccard": 0.8},
        queries=[{"name": "asked", "paths": [str(evaluation)]}],
        index={"memory": MEMORY},
    )
    project.settings["encoder"] |= {"accelerator": GPU, "max_active_bundles": 2}
    engine = Rehearsing()
    build_database(load_config(project.config), engine, Console())
    assert len(project.open()) > 0
    assert not (project.output / BRIEFS).exists()
    return engine.submitted


def test_every_stage_is_taken(stages: dict[str, Submitted]) -> None:
    assert list(stages) == [
        *("tokenizer", "evaluation", "screen", "pairs", "resolve", "chunk", "embed"),
        *("draw", "train", "encode", "assemble", "sample", "truth", "tune"),
        *("order", "route", "home", "neighbors"),
    ]


def test_jobs_and_steps_are_named_for_people(stages: dict[str, Submitted]) -> None:
    for stage, submitted in stages.items():
        assert submitted.job_name.startswith(f"wiki-{stage}-")
        names = [step.unique_name for step in submitted.proto.components.transforms.values()]
        assert len(set(names)) == len(names)
        assert {f"{stage} tasks/Read", f"{stage}/Spread", f"{stage}/Run"} <= set(names)
        assert top_steps(submitted.proto) == [f"{stage} tasks", stage]
    assert len({submitted.job_name for submitted in stages.values()}) == len(stages)


def test_workers_run_in_the_image_that_was_named(stages: dict[str, Submitted]) -> None:
    for submitted in stages.values():
        assert submitted.images == {IMAGE}


def test_each_stage_asks_for_what_it_needs(stages: dict[str, Submitted]) -> None:
    embed = {"accelerator": GPU, "max_active_bundles_per_worker": "2"}
    memory = {"min_ram_bytes": str(MEMORY + 4_000_000_000)}
    alone = {"train", "assemble", "tune", "order", "route", "home", "neighbors"}
    for stage, submitted in stages.items():
        wanted = embed if stage == "embed" else memory if stage in alone else None
        asked = submitted.hints
        assert all(name.startswith(f"{stage}/Run") for name in asked)
        assert all(hints == wanted for hints in asked.values())
        assert bool(asked) == (wanted is not None)
        assert ("no_use_multiple_sdk_containers" in submitted.experiments) == (stage in alone)
        assert submitted.threads == 1


def top_steps(proto: beam_runner_api_pb2.Pipeline) -> list[str]:
    steps = proto.components.transforms
    [root] = proto.root_transform_ids
    return [steps[step].unique_name for step in steps[root].subtransforms]


def largest(proto: beam_runner_api_pb2.Pipeline) -> int:
    return max(len(step.spec.payload) for step in proto.components.transforms.values())


def test_a_pipeline_does_not_grow_with_the_corpus(project: Project) -> None:
    folder = Folder(str(project.output))

    def entry(table: str, number: int) -> TableEntry:
        return TableEntry(f"{table}/part-{number:07d}-0000.arrow", 10**9, "0" * 64, 10**6)

    parts = [
        Part(i, 0, i * 10**6, entry("chunks", i), entry("documents", i), entry("embeddings", i))
        for i in range(30_000)
    ]
    codes = [entry("codes", i) for i in range(30_000)]
    join = JoinSetting(768, 64, 20, by_name=False, passes_over_copies=False, memory=10**9)
    packed = pack_numbers(range(2000))
    sliced = SlicedFile(entry("near", 0), packed)
    routed = RoutedChunks([RoutedSpan(sliced, packed, packed) for _ in range(4000)], 64)
    config = load_config(project.config)
    model = describe_model(config.encoder)
    drawing = Drawing(8, 0.1, 0.1, 0)
    drawn = [Drawn(drawing, SlicedFile(entry("drawn", i), packed[:40])) for i in range(30_000)]
    shards = [SignedShard(i, entry("signatures", i)) for i in range(30_000)]
    mark = fingerprint(1, {name: name for name in "abcdef"})
    each = [Task(part.name, mark, part) for part in parts]
    jobs: list[tuple[Any, list[Task], Placement]] = [
        (EmbedJob(folder, "model", model, folder, Share(), {}, "", None), each, Placement()),
        (
            DrawJob(folder, folder, drawing),
            [Task(part.name, mark, (part, d)) for part, d in zip(parts, drawn, strict=True)],
            Placement(),
        ),
        (ProbeJob(folder, "model", model), [Task("gpu", mark, None)], Placement()),
        (
            TrainJob(folder, "K", None, 8, 1, 1, 0, Share()),
            [Task("t", mark, (parts, drawn))],
            Placement(),
        ),
        (AssembleJob(folder, folder, codes), [Task("a", mark, ListRange(0, 0, 1))], Placement()),
        (
            HomeJob(folder, folder, routed, list(range(30_000)), join, Share()),
            [Task(f"partition-{i}", mark, i) for i in range(1000)],
            Placement.in_memory(10**9),
        ),
        (
            PairsJob(folder, shards, 0.8),
            [Task(f"partition-{i}", mark, i) for i in range(1000)],
            Placement(spread=GatherBands(folder, shards, 1000)),
        ),
    ]
    for job, tasks, placement in jobs:
        submitted = submit(job, tasks, placement)
        assert largest(submitted.proto) < MOST_BYTES, job.stage


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, python_sources(12))


def test_a_brief_that_others_changed_is_not_unpickled(tmp_path: Path) -> None:
    brief = Brief.write(Folder(str(tmp_path)), "tasks", ["one", 2])
    assert list(brief.read()) == ["one", 2]
    (tmp_path / BRIEFS / "tasks").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DamagedFileError, match="state/briefs/tasks was changed"):
        list(brief.read())


def test_the_template_is_googles_and_names_the_launchers_options() -> None:
    text = (
        resources.files("retro_db_pipelines.dataflow").joinpath("metadata.json").read_text("utf-8")
    )
    metadata = TemplateMetadata.from_json(text, ignore_unknown_fields=False)
    assert metadata.name
    assert metadata.description
    options = {name: option for option in flex.command.params[:-1] for name in option.opts}
    assert [f"--{parameter.name}" for parameter in metadata.parameters] == list(options)
    for parameter in metadata.parameters:
        assert parameter.label
        assert parameter.help_text
        assert parameter.regexes
        assert parameter.is_optional != options[f"--{parameter.name}"].required


LAUNCH = DATAFLOW[:-2]
OF_GOOGLE = ("--job_name=flex-1", "--template_location=gs://bucket/stg/template")


def test_the_launch_starts_one_driver(project: Project) -> None:
    stages = ["--max_num_workers=50"]
    pipeline = flex.driver_pipeline(
        str(project.config), IMAGE, ["neighbors.k=2"], stages, [*LAUNCH, *OF_GOOGLE]
    )
    pipeline.run()
    proto = pipeline.runner.proto_pipeline
    assert top_steps(proto) == ["Build", "Drive"]
    assert largest(proto) < MOST_BYTES
    assert pipeline.options.view_as(GoogleCloudOptions).job_name == "flex-1"
    assert pipeline.options.view_as(WorkerOptions).max_num_workers == 1
    [drive] = [step for step in proto.components.transforms.values() if step.unique_name == "Drive"]
    pickled = beam_runner_api_pb2.ParDoPayload.FromString(drive.spec.payload).do_fn.payload
    given = pickler.loads(pickled)[0].arguments
    assert given[:3] == [str(project.config), "--set=neighbors.k=2", "--"]
    engine = Engine(beam_options=tuple(given[3:]))
    workers = engine.options().view_as(WorkerOptions)
    cloud = engine.options().view_as(GoogleCloudOptions)
    assert (workers.max_num_workers, workers.num_workers) == (50, None)
    assert (cloud.job_name, cloud.template_location) == (None, None)
    assert cloud.project == "test-project"
    assert workers.sdk_container_image == IMAGE


def test_a_launch_builds_the_database(project: Project) -> None:
    arguments = [f"--config={project.config}", "--set=neighbors.k=2", "--runner=FnApiRunner"]
    arguments.append(f"--sdk_container_image={IMAGE}")
    done = CliRunner().invoke(flex.command, arguments)
    assert done.exit_code == 0, done.exception
    assert project.open().neighbors[[0]].shape == (1, 2)


def test_a_launch_refuses_a_wrong_configuration(project: Project) -> None:
    with pytest.raises(ConfigError, match="neighbours: unknown setting; did you mean neighbors"):
        flex.driver_pipeline(str(project.config), IMAGE, ["neighbours.k=2"], [], LAUNCH)


@pytest.mark.parametrize("local", [True, False])
def test_memory_is_looked_for_only_where_the_work_is_done(
    project: Project, capsys: pytest.CaptureFixture[str], local: bool
) -> None:
    config = load_config(project.config)
    model, estimate = describe_model(config.encoder), CorpusEstimate(1000, 10**6)
    folder, runner = Folder("memory://db"), "FnApiRunner" if local else "DataflowRunner"
    build = Build(
        config=config,
        folder=folder,
        home=folder,
        engine=Engine(beam_options=(f"--runner={runner}",)),
        console=Console(),
        shards=[],
        action=Running(),
    )
    check_ahead(build, estimate, model, 1)
    assert ("available to train" in " ".join(capsys.readouterr().out.split())) == local


def test_a_failed_build_fails_the_drivers_task_with_its_line(project: Project) -> None:
    with pytest.raises(InputError, match=r"corpus\.0.*nowhere"):
        flex.Drive([str(project.config), "--set=corpus.0.paths=[nowhere]"]).process(None)
