"""The configuration: defaults, overrides, messages, and the schemas that document it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import jsonschema
import pytest
import yaml

from retro_db.config import load_config, parse_config
from retro_db.errors import ConfigError
from retro_db_schemas.__main__ import rendered, schemas
from support.places import ROOT

MINIMAL: dict[str, Any] = {
    "output": "db",
    "corpus": [{"name": "a", "paths": ["x.jsonl"]}],
    "tokenizer": {"train": {}},
    "encoder": {"model": "m"},
}


def test_committed_schemas_are_the_classes_own() -> None:
    for name, text in rendered().items():
        assert (ROOT / "schemas" / name).read_text("utf-8") == text, "run make schemas"


def test_the_schema_takes_what_the_parser_takes() -> None:
    schema = schemas()["config.schema.json"]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(MINIMAL, schema)
    jsonschema.validate({"include": ["shared.yaml"], "output": "db"}, schema)
    for wrong in (MINIMAL | {"outptu": "x"}, {"output": "db"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_defaults_are_those_of_the_design() -> None:
    config = parse_config(MINIMAL, "c.yaml")
    assert config.chunk.tokens == 64
    assert (config.neighbors.k, config.neighbors.rerank) == (20, 200)
    assert (config.encoder.pooling, config.encoder.max_length) == ("auto", "auto")
    assert (config.encoder.batch_tokens, config.index.recall_target) == (16_384, 0.98)
    assert int(config.index.memory) == 64_000_000_000
    assert config.corpus[0].max_bad == 0.001
    assert int(config.corpus[0].max_document) == 200_000_000


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "output: db\ncorpus: [{name: a, paths: [x]}]\ntokenizer: {train: {}}\nencoder: {model: m}\n"
    )
    changes = ["neighbors.k=7", "corpus.0.weight=2.5", "tokenizer.train.vocab_size=300"]
    config = load_config(path, changes)
    assert (config.neighbors.k, config.corpus[0].weight) == (7, 2.5)
    assert config.tokenizer.train is not None
    assert config.tokenizer.train.vocab_size == 300


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    for number, text in enumerate(["a: [", "- a", "", "\x00"]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"{number}.yaml"):
            load_config(path)


def test_the_portable_form_names_no_place() -> None:
    config = parse_config(
        MINIMAL | {"output": "/data/db", "encoder": {"model": "/models/bert/"}}, "c.yaml"
    )
    portable = config.portable()
    assert "output" not in portable
    assert portable["encoder"]["model"] == "bert"
    assert "paths" not in portable["corpus"][0]


def test_settings_may_be_given_as_what_they_are_by_default() -> None:
    config = parse_config(MINIMAL, "config.yaml")
    assert parse_config(config.model_dump(mode="json"), "config.yaml") == config


def test_a_configuration_may_lie_at_a_url() -> None:
    with fsspec.open("memory://configs/build.yaml", "w") as file:
        yaml.safe_dump(MINIMAL, file)
    assert load_config("memory://configs/build.yaml").output == MINIMAL["output"]
    with pytest.raises(ConfigError, match=r"cannot be read \(.+\); check the path"):
        load_config("memory://configs/none.yaml")
    with pytest.raises(ConfigError, match="Protocol not known: nothing; correct the URL"):
        load_config("nothing://build.yaml")
