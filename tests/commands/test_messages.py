"""Every mistake in these tables is answered by one line, and what that line tells to do works."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import retro_db
from retro_db import errors
from retro_db.config import load_config
from retro_db.corpus.listing import InputFile
from retro_db.corpus.streams import open_raw
from retro_db.errors import ConfigError, CorpusError, InputError, NotADatabaseError
from retro_db.manifest.model import VERSION
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.commands.plan import parse_count
from support.encoders import tiny_encoder
from support.places import ROOT, TESTS
from support.projects import Project


def documents(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"n{i}", "content": f"Owls and bread, {i}. " * 20} | fields for i in range(count)
    ]


@pytest.fixture
def here(six: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a configuration `c.yaml`, its database `db`, and files for mistakes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(six.output, "db")
    # A build that has not ended.
    shutil.copytree(six.output, "half")
    Path("half/manifest.json").unlink()
    Path("c.yaml").write_text(yaml.safe_dump(six.settings | {"output": "new"}))
    Path("circle.yaml").write_text("include: circle.yaml")
    added = {"corpus": [{"name": "added", "paths": "c.jsonl", "text": "content"}], "output": "db"}
    kept = {name: six.settings[name] for name in ("encoder", "neighbors")}
    Path("more.yaml").write_text(yaml.safe_dump(kept | added))
    rows = documents(4)
    Path("c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, "c.parquet")
    with pa.OSFile("c.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    Path("array.json").write_text(json.dumps(rows))
    Path("pretty.json").write_text(json.dumps(rows, indent=1))
    Path("null.jsonl").write_text('{"content": "a", "text": null}')
    Path("number.jsonl").write_text('{"content": "a", "text": 3, "id": [3]}')
    Path("none.jsonl").write_text("{}")
    Path("blank.jsonl").write_text('{"content": "a", "text": ""}')
    Path("empty.jsonl").touch()
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("cut.parquet").write_text("nothing")
    Path("table.csv").write_text("id,text")
    for name in ("mixed/a.jsonl", "mixed/b.txt", "strange/notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('{"text": "a"}')
    Path("empty.json").write_text(
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'
    )
    Path("folder").mkdir()
    Path("ids.txt").write_text("doc-1\n")
    Path("wrong.txt").write_text("doc-999\n")
    Path("wrong.jsonl").write_text("doc-1\n")
    return tmp_path


def said(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit code of a command, and its lines on standard error."""
    capsys.readouterr()
    code = run(shlex.split(arguments))
    return code, capsys.readouterr().err.splitlines()


# What is typed, and the last line that is said, which ends with the line to type.
LINES = [
    (
        "build c.yaml --dry-run --runner DirectRunner",
        "Options of Beam go after --: retro-db build c.yaml --dry-run -- --runner=DirectRunner",
    ),
    (
        "build --runner DirectRunner c.yaml --dry-run --experiments=a --set seed=1 -- --job_name 'a b'",
        "Options of Beam go after --: retro-db build c.yaml --dry-run --set seed=1 -- --job_name 'a b' "
        "--runner=DirectRunner --experiments=a",
    ),
    (
        "build --dry-run --no_pipeline_type_check c.yaml",
        "Options of Beam go after --: retro-db build --dry-run c.yaml -- --no_pipeline_type_check",
    ),
    (
        "build c.yaml --dry-run -runner DirectRunner",
        "Options of Beam go after --: retro-db build c.yaml --dry-run -- --runner=DirectRunner",
    ),
    (
        "stage tokenizer c.yaml --runner FnApiRunner",
        "Options of Beam go after --: retro-db stage tokenizer c.yaml -- --runner=FnApiRunner",
    ),
    (
        "compact db --runner FnApiRunner copy",
        "Options of Beam go after --: retro-db compact db copy -- --runner=FnApiRunner",
    ),
    (
        "build --smoke c.yaml",
        "--smoke took c.yaml as its [DOCUMENTS]; write retro-db build c.yaml --smoke",
    ),
    (
        "verify --recompute db",
        "--recompute took db as its SHARE; write retro-db verify db --recompute SHARE",
    ),
    ("query --chunk db", "--chunk took db as its ID; write retro-db query db --chunk ID"),
    (
        "stage tokenizer --workers c.yaml",
        "--workers took c.yaml as its N; write retro-db stage tokenizer c.yaml --workers N",
    ),
    (
        "c.yaml --dry-run",
        "A command comes first, such as build: retro-db build c.yaml --dry-run",
    ),
]
VALUES = {"SHARE": "0.1", "ID": "0", "N": "1"}


@pytest.mark.parametrize(("typed", "line"), LINES, ids=[row[0] for row in LINES])
def test_a_misused_option_shows_the_line_to_type(
    here: Path, capsys: pytest.CaptureFixture[str], typed: str, line: str
) -> None:
    code, lines = said(typed, capsys)
    assert (code, lines[-1]) == (2, line)
    _, _, shown = line.rpartition("retro-db ")
    assert run([VALUES.get(word, word) for word in shlex.split(shown)]) == 0


@pytest.mark.parametrize(
    "typed", ["inspect db --runner X", "build --runner X --help", "build c.yaml -3"]
)
def test_no_line_is_shown_where_none_is_known(
    here: Path, capsys: pytest.CaptureFixture[str], typed: str
) -> None:
    code, lines = said(typed, capsys)
    assert code == 2
    assert lines[-1].startswith("Error: No such option")


NO_RECORD = "corpus: test: none of the first records of its files can be used; the first: "
CORRECT = "; correct format, text, id or separator"
DRY = "build c.yaml --dry-run --set corpus.0.id=null --set corpus.0.paths="
HALF = (
    "half: no manifest.json: a build has begun and not ended; retro-db build with its configuration "
    "finishes it"
)
FINISH = "build c.yaml --set output=half"

# What is typed, what is said, and what works.
COMMANDS = [
    # Configurations.
    (
        "build none.yaml",
        "none.yaml: cannot be read (No such file or directory); check the path",
        "build c.yaml --dry-run",
    ),
    ("build .", ".: cannot be read (Is a directory); check the path", "build c.yaml --dry-run"),
    ("build s4://c", "s4://c: Protocol not known: s4; correct the URL", "build c.yaml --dry-run"),
    (
        "config check circle.yaml",
        "circle.yaml: include: circle.yaml again: files of settings cannot include each other in a circle",
        "config check c.yaml",
    ),
    (
        "config init c.yaml",
        "c.yaml: exists, and is not replaced; name another file",
        "config init another.yaml",
    ),
    (
        "build c.yaml more.yaml",
        "more.yaml: is one argument too many; leave it out (options of Beam go after --, "
        "such as --runner=SparkRunner)",
        "build c.yaml --dry-run",
    ),
    (
        "build c.yaml -- --runer=X",
        "--runer is not an option of Beam; did you mean --runner?",
        "build c.yaml --dry-run -- --runner=DirectRunner",
    ),
    (
        "build c.yaml -- --runner=X",
        "--runner=X is not known; use one of DirectRunner, FnApiRunner, SparkRunner, "
        "FlinkRunner, PortableRunner, PrismRunner, DataflowRunner",
        "build c.yaml --dry-run -- --runner=DirectRunner",
    ),
    (
        "build c.yaml -- --direct_num_workers=4",
        "--direct_num_workers=4: leave it out; --workers N says how many work here",
        "build c.yaml --dry-run --workers 4",
    ),
    # Files of a corpus.
    *(
        (
            f"{DRY}c.{kind}",
            f"{NO_RECORD}c.{kind} at 0: no text (no field 'text'; set text to one of its fields: 'id', "
            f"'content'){CORRECT}",
            f"{DRY}c.{kind} --set corpus.0.text=content",
        )
        for kind in ("jsonl", "parquet", "arrow")
    ),
    *(
        (
            f"{DRY}c.{kind} --set corpus.0.text=content --set corpus.0.id=name",
            f"{NO_RECORD}c.{kind} at 0: no id (no field 'name'; set id to one of its fields: 'id', "
            f"'content'){CORRECT}",
            f"{DRY}c.{kind} --set corpus.0.text=content --set corpus.0.id=id",
        )
        for kind in ("jsonl", "parquet", "arrow")
    ),
    (
        f"{DRY}number.jsonl --set corpus.0.id=id --set corpus.0.text=content",
        f"{NO_RECORD}number.jsonl at 0: no id (field 'id' is a list, not a name or number){CORRECT}",
        f"{DRY}number.jsonl --set corpus.0.text=content",
    ),
    (
        f"{DRY}null.jsonl",
        f"{NO_RECORD}null.jsonl at 0: no text (field 'text' is null){CORRECT}",
        f"{DRY}null.jsonl --set corpus.0.text=content",
    ),
    (
        f"{DRY}number.jsonl",
        f"{NO_RECORD}number.jsonl at 0: text is no string (field 'text' is a int){CORRECT}",
        f"{DRY}number.jsonl --set corpus.0.text=content",
    ),
    (
        f"{DRY}none.jsonl",
        f"{NO_RECORD}none.jsonl at 0: no text (no field 'text'; it has no fields){CORRECT}",
        f"{DRY}none.jsonl --set corpus.0.format=text",
    ),
    (
        f"{DRY}array.json",
        f"{NO_RECORD}array.json at 0: not an object (a list; write one object a line){CORRECT}",
        f"{DRY}c.jsonl --set corpus.0.text=content",
    ),
    (
        f"{DRY}pretty.json",
        f"{NO_RECORD}pretty.json at 0: not JSON (it goes on over several lines; write one object "
        "a line); write one object a line, or correct format",
        f"{DRY}c.jsonl --set corpus.0.text=content",
    ),
    (
        f"{DRY}empty.jsonl",
        f"{NO_RECORD}empty.jsonl at 0: empty file; name files that hold documents",
        f"{DRY}c.jsonl --set corpus.0.text=content",
    ),
    (
        f"{DRY}latin.txt",
        f"{NO_RECORD}latin.txt at 0: not UTF-8 (unexpected end of data at byte 3 of the document); "
        "convert it to UTF-8, or correct format",
        f"{DRY}ids.txt",
    ),
    (
        f"{DRY}cut.parquet",
        f"{NO_RECORD}cut.parquet at 0: damaged file (Parquet file size is 7 bytes, smaller than "
        "the minimum file footer (8 bytes)); restore it, or correct format",
        f"{DRY}cut.parquet --set corpus.0.format=text",
    ),
    (
        f"{DRY}table.csv",
        "corpus.0.format: cannot be inferred from table.csv; exclude such files by a glob, set it "
        "to jsonl, parquet, text, arrow or megatron, or convert them to one of these",
        f"{DRY}table.csv --set corpus.0.format=text",
    ),
    (
        f"{DRY}mixed",
        "corpus.0.format: a.jsonl and b.txt differ in format; make a source of each, by a glob such as "
        "*.jsonl",
        f"{DRY}'mixed/*.jsonl'",
    ),
    (f"{DRY}folder", "corpus.0.paths.0: folder matches no file; correct the path", f"{DRY}ids.txt"),
    (
        f"{DRY}nothing.txt",
        "corpus.0.paths.0: nothing.txt does not exist; correct the path",
        f"{DRY}ids.txt",
    ),
    (
        f"{DRY}'*.jsonl'",
        "--set corpus.0.paths=*.jsonl: the value is not valid YAML; write --set 'corpus.0.paths=\"*.jsonl\"'",
        f"{DRY}c.jsonl --set corpus.0.text=content --set 'corpus.0.paths=\"*.jsonl\"'",
    ),
    (
        f"{DRY}none/*.jsonl",
        "corpus.0.paths.0: none/*.jsonl matches no file; correct the path",
        f"{DRY}./c.json* --set corpus.0.text=content",
    ),
    (
        f"{DRY}s4://x",
        "corpus.0.paths.0: s4://x: Protocol not known: s4; correct the URL",
        f"{DRY}ids.txt",
    ),
    (
        f"{DRY}/dev/null",
        "corpus.0.paths.0: /dev/null: is a pipe, a socket or a device; name a file",
        f"{DRY}ids.txt",
    ),
    (
        "plan c.yaml --set corpus.0.paths=c.jsonl",
        "corpus.0: test: none of the first records of its files can be used; the first: c.jsonl at 0: no "
        "text (no field 'text'; set text to one of its fields: 'id', 'content'); correct format, text, id or "
        "separator",
        "plan c.yaml --set corpus.0.paths=c.jsonl --set corpus.0.text=content",
    ),
    (
        "plan c.yaml --set corpus.0.paths=blank.jsonl --set corpus.0.id=null",
        "corpus.0: no text in the first records of a few files; check paths and text",
        "plan c.yaml --set corpus.0.paths=blank.jsonl --set corpus.0.text=content --set corpus.0.id=null",
    ),
    # Index keys.
    (
        "build c.yaml --dry-run --set index.key=IVF500,Flat",
        "index.key: IVF500,Flat needs 15,000 chunks to train, and the corpus has about 18, estimated from "
        "its first documents; use auto, or IVF1,Flat",
        "build c.yaml --set index.key=IVF1,Flat",
    ),
    (
        "build c.yaml --dry-run --set index.key=IVF4,PQ7",
        "index.key: IVF4,PQ7: 7 sub-quantizers do not divide 48 dimensions; use auto, or PQ6",
        "build c.yaml --dry-run --set index.key=auto",
    ),
    (
        "build c.yaml --set 'tokenizer={path: empty.json}'",
        "tokenizer.path: empty.json is not a tokenizer: tokenizer: its vocabulary is empty",
        "build c.yaml --dry-run --set 'tokenizer={path: db/tokenizer}'",
    ),
    # Outputs.
    (
        "build c.yaml --set output=c.yaml",
        "output: c.yaml is a file; name a new folder",
        "build c.yaml --dry-run",
    ),
    (
        "build c.yaml --set output=strange",
        "output: strange holds notes.txt, which no build wrote; name a new folder",
        "build c.yaml --dry-run",
    ),
    (
        "build c.yaml --set output=c.yaml/db",
        "output: c.yaml/db cannot be written: File exists; name another folder, or "
        "make it writable",
        "build c.yaml --dry-run",
    ),
    (
        "build c.yaml --set output=s4://x",
        "s4://x: Protocol not known: s4; correct the URL",
        "build c.yaml --dry-run",
    ),
    # Databases.
    (
        "inspect none",
        "none: does not exist; check the path, or build it by retro-db build",
        "inspect db",
    ),
    ("inspect c.yaml", "c.yaml: is a file; name the folder of a database", "inspect db"),
    ("inspect folder", "folder: no manifest.json, so not a database; check the path", "inspect db"),
    ("inspect s4://x", "s4://x: Protocol not known: s4; correct the URL", "inspect db"),
    (
        "inspect tos://x",
        "tos://x: Install tosfs to access ByteDance volcano engine Tinder Object Storage; install that "
        "package here, and on the workers, by pip install",
        "inspect db",
    ),
    ("inspect half", HALF, FINISH),
    ("query db --chunk 999", "--chunk 999: ids go from 0 to 17", "query db --chunk 17"),
    (
        "query db whales --encoder folder",
        "encoder.model: folder has no config.json; name a transformers model",
        "query db whales",
    ),
    (
        "leakage db",
        "k: 10 is not between 1 and the 4 neighbors stored",
        "leakage db -k 4 --queries asked",
    ),
    (
        "leakage db -k 4",
        "db: has no validation split; name a query corpus, or build with split.validation",
        "leakage db -k 4 --queries asked",
    ),
    (
        "leakage db -k 4 --queries x",
        "queries: x is not in the database; known: asked",
        "leakage db -k 4 --queries asked",
    ),
    (
        "remove db --documents none.txt",
        "none.txt: cannot be read (No such file or directory); check the path",
        "remove db --documents ids.txt",
    ),
    (
        "remove db --documents wrong.txt",
        "wrong.txt: line 1: no document of the database has the id 'doc-999'; correct or "
        "delete the line",
        "remove db --documents ids.txt",
    ),
    (
        "remove db --documents latin.txt",
        "latin.txt: not UTF-8 at byte 3; convert it",
        "remove db --documents ids.txt",
    ),
    (
        "remove db --documents wrong.jsonl",
        "wrong.jsonl: line 1: not JSON (Expecting value: line 1 column 1 (char 0)); "
        "correct or delete it",
        "remove db --documents ids.txt",
    ),
    # Plans.
    ("plan", "plan: nothing to plan; give CONFIG.yaml, or --tokens such as 1.75T", "plan c.yaml"),
    (
        "plan c.yaml --tokens 1B",
        "--tokens: c.yaml decides that; leave --tokens out, or leave c.yaml out and give --tokens",
        "plan --tokens 1B",
    ),
    (
        "plan --tokens 1e16",
        "--tokens: 1e16 is not between 1 and 1,000,000,000,000,000; give another",
        "plan --tokens 1e6",
    ),
    (
        "plan --tokens 1M --sample db",
        "--sample: db has 18 chunks with an embedding; give a database of at least 16,384, "
        "better 100,000",
        "plan --tokens 1M",
    ),
    (
        "plan --tokens 1M --k 0",
        "--set neighbors.k=0: neighbors.k: must be at least 1, not 0",
        "plan --tokens 1M --k 1",
    ),
]


@pytest.mark.parametrize(("typed", "line", "mended"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_a_mistake_and_its_remedy(
    here: Path, capsys: pytest.CaptureFixture[str], typed: str, line: str, mended: str
) -> None:
    code, lines = said(typed, capsys)
    assert (code, lines) == (2, [f"error: {line}"])
    code, lines = said(mended, capsys)
    assert (code, lines) == (0, [])


@pytest.mark.parametrize(
    "command",
    [
        "query {} whales",
        "verify {}",
        "report {}",
        "leakage {}",
        "compact {} copy",
        "export {} out --to megatron",
        "remove {} --documents ids.txt",
        "build more.yaml --append --set output={}",
        "plan --tokens 1M --sample {}",
    ],
)
def test_every_command_says_of_a_build_that_it_has_not_ended(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert said(command.format("half"), capsys) == (2, [f"error: {HALF}"])
    with pytest.raises(NotADatabaseError, match="a build has begun and not ended"):
        retro_db.open("half")


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("compacting", "retro-db compact has begun and not ended; the same command finishes it"),
        ("smoke", "retro-db build --smoke has begun and not ended; the same command makes it anew"),
    ],
)
def test_what_has_begun_and_not_ended_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], mark: str, words: str
) -> None:
    Path("half/state", mark).touch()
    assert said("inspect half", capsys) == (2, [f"error: half: no manifest.json: {words}"])


# Settings of an append, and what is said of them.
APPENDS = [
    ("neighbors.k=3", "neighbors.k: 3, but the database has 4; write what it has"),
    (
        "corpus.0.name=test",
        "corpus: test has id: id in the database, and here id: null; write what it has, or give the new "
        "documents another source",
    ),
    (
        "encoder.dtype=bfloat16",
        "encoder: the database was embedded by tiny-encoder in float32, and this is another model or another "
        "dtype; use the database's",
    ),
    (
        "queries=[{name: more, paths: ids.txt}]",
        "queries: more is new; append adds to the corpus alone",
    ),
    ("index.key=IVF2,Flat", "index.key: the trained index stays, IVF1,Flat; write auto"),
]


def test_an_append_needs_what_its_messages_say(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = (
        "more.yaml:1: tokenizer: missing; give either path or train, such as tokenizer: {train: "
    )
    assert said("build more.yaml", capsys) == (2, [f"error: {missing}{{vocab_size: 32000}}}}"])
    for setting, line in APPENDS:
        typed = f"build more.yaml --append --set {shlex.quote(setting)}"
        assert said(typed, capsys) == (2, [f"error: {line}"])
    # The tokenizer is the database's own, wherever it was trained: no setting names it.
    mended = (
        "--set neighbors.k=4 --set encoder.dtype=float32 --set index.key=auto --set corpus.0.id=id"
    )
    Path("c.jsonl").write_text(json.dumps({"id": "doc-1", "content": "Of owls and bread. " * 40}))
    assert said(f"build more.yaml --append {mended}", capsys) == (0, [])
    checked = "verify db --recompute 1 --inputs more.yaml"
    assert said(checked, capsys) == (0, [])
    undone = "output: db has later generations, which a build would undo; name a new folder"
    assert said("build c.yaml --set output=db", capsys) == (2, [f"error: {undone}"])
    assert said("build c.yaml --dry-run", capsys) == (0, [])
    twice = (
        "ids.txt: line 1: id 'doc-1' is in several sources (added, test); name the source, in a plain list "
        "with a tab behind it"
    )
    assert said("remove db --documents ids.txt", capsys) == (2, [f"error: {twice}"])
    Path("ids.txt").write_text("added\tdoc-1\n")
    assert said("remove db --documents ids.txt", capsys) == (0, [])


MANIFESTS = [
    (
        {"version": "99.0"},
        2,
        f"format version 99.0, this release reads {VERSION}; use the retro-db release that wrote it",
    ),
    ({"version": 3}, 1, "version: not a text; restore it from a copy"),
    ({"format": "x"}, 1, "format is not 'retro-db'; restore it, or check the path"),
    ({"generation": 7}, 1, "its sha256 does not match; restore it from a copy"),
    (
        None,
        1,
        "not valid JSON (Expecting value: line 1 column 1 (char 0)); restore it from a copy",
    ),
]


@pytest.mark.parametrize(("change", "exit_code", "line"), MANIFESTS)
def test_a_manifest_that_cannot_be_read(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any] | None,
    exit_code: int,
    line: str,
) -> None:
    manifest = json.loads(Path("db/manifest.json").read_text())
    Path("half/manifest.json").write_text("" if change is None else json.dumps(manifest | change))
    assert said("inspect half", capsys) == (exit_code, [f"error: half/manifest.json: {line}"])
    shutil.copy("db/manifest.json", "half/manifest.json")
    assert said("inspect half", capsys) == (0, [])


QUERY = "query db whales"
FILES = [
    (QUERY, "chunks/*", b"", "{file} has 0 bytes, {size} were written; restore it or build again"),
    (QUERY, "chunks/*", None, "{file} is missing; restore it or build again"),
    (QUERY, "chunks/*", b"x", "{file}: not a readable Arrow file: Not an Arrow file; run verify"),
    (QUERY, "index/part*", b"x", "not recognized); run verify"),
    (
        "compact db copy",
        "embeddings/*",
        b"x",
        "{file}: its bytes are not those that were written; restore it or build again",
    ),
]


@pytest.mark.parametrize(("command", "pattern", "content", "line"), FILES)
def test_a_file_that_is_damaged(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    pattern: str,
    content: bytes | None,
    line: str,
) -> None:
    [file] = Path("db").glob(pattern)
    size = file.stat().st_size
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content * size)
    code, lines = said(command, capsys)
    assert code == 1
    assert lines[0].endswith(line.format(file=file.relative_to("db"), size=size))
    assert run(["verify", "db"]) == 1
    shutil.copy(Path("half", file.relative_to("db")), file)
    assert run(["verify", "db"]) == 0
    assert said(QUERY, capsys) == (0, [])


# What click says, and what works.
USAGES = [
    (
        "build c.yaml --smoke --dry-run",
        "--smoke, --dry-run and --append cannot be combined",
        "build c.yaml --dry-run",
    ),
    ("build c.yaml --refresh", "--refresh belongs to --append", "build c.yaml --dry-run"),
    (
        "build c.yaml --append --overwrite",
        "--overwrite belongs to a build: --append and --smoke replace nothing",
        "build c.yaml --overwrite --dry-run",
    ),
    (
        "verify db --inputs c.yaml",
        "--inputs belongs to --recompute, which says how much is compared",
        "verify db --inputs c.yaml --recompute 0.1",
    ),
    ("query db", "give a text or --chunk ID", "query db --chunk 0"),
]


@pytest.mark.parametrize(("typed", "line", "mended"), USAGES)
def test_options_that_do_not_fit(
    here: Path, capsys: pytest.CaptureFixture[str], typed: str, line: str, mended: str
) -> None:
    code, lines = said(typed, capsys)
    assert (code, lines[-1]) == (2, f"Error: {line}")
    assert run(shlex.split(mended)) == 0


def test_nothing_is_left_to_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("ids.txt").write_text("".join(f"doc-{i}\n" for i in range(6)))
    assert run(["remove", "db", "--documents", "ids.txt"]) == 0
    line = "db: has no training text to export: all was removed, or is of the validation split"
    assert said("export db out --to megatron", capsys) == (2, [f"error: {line}"])


def test_messages_of_the_library(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = retro_db.open("db")
    sequences = retro_db.RetroDataset(database, seq_len=64, k=2)
    for given, line in (
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
        ({"rank": 2}, "rank: 2 is not between 0 and ranks - 1 = 1"),
        ({"seed": -1}, "seed: -1 is below 0"),
    ):
        with pytest.raises(InputError, match=re.escape(line)):
            retro_db.RetroSampler(
                sequences, **{"batch_size": 4, "rank": 0, "ranks": 2, "seed": 0} | given
            )
    retriever = retro_db.Retriever(database)
    with pytest.raises(InputError, match="texts: a single string; give a list of texts"):
        retriever.search("whales", k=1)
    with pytest.raises(InputError, match="exclude: 1 ranges for 2 texts"):
        retriever.search(["whales", "owls"], k=1, exclude=[range(1)])
    assert len(retriever.search(["whales"], k=1)[0]) == 1
    config = load_config("c.yaml")
    with pytest.raises(ConfigError, match="corpus: no source is named 'absent'; name one of test"):
        config.source("absent")
    assert config.source("test") is config.corpus[0]
    with (
        pytest.raises(CorpusError, match="vanished since the build was planned; restore it"),
        open_raw(InputFile("gone.txt", "gone.txt", 3, "")),
    ):
        pass


def test_a_tokenizer_that_loses_text_is_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = shlex.quote(f"tokenizer={{path: {tiny_encoder()}}}")
    assert said(f"build c.yaml --dry-run --set {encoder}", capsys) == (0, [])
    run(shlex.split(f"build c.yaml --dry-run --set {encoder}"))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert "loses upper case, line ends and spaces, accents" in line
    assert "train a byte-level one by tokenizer: {train: {}}" in line
    for kept in ("{train: {}}", "{path: db/tokenizer}"):
        assert run(["build", "c.yaml", "--dry-run", "--set", f"tokenizer={kept}"]) == 0
        assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("1000", 1000),
        ("1,000,000", 10**6),
        ("1_000_000", 10**6),
        ("1e9", 10**9),
        ("1.5E+12", 1.5e12),
        ("12m", 12e6),
        ("1.75 T", 1.75e12),
        ("300B", 300e9),
        (".5K", 500),
    ],
)
def test_a_count_may_be_written_in_many_ways(typed: str, number: float) -> None:
    assert parse_count(typed, "--tokens") == number


@pytest.mark.parametrize("typed", ["many", "5G", "1,5", "1e-3", "1e3K", "-1", "0", "1__0", ""])
def test_a_count_that_is_none_names_the_forms(typed: str) -> None:
    with pytest.raises(InputError) as error:
        parse_count(typed, "--tokens")
    forms = "1000, 1,000,000, 1e9, 12M, 300B or 1.75T"
    assert (
        str(error.value)
        == f"--tokens: {typed!r} is not a positive number; write one such as {forms}"
    )
    for form in forms.replace(" or ", ", ").split(", "):
        parse_count(form, "--tokens")


# Messages that no test provokes: of machines, of states that another check comes before, and of files that
# only a forger writes.
_UNREACHABLE = {
    "/proc/meminfo: no MemAvailable; run on Linux",
    " tasks are left",
    ": documents: a source is not in the manifest; run verify",
    " was changed by others; build again",
    ": no permission to read it; grant it",
    " cannot be locked (",
    ": not a readable index (",
    " bytes; make room, give it fewer cache_bytes, or name another folder",
    ": its files have other names; copy them",
    ": belongs to somebody else; name another folder as the cache",
    "encoder.device: an encoder on a GPU cannot be used in a forked process; start workers by "
    "spawn, and open the encoder there",
    " embeds a text otherwise beside another of the same length, or in every pass; name an "
    "encoder such as BERT",
}
_LEAST = 10  # letters of what a test says of a message


def test_every_message_is_in_a_test() -> None:
    texts = {text for path in TESTS.rglob("*.py") for text in _texts(path)}
    spoken = "\0".join(texts)
    untold = []
    for package in ("retro_db", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, pieces in _messages(path):
                in_test = any(piece in spoken for piece in pieces)
                if not in_test and not any(text in piece for piece in pieces for text in texts):
                    untold.append(f"{path.relative_to(ROOT)}:{line}: {' ... '.join(pieces)}")
    assert not untold, "a message without a test: give it a row"


def _texts(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    constants = (node.value for node in nodes if isinstance(node, ast.Constant))
    # Patterns escape what means something in them.
    return {
        text.replace("\\", "")
        for text in constants
        if isinstance(text, str) and len(text) >= _LEAST
    }


def _messages(path: Path) -> list[tuple[int, list[str]]]:
    """The lines on which errors for users are made, and the constant pieces of their messages."""
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type)} | {"UsageError"}
    messages = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        constants = [part for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
        texts = [part.value for part in constants if isinstance(part.value, str)]
        long = [text.strip(" :;,()") for text in texts if len(text) > _LEAST]
        if name in names and long and not set(texts) & _UNREACHABLE:
            messages.append((node.lineno, long))
    return messages


def test_the_page_says_what_is_said() -> None:
    page = (ROOT / "docs" / "messages.md").read_text("utf-8")
    spoken = "\0".join(text for path in TESTS.rglob("*.py") for text in _texts(path))
    quoted = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(quoted) > 20
    assert [words for words in quoted if words not in spoken] == []
