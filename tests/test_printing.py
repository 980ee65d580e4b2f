"""What is printed and logged tells no credentials and moves no cursor."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro_db.printing import redacted
from retro_db_pipelines.commands.cli import run
from retro_db_pipelines.engine.console import Console, chatter_to
from support.encoders import tiny_encoder
from support.hostile import manifest_of, rewrite, seal

SECRET = "hUnTeR2/+%3D"  # noqa: S105 - ours


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://user:{}@host/path",
            "s3://AKIA:{}@bucket/key",
            "ftp://:{}@host",
            "http://hUnTeR2@host/x",
        ),
        *("https://host/a?X-Amz-Signature={}&x=1", "https://host/a?x=1&X-Amz-Credential={}"),
        *("https://host/a?x-amz-security-token={}", "https://host/a?sv=2020&sig={}&se=2030"),
        *("gs://bucket/a?GoogleAccessId=x&Signature={}", "https://host/?AWSAccessKeyId={}"),
        *("https://host/?token={}", "https://host/?access_token={}", "https://host/?key={}"),
        *("https://host/?api-key={}", "https://host/?apikey={}", "https://host/?client_secret={}"),
        *(
            "https://host/?password={}",
            "https://host/?user=x&passwd={}",
            "https://host/?credential={}",
        ),
        *("https://host/a#access_token={}", "https://host/?to=https%3A%2F%2Fh%2F%3Fsig%3D{}"),
        *("s3://AKIA:12345/{}@bucket", "S3://AKIA:{}@bucket/db"),
        *("https://user:12/{}@host/path", "HTTPS://hUnTeR2@host/x", "hTTp://user:{}@host"),
        *(f"https://host/a?{name}={{}}" for name in ("code", "sign", "hmac", "hash", "md5", "jwt")),
        *(f"https://host/a?page=1&{name}={{}}" for name in ("pass", "sid", "x", "whatever", "t")),
        "https://host/a?hdnea=st=1~exp=2~acl=/*~hmac={}",
        "https://host/hdnts=exp=2~hmac={}/a.jsonl",
        *("https://host/a?{}", "https://host/a?raw&{}", "/a/b.jsonl?jwt={}", "b?code={}"),
        *("http://user:it's{}@h/c", 'http://user:a"b{}@h/c', "http://user:a<b{}@h/c"),
        "https://web.archive.org/web/https://user:{}@h/c",
        *(
            "https://h/a,https://u:{}@h/b",
            "https://h/a;https://hUnTeR2@h/b",
            "with url: /p?sig=ab/{}",
        ),
        *("https://user:pa/s@{}@host", "https://h/a;jsessionid={}?page=1"),
        *("simplecache::https://user:{}@host/path", "https://host/?x=1;token={}", "a?Key={} b"),
    ],
)
def test_credentials_are_redacted(url: str) -> None:
    found = redacted(f"('{url.format(SECRET)}'): cannot be read")
    assert "hUnTeR2" not in found
    assert "R2/" not in found
    assert redacted(found) == found


@pytest.mark.parametrize(
    "text",
    [
        *(
            "https://host:8080/a.jsonl?page=2&size=10&file=data/b.jsonl",
            "s3://bucket/part-?.jsonl",
            "(https://h/x?page=2), https://h/y?path=dir%2Ffile: and 'https://h/z?id=3'.",
            "s3://bucket/??/year=2020/part-*.jsonl",
            "https://host/a?raw",
            "abfs://container@account.host/data/*.jsonl",
        ),
        *(
            "/data/a:b@c/file?x",
            "file.jsonl:123 is no JSON; correct it",
            "s3://bucket/key=5/part-1",
        ),
        *("chunks 1,000 of 2,000", "gs://bucket/a#1", "{'tokens': 5, 'keys': 3}", ""),
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("text", ["x", "ACGT", "://", "a?", "http://", "https://a:", "a@", "?a=&"])
def test_no_text_takes_long(text: str) -> None:
    signal.alarm(20)  # two seconds are plenty, on the slowest machine
    try:
        redacted(text * (200_000 // len(text)))
    finally:
        signal.alarm(0)


@settings(max_examples=300, deadline=None)
@given(st.text(), st.from_regex(r"[A-Za-z0-9+/=_%-]{8,40}", fullmatch=True), st.text())
def test_no_signature_survives(before: str, secret: str, after: str) -> None:
    text = f"{before} https://host/a?x=1&X-Amz-Signature={secret}&y=2 {after}"
    assert f"Signature={secret}" not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


def test_the_log_and_the_console_tell_no_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://user:hunter2@host/a?token=hunter2"
    with chatter_to(tmp_path / "log"):
        logging.getLogger("x").warning("read %s", url)
        try:
            raise ValueError(url)
        except ValueError:
            logging.getLogger("x").exception("failed")
    console = Console()
    console.say(url)
    console.fail(url)
    shown = capsys.readouterr()
    for text in ((tmp_path / "log").read_text(), shown.out, shown.err):
        assert "hunter2" not in text
        assert "https://***@host/a?token=***" in text


def test_no_text_of_a_database_moves_the_cursor(
    db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    obeyed = "\x1b]0;title\x07\x9b2J\u202e\r"
    rewrite(db, "documents", lambda columns: columns.update(id=[obeyed] * len(columns["id"])))
    manifest = manifest_of(db)
    manifest["sources"][0]["name"] = manifest["encoder"]["model"] = f"whales{obeyed}"
    seal(db, manifest)
    encoder = str(tiny_encoder())
    for extra in ([], ["--json"]):
        assert run(["inspect", str(db), *extra]) == 0
        assert run(["query", str(db), "whales", "--encoder", encoder, *extra]) == 0
    assert run(["inspect", str(db / obeyed)]) == 2
    shown = capsys.readouterr()
    assert "whales" in shown.out
    assert not set(obeyed) & set(shown.out + shown.err) - set("02J;title]")
    assert run(["inspect", str(db), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sources"][0]["name"] == manifest["sources"][0]["name"]
