"""`retro-db config`: a file to start from, what is wrong with one, and what a setting means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retro_db.config import Config, load_config
from retro_db_pipelines.commands.cli import run

Streams = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_first_configuration_is_right_and_its_comments_are_the_defaults(capsys: Streams) -> None:
    assert run(["config", "init"]) == 0
    assert run(["config", "check", "config.yaml"]) == 0
    written = Path("config.yaml").read_text()
    defaults = re.sub(r"^( *)# (?=\w+: [\w{\[.]+)", r"\1", written, flags=re.MULTILINE)
    assert len(defaults) < len(written) - 2 * 10
    Path("defaults.yaml").write_text(defaults)
    assert load_config("defaults.yaml") == load_config("config.yaml")
    assert run(["config", "init"]) == 2
    assert "config.yaml: exists, and is not replaced" in capsys.readouterr().err
    assert Path("config.yaml").read_text() == written


def test_a_first_configuration_for_ones_own_text() -> None:
    given = [
        "--corpus",
        "a's/*.txt",
        "--corpus",
        'b "é": #',
        "--tokenizer",
        "gpt2",
        "--encoder",
        "m",
    ]
    assert run(["config", "init", "own.yaml", *given]) == 0
    config = load_config("own.yaml")
    assert config.corpus[0].paths == ["a's/*.txt", 'b "é": #']
    assert (config.tokenizer.path, config.tokenizer.train) == ("gpt2", None)
    assert config.encoder.model == "m"
    assert run(["config", "init", "nowhere/own.yaml"]) == 2


def test_a_check_shows_what_differs_and_where_it_is_said(capsys: Streams) -> None:
    Path("shared.yaml").write_text("index:\n  memory: 8GB\n  refine: SQ8\nneighbors: {k: 5}\n")
    own = "include: shared.yaml\noutput: db\ncorpus:\n- {name: a, paths: [x], weight: 2}\n"
    Path("own.yaml").write_text(f"{own}tokenizer: {{train: {{}}}}\nencoder: {{model: m}}\n")
    assert run(["config", "check", "own.yaml", "--set", "neighbors.k=7"]) == 0
    *lines, closing = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["output", '"db"', "own.yaml:2"],
        ["corpus.0.paths", '["x"]', "own.yaml:4"],
        ["corpus.0.name", '"a"', "own.yaml:4"],
        ["corpus.0.weight", "2.0", "own.yaml:4"],
        ["tokenizer.train", "{}", "own.yaml:5"],
        ["encoder.model", '"m"', "own.yaml:6"],
        ["index.memory", "8.0GB", "shared.yaml:2"],
        ["neighbors.k", "7", "--set", "neighbors.k=7"],
    ]
    assert "own.yaml and 1 that it includes: nothing is wrong" in closing


def test_a_check_names_everything_that_is_wrong(capsys: Streams) -> None:
    Path("shared.yaml").write_text("index:\n  memory: lots\n  kye: 1\n")
    Path("own.yaml").write_text("include: shared.yaml\noutput: db\n\nneighbors: {k: 0}\n")
    assert run(["config", "check", "own.yaml", "--set", "seed=-1"]) == 2
    streams = capsys.readouterr()
    places = [line.split(": ")[1:3] for line in streams.err.splitlines()]
    assert sorted(places) == [
        ["--set seed=-1", "seed"],
        ["own.yaml:1", "corpus"],
        ["own.yaml:1", "encoder"],
        ["own.yaml:1", "tokenizer"],
        ["own.yaml:4", "neighbors.k"],
        ["shared.yaml:2", "index.memory"],
        ["shared.yaml:3", "index.kye"],
    ]
    assert streams.out == ""


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("neighbors.k", ["whole number from 1", "`20`", "Number of neighbors", "The stored neigh"]),
        ("corpus.3.max_bad", ["corpus[].max_bad", "`0.001`", "named source"]),
        ("queries[].name", ["queries[].name", "required"]),
        ("index", ["index.key", "index.refine", "`SQ4`, `SQ6`, `SQ8`", "64GB"]),
        ("tokenizer.train", ["tokenizer.train.vocab_size", "128000"]),
    ],
)
def test_a_setting_is_explained(key: str, told: list[str], capsys: Streams) -> None:
    assert run(["config", "explain", key]) == 0
    text = capsys.readouterr().out
    assert not [words for words in told if words not in text]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("neighbours.k", "did you mean neighbors.k?"),
        ("nprobe", "did you mean neighbors.max_nprobe?"),
        ("separator", "corpus.separator or queries.separator or leakage.separator?"),
        ("xyzzy", "retro-db config explain lists them"),
    ],
)
def test_a_name_that_is_wrong_gets_what_may_be_meant(key: str, meant: str, capsys: Streams) -> None:
    assert run(["config", "explain", key]) == 2
    assert f"{key}: no setting has this name; " in (told := capsys.readouterr().err)
    assert meant in told


def test_without_a_name_every_setting_has_a_line(capsys: Streams) -> None:
    assert run(["config", "explain"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert len(set(names)) == len(names)
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {})
        assert {f"{name}.{own}" for own in inner} <= set(names) if inner else name in names
