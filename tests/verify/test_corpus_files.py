"""Documents and tokens are compared with the corpus that they were read from, where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from retro_db.config import load_config
from retro_db.verify import verify_database
from retro_db_pipelines.commands.cli import run
from support.hostile import rewrite
from support.projects import Project, make_project, remove_documents
from support.texts import wikitext

Columns = dict[str, Any]


def exchange_ids(columns: Columns) -> None:
    columns["id"][0], columns["id"][1] = columns["id"][1], columns["id"][0]


def repeat_id(columns: Columns) -> None:
    columns["id"][1] = columns["id"][0]


def rename(columns: Columns) -> None:
    columns["id"][2] = "another"


def alter_token(columns: Columns) -> None:
    columns["tokens"][0, 3] = columns["tokens"][0, 4]


@pytest.mark.parametrize(
    ("table", "alter", "message"),
    [
        ("documents", exchange_ids, "the tokens of doc-1 are not its text's"),
        ("documents", repeat_id, "test/doc-0 does not stand there"),
        ("documents", rename, "test/another does not stand there"),
        ("chunks", alter_token, "the tokens of doc-0 are not its text's"),
    ],
)
def test_what_is_not_that_of_the_corpus_is_found(
    six: Project, db: Path, table: str, alter: Callable[[Columns], None], message: str
) -> None:
    rewrite(db, table, alter)
    config = load_config(six.config)
    problems = verify_database(str(db), 1.0, inputs=config).problems
    assert any(message in problem for problem in problems), problems


def test_documents_that_were_left_out_are_not_missed(
    tmp_path: Path, small: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = wikitext("valid.txt")[:12]
    left_out = make_project(
        tmp_path, [*texts, texts[3]], dedup={"jaccard": 0.8}, chunk={"part_rows": 40}
    )
    left_out.settings["corpus"][0]["fraction"] = 0.8
    assert left_out.build() == 0
    for project in (left_out, small):
        command = [
            "verify",
            str(project.output),
            "--recompute",
            "1",
            "--inputs",
            str(project.config),
        ]
        assert run(command) == 0
        assert "inputs" in capsys.readouterr().out


def test_inputs_need_a_share(six: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(six.output), "--inputs", str(six.config)]) == 2
    assert "--inputs belongs to --recompute" in capsys.readouterr().err


def test_names_of_which_one_was_left_out_are_told_apart(tmp_path: Path) -> None:
    project = make_project(tmp_path, [])
    evaluation = "A text about whales, " * 20
    texts = [evaluation, "Another text of the same name. " * 20, "A third one. " * 20]
    lines = [orjson.dumps({"id": "same", "text": text}) for text in texts]
    (tmp_path / "corpus.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "evaluation.jsonl").write_bytes(orjson.dumps({"text": evaluation}))
    project.settings["leakage"] = {"paths": [str(tmp_path / "evaluation.jsonl")]}
    assert project.build() == 0
    config = load_config(project.config)
    checked = verify_database(str(project.output), 1.0, inputs=config)
    assert (checked.problems, checked.notes) == ([], [])


def test_what_is_not_compared_is_said(six: Project, db: Path, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_bytes(orjson.dumps({"id": "more", "text": "More. " * 90}))
    base = ["--set", f"output={db}"]
    more = ["--set", f"corpus.0.paths=[{tmp_path / 'more.jsonl'}]"]
    assert run(["build", str(six.config), *base, *more, "--append"]) == 0
    of_append = load_config(six.config, more[1::2])
    for config, note in (
        (load_config(six.config), "documents that were appended were not compared"),
        (of_append, "no shard was compared"),
    ):
        checked = verify_database(str(db), 1.0, inputs=config)
        assert checked.problems == []
        assert any(note in told for told in checked.notes)
    assert remove_documents(db, ["doc-1"]) == 0
    assert run(["compact", str(db), str(tmp_path / "new")]) == 0
    checked = verify_database(str(tmp_path / "new"), 1.0, inputs=load_config(six.config))
    assert checked.problems == []
    assert any("no shard was compared" in told for told in checked.notes)
