"""The examples: all are listed, the notebook runs, and the services of the containers fit together."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import retro_db
from retro_db.config import load_config
from retro_db_pipelines.commands.cli import cli
from retro_db_pipelines.engine.runner import Engine
from support.encoders import tiny_encoder
from support.pins import pins
from support.places import COMMAND, ROOT
from support.stores import free_port, running

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "first_database.ipynb"
SPARK = EXAMPLES / "spark-s3"
COMPOSE = yaml.safe_load((SPARK / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# Where the driver's container sees the folder of the example.
MOUNTED = "/example/"


def links(page: Path) -> set[str]:
    return set(re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", page.read_text("utf-8")))


def test_every_example_is_listed() -> None:
    listed = links(EXAMPLES / "README.md")
    for path in EXAMPLES.iterdir():
        if path.name not in ("README.md", "__pycache__"):
            assert (f"{path.name}/README.md" if path.is_dir() else path.name) in listed, path


@pytest.mark.parametrize("page", [EXAMPLES / "README.md", SPARK / "README.md", NOTEBOOK])
def test_links_of_examples_lead_somewhere(page: Path) -> None:
    assert links(page)
    for link in links(page):
        assert (page.parent / link).exists(), link


def test_the_notebook_has_no_outputs_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells, in order and in one namespace; in a folder of its own, which it removes."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        exec("".join(cell["source"]), names)  # noqa: S102 - our own example
    assert names["after"] < names["before"]
    assert not names["folder"].exists()
    assert ": sound" in capsys.readouterr().out


def test_the_notebooks_model_is_that_of_the_tutorial() -> None:
    sources = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]]
    [model] = [source for source in sources if "class SmallRetro" in source]
    assert model in (ROOT / "docs" / "tutorial.md").read_text("utf-8")


def test_services_have_images_that_the_project_knows() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images["s3"].split(":")[1] == pins()["moto"]
    assert images["spark-master"] == images["spark-worker"]
    [spark] = re.findall(r"\$\{SPARK_VERSION:-([\d.]+)\}", images["spark-master"])
    assert spark == pins()["pyspark"]
    assert images["pool"] == images["driver"] == "retro-db-spark"
    page_text = (SPARK / "README.md").read_text("utf-8")
    for name in SERVICES:
        assert f"`{name}`" in page_text, name


def test_the_image_is_made_from_the_projects_worker() -> None:
    text = (SPARK / "Dockerfile").read_text("utf-8")
    assert "\nFROM retro-db-worker:" in text
    targets = re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    readme = (SPARK / "README.md").read_text("utf-8")
    [target] = re.findall(r"docker build -t retro-db-worker --target (\w+) .* \.\./\.\.\n", readme)
    assert target in targets
    assert re.findall(r"'s3fs==(\S+)'", text) == [pins()["s3fs"]]


def test_services_find_one_another() -> None:
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        assert service.get("network_mode", "service:s3").removeprefix("service:") in SERVICES
        for volume in service.get("volumes", ()):
            assert (SPARK / volume.split(":")[0]).exists()
        if "build" in service:
            assert (SPARK / service["build"] / "Dockerfile").exists()
    environment = SERVICES["driver"]["environment"]
    assert environment == SERVICES["pool"]["environment"]
    published = {
        port.split(":")[-1] for service in SERVICES.values() for port in service.get("ports", ())
    }
    server, port = re.fullmatch(r"http://(\w+):(\d+)", environment["AWS_ENDPOINT_URL"]).groups()  # type: ignore[union-attr]
    assert server in SERVICES
    assert port in published
    assert SERVICES["spark-worker"]["command"][-1] == "spark://spark-master:7077"
    assert "--port=7077" in SERVICES["spark-master"]["command"]
    # Ports are open to this machine alone.
    assert all(
        p.startswith("127.0.0.1:")
        for service in SERVICES.values()
        for p in service.get("ports", ())
    )


def driver_commands() -> Iterator[list[str]]:
    """What the example's page runs in the driver."""
    text = re.sub(r"\\\n *", "", (SPARK / "README.md").read_text("utf-8"))
    for line in re.findall(r"^docker compose run --rm driver (.+)$", text, re.MULTILINE):
        yield [
            str(SPARK / word.removeprefix(MOUNTED)) if word.startswith(MOUNTED) else word
            for word in shlex.split(line)
        ]


def test_commands_of_the_driver_are_understood() -> None:
    commands = list(driver_commands())
    assert {command[0] for command in commands} == {"python", "retro-db"}
    for program, first, *rest in commands:
        for word in (first, *rest):
            assert not word.startswith(str(SPARK)) or Path(word).is_file(), word
        if program == "retro-db":
            command: click.Command = cli.commands[first]
            context = command.make_context(first, rest)
            Engine(context.params.get("workers"), context.params.get("beam_options", ()))
    [options] = [" ".join(command) for command in commands if "--runner=SparkRunner" in command]
    assert f"--spark_master_url={SERVICES['spark-worker']['command'][-1]}" in options
    port = SERVICES["pool"]["command"][-1].removeprefix("--service_port=")
    assert f"--environment_config=localhost:{port}" in options


def test_the_example_is_built_without_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upload, and its configuration with a smaller encoder, at the server that it names."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name, value in SERVICES["driver"]["environment"].items():
        monkeypatch.setenv(name, url if name == "AWS_ENDPOINT_URL" else value)
    server = [sys.executable, "-m", "moto.server", "--port", str(port)]

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port)):
            pass

    with running(server, tmp_path / "server.log", ask):
        upload = [sys.executable, str(SPARK / "upload.py"), "--documents", "8"]
        subprocess.run(upload, check=True, capture_output=True)
        settings = ["--set", f"encoder.model={tiny_encoder()}", "--set", "encoder.max_length=64"]
        build = [COMMAND, "build", SPARK / "config.yaml", *settings]
        done = subprocess.run(build, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        database = retro_db.open(load_config(SPARK / "config.yaml").output, cache=tmp_path / "c")
        assert database.manifest.counts.documents == 8
