"""How many lists full size takes, predicted from a sample of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from retro_db.errors import SampleError
from retro_db.plan.breadth_law import BreadthLaw, MeasuredBreadth
from retro_db.plan.breadth_measuring import measure_breadth_at, measure_breadths
from retro_db_pipelines.commands.cli import run
from support.benchmarks import synthetic
from support.projects import make_project
from support.texts import python_sources


def measured(law: Any) -> list[MeasuredBreadth]:
    """What a law says of nested samples."""
    sizes = [
        (n, round(ratio * math.sqrt(n))) for n in (6250, 25_000, 100_000) for ratio in (1, 2, 4)
    ]
    return [MeasuredBreadth(n, lists, law(n, lists)) for n, lists in sizes]


def test_a_law_of_lists_alone_is_found() -> None:
    law = BreadthLaw(0.95, measured(lambda n, lists: 20 * (lists / math.sqrt(n)) ** 0.6))
    predicted = law.predict(10**8, 40_000)
    assert predicted.nprobe == pytest.approx(20 * 4**0.6, abs=1)
    assert predicted.most - predicted.least <= 1


def test_growth_in_the_sample_widens_the_range() -> None:
    """Whether it goes on is not known: both ends are within the range."""
    law = BreadthLaw(0.95, measured(lambda n, lists: n**0.1 * 4 * (lists / math.sqrt(n)) ** 0.6))
    predicted = law.predict(10**10, 200_000)
    stays, grows = (power**0.1 * 4 * 2**0.6 for power in (1e5, 1e10))
    assert predicted.nprobe == pytest.approx(stays, abs=1)
    assert grows <= predicted.most <= grows + 1
    assert predicted.least < stays / 2
    assert law.predict(16, 2).most == 2


def test_lists_are_predicted_for_more_keys_than_were_measured() -> None:
    vectors, documents = synthetic(60_000, 48)
    recalls = (0.8, 0.9)
    sample = documents < documents[20_000]
    points = measure_breadths(vectors[sample], documents[sample], recalls)
    truth = measure_breadth_at(vectors, documents, 490, recalls)
    for recall, nprobe in zip(recalls, truth, strict=True):
        predicted = BreadthLaw(recall, points[recall]).predict(60_000, 490)
        assert predicted.least <= nprobe <= predicted.most
        assert predicted.nprobe == pytest.approx(nprobe, rel=0.2, abs=1)


def test_the_command_measures_a_database(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    project = make_project(
        tmp_path, python_sources(300), chunk={"tokens": 6}, split={"validation": 0.1}
    )
    assert project.build() == 0
    capsys.readouterr()
    words = ["plan", "--tokens", "1.75T", "--sample", str(project.output)]
    assert run([*words, "--set", "index.recall_target=0.9"]) == 0
    out = capsys.readouterr().out
    assert "predicted from nested parts" in out
    assert run([*words, "--set", "index.recall_target=0.9", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    recalls = {breadth["breadth"]["recall"]: breadth["breadth"] for breadth in plan["breadths"]}
    assert plan["join"]["nprobe"] == recalls[0.9]["nprobe"]
    assert recalls[0.9]["least"] <= recalls[0.9]["nprobe"] <= recalls[0.9]["most"]
    # The sample's own rates, of the stages that are on its record.
    stages = json.loads((project.output / "report" / "stages.json").read_text("utf-8"))["stages"]
    hours = {line["stage"]: line["hours"] for line in plan["hours"]}
    database = project.open()
    chunks, manifest = len(database), database.manifest
    for stage in ("chunk", "embed", "encode", "route", "neighbors"):
        each = stages[stage]["seconds"] / chunks
        assert hours[stage] == pytest.approx(each * plan["chunks"] / 3600, rel=0.01)
    pairs = chunks * manifest.neighbors.nprobe * -(-chunks // manifest.index.lists)
    joined = sum(stages[stage]["seconds"] for stage in ("home", "visit") if stage in stages)
    each = joined / (pairs * manifest.encoder.dimension)
    expected = each * plan["join"]["operations"] / 3600
    assert hours["home, visit"] == pytest.approx(expected, rel=0.01)


def test_too_small_a_sample_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    project = make_project(tmp_path, python_sources(3))
    assert project.build() == 0
    assert run(["plan", "--tokens", "1T", "--sample", str(project.output)]) != 0
    assert "give a database of at least 16,384" in capsys.readouterr().err
    with pytest.raises(SampleError, match="give a database of more"):
        BreadthLaw(0.98, [MeasuredBreadth(500, 22, 15.0)])
