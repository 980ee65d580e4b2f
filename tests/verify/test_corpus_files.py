"""Documents and tokens are compared with the corpus that they were read from, where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retro_db.config import load_config
from retro_db.verify import verify_database
from retro_db_pipelines.commands.cli import run
from support.hostile import rewrite
from support.projects import Project, make_project
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
        ("documents", exchange_ids, "does not stand there"),
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
    found = verify_database(str(db), 1.0, inputs=config).problems
    assert any(message in problem for problem in found), found
    assert any(table in problem for problem in found)


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
