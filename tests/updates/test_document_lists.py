"""Lists of documents: `remove` removes what is named, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest

import retro_db
from retro_db_pipelines.commands.cli import run
from support.projects import Project, make_project

ODD = ["a", "b", "a\nb", "doc", "test\tdoc", "end", "end\r", " ", "line\u2028end", '"quoted"']


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Documents with ids of all kinds, some of which read as others in a plain list."""
    folder = tmp_path_factory.mktemp("odd")
    project = make_project(folder, [], tokenizer={"train": {"vocab_size": 300}})
    lines = [
        orjson.dumps({"id": name, "text": f"text {number} " * 40})
        for number, name in enumerate(ODD)
    ]
    (folder / "corpus.jsonl").write_bytes(b"\n".join(lines))
    assert project.build() == 0
    return project


@pytest.fixture
def db(odd: Project, tmp_path: Path) -> Path:
    """A copy of their database."""
    return Path(shutil.copytree(odd.output, tmp_path / "db"))


def removed_ids(db: Path) -> list[str]:
    database = retro_db.open(str(db))
    ids = database.documents["id"].to_pylist()
    return [ids[row] for row in database.removed.tolist()]


def write(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("source", [{}, {"source": "test"}])
def test_json_lines_say_every_id(
    db: Path, tmp_path: Path, name: str, source: dict[str, str]
) -> None:
    listed = write(tmp_path, "list.jsonl", b"\n" + orjson.dumps({"id": name} | source) + b"\r\n\n")
    assert run(["remove", str(db), "--documents", listed]) == 0
    assert removed_ids(db) == [name]


@pytest.mark.parametrize("name", ODD)
def test_a_plain_list_names_the_document_or_is_refused(
    db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    listed = write(tmp_path, "list.txt", name.encode() + b"\n")
    code = run(["remove", str(db), "--documents", listed])
    if code == 0:
        assert removed_ids(db) == [name]
        return
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1
    assert "cannot say; give JSON lines" in message
    assert retro_db.open(str(db)).manifest.generation == 1


def test_what_a_plain_list_can_say_is_not_refused(db: Path, tmp_path: Path) -> None:
    listed = write(tmp_path, "list.txt", 'test\tb\r\n"quoted"\nline\u2028end\n\n'.encode())
    assert run(["remove", str(db), "--documents", listed]) == 0
    assert removed_ids(db) == ["b", "line\u2028end", '"quoted"']


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"doc-1", "not JSON"),
        (b'"a"', 'not an object with "id"'),
        (b'{"source": "test"}', 'not an object with "id"'),
        (b'{"id": "a", "sorce": "test"}', 'not an object with "id"'),
        (b'{"id": 1}', "id and source are texts"),
        (b'{"id": "a", "source": "tset"}', "no source 'tset', only test"),
        (b'{"id": "z"}', "has the id 'z'"),
    ],
)
def test_wrong_json_lines_are_refused(
    db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes, words: str
) -> None:
    listed = write(tmp_path, "list.jsonl", b'{"id": "b"}\n' + line + b"\n")
    assert run(["remove", str(db), "--documents", listed]) == 2
    message = capsys.readouterr().err
    assert "line 2: " in message
    assert words in message
    assert message.count("\n") == 1
