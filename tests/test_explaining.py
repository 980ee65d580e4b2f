"""Every mistake in these tables is answered by one line, and what that line tells to do works."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from retro_db.config import load_config, parse_config
from retro_db.errors import ConfigError

MINIMAL = """
output: db
corpus: [{name: a, paths: [x.jsonl]}]
tokenizer: {train: {}}
encoder: {model: m}
"""

# A setting as typed, what is said of it, and a setting that the message shows, or that follows from it.
SETTINGS = [
    # A list of one.
    (
        "corpus: data/x.jsonl",
        "corpus: must be a list, not 'data/x.jsonl'; write corpus: [{name: x, paths: data/x.jsonl}]",
        "corpus: [{name: x, paths: data/x.jsonl}]",
    ),
    (
        "corpus: [data/x.jsonl]",
        "corpus.0: must hold settings, not 'data/x.jsonl'; write {name: x, paths: data/x.jsonl} in its place",
        "corpus: [{name: x, paths: data/x.jsonl}]",
    ),
    (
        "corpus: {name: a, paths: [x]}",
        "corpus: must be a list, not {name: a, paths: [x]}; write corpus: [{name: a, paths: [x]}]",
        "corpus: [{name: a, paths: [x]}]",
    ),
    (
        "corpus: {a: x, b: {paths: [y]}}",
        "corpus: must be a list, not {a: x, b: {paths: [y]}}; write corpus: [{name: a, paths: x}, {name: b, "
        "paths: [y]}]",
        "corpus: [{name: a, paths: x}, {name: b, paths: [y]}]",
    ),
    (
        "corpus: 3",
        "corpus: must be a list, not 3; write one, such as corpus: [{name: articles, paths: "
        '["data/*.jsonl"]}]',
        'corpus: [{name: articles, paths: ["data/*.jsonl"]}]',
    ),
    (
        "corpus: [[a]]",
        "corpus.0: must hold settings, not [a]; write {name: articles, paths: [data/*.jsonl]} in its place",
        "corpus: [{name: articles, paths: [data/*.jsonl]}]",
    ),
    (
        "corpus: []",
        'corpus: is empty; for example corpus: [{name: articles, paths: ["data/*.jsonl"]}]',
        'corpus: [{name: articles, paths: ["data/*.jsonl"]}]',
    ),
    (
        "corpus: [{name: a, paths: {b: c}}]",
        'corpus.0.paths: must be a list, not {b: c}; for example paths: ["data/*.jsonl"]',
        'corpus: [{name: a, paths: ["data/*.jsonl"]}]',
    ),
    (
        "corpus: [{name: a, paths: []}]",
        'corpus.0.paths: is empty; for example paths: ["data/*.jsonl"]',
        'corpus: [{name: a, paths: ["data/*.jsonl"]}]',
    ),
    (
        "queries: eval.txt",
        "queries: must be a list, not 'eval.txt'; write queries: [{name: eval, paths: eval.txt}]",
        "queries: [{name: eval, paths: eval.txt}]",
    ),
    # What is missing or empty.
    (
        "corpus: [{name: a}]",
        'corpus.0.paths: missing; every source needs it, such as paths: ["data/*.jsonl"]',
        'corpus: [{name: a, paths: ["data/*.jsonl"]}]',
    ),
    (
        "corpus: [{paths: [x]}]",
        "corpus.0.name: missing; every source needs it, such as name: articles",
        "corpus: [{name: articles, paths: [x]}]",
    ),
    (
        "encoder: {}",
        "encoder.model: missing; encoder needs it, such as model: bert-base-uncased",
        "encoder: {model: bert-base-uncased}",
    ),
    (
        "encoder:",
        "encoder: is empty; write settings below it, such as encoder: {model: bert-base-uncased}",
        "encoder: {model: bert-base-uncased}",
    ),
    ("neighbors:", "neighbors: is empty; write settings below it, or delete the line", ""),
    (
        "neighbors: {k: }",
        "neighbors.k: must be a whole number, and nothing is there; give a value, or delete the line",
        "neighbors: {}",
    ),
    (
        "output:",
        "output: must be a text, and nothing is there; for example output: db",
        "output: db",
    ),
    ('output: ""', "output: is empty; for example output: db", "output: db"),
    (
        "tokenizer: {}",
        "tokenizer: missing; give either path or train, such as tokenizer: {train: {vocab_size: 32000}}",
        "tokenizer: {train: {vocab_size: 32000}}",
    ),
    (
        "tokenizer: {path: a, train: {}}",
        "tokenizer: give either path or train; leave the other out, or set it to null",
        "tokenizer: {path: a, train: null}",
    ),
    # A value where settings are expected.
    (
        "tokenizer: gpt2",
        "tokenizer: must hold settings, not 'gpt2'; write tokenizer: {path: gpt2}",
        "tokenizer: {path: gpt2}",
    ),
    (
        "tokenizer: {train: true}",
        "tokenizer.train: must hold settings, not true; for example train: {vocab_size: 32000}",
        "tokenizer: {train: {vocab_size: 32000}}",
    ),
    (
        "tokenizer: {train: 3000}",
        "tokenizer.train: must hold settings, not 3000; write train: {vocab_size: 3000}",
        "tokenizer: {train: {vocab_size: 3000}}",
    ),
    (
        "encoder: bert-base-uncased",
        "encoder: must hold settings, not 'bert-base-uncased'; write encoder: {model: bert-base-uncased}",
        "encoder: {model: bert-base-uncased}",
    ),
    (
        "neighbors: 4",
        "neighbors: must hold settings, not 4; write neighbors: {k: 4}",
        "neighbors: {k: 4}",
    ),
    (
        "embeddings: false",
        "embeddings: must hold settings, not false; write embeddings: {keep: false}",
        "embeddings: {keep: false}",
    ),
    (
        "leakage: eval.txt",
        "leakage: must hold settings, not 'eval.txt'; write leakage: {paths: eval.txt}",
        "leakage: {paths: eval.txt}",
    ),
    (
        "dedup: true",
        "dedup: must hold settings, not true; known settings: jaccard",
        "dedup: {jaccard: 0.8}",
    ),
    # Names.
    (
        "neighbours: {k: 3}",
        "neighbours: unknown setting; did you mean neighbors?",
        "neighbors: {k: 3}",
    ),
    ("neighbors: {K: 4}", "neighbors.K: unknown setting; did you mean k?", "neighbors: {k: 4}"),
    (
        "neighbors.k: 4",
        "neighbors.k: unknown setting; write neighbors: {k: 4}",
        "neighbors: {k: 4}",
    ),
    ("k: 4", "k: unknown setting; did you mean neighbors.k?", "neighbors: {k: 4}"),
    ("index: {kye: auto}", "index.kye: unknown setting; did you mean key?", "index: {key: auto}"),
    (
        "tokenizer: {vocab_size: 300}",
        "tokenizer.vocab_size: unknown setting; did you mean train.vocab_size?",
        "tokenizer: {train: {vocab_size: 300}}",
    ),
    (
        "corpus: [{name: a, path: x}]",
        "corpus.0.path: unknown setting; did you mean paths?",
        "corpus: [{name: a, paths: x}]",
    ),
    (
        "encoder: {path: x}",
        "encoder.path: unknown setting; known settings: model, pooling, normalize, prompt, max_length, "
        "dtype, device, batch_tokens, accelerator, max_active_bundles",
        "encoder: {model: x}",
    ),
    (
        "3: 4",
        "3: unknown setting; known settings: output, corpus, tokenizer, encoder, chunk, split, embeddings, "
        "index, neighbors, queries, leakage, dedup, seed",
        "seed: 4",
    ),
    (
        "queries: [{name: a/b, paths: x}]",
        "queries.0.name: 'a/b' names a folder; use letters, digits, _, - and .",
        "queries: [{name: a-b, paths: x}]",
    ),
    (
        "corpus: [{name: a, paths: x}, {name: a, paths: y}]",
        "two sources of corpus have the same name",
        "corpus: [{name: a, paths: x}, {name: b, paths: y}]",
    ),
    # Types and bounds.
    (
        "corpus: [{name: 3, paths: x}]",
        'corpus.0.name: must be a text, not 3; put it in quotes: "3"',
        'corpus: [{name: "3", paths: x}]',
    ),
    (
        "neighbors: {k: four}",
        "neighbors.k: must be a whole number, not 'four'",
        "neighbors: {k: 4}",
    ),
    ("neighbors: {k: 4.5}", "neighbors.k: must be a whole number, not 4.5", "neighbors: {k: 4}"),
    ("neighbors: {k: -1}", "neighbors.k: must be at least 1, not -1", "neighbors: {k: 1}"),
    (
        "neighbors: {k: 300}",
        "neighbors: rerank (200) must be at least k (300)",
        "neighbors: {k: 300, rerank: 300}",
    ),
    (
        "split: {validation: 1}",
        "split.validation: must be less than 1, not 1",
        "split: {validation: 0.9}",
    ),
    ("dedup: {jaccard: 5}", "dedup.jaccard: must be at most 1, not 5", "dedup: {jaccard: 1}"),
    (
        "dedup: {jaccard: 0.01}",
        "dedup.jaccard: must be at least 0.1, not 0.01",
        "dedup: {jaccard: 0.1}",
    ),
    ("dedup: {jaccard: x}", "dedup.jaccard: must be a number, not 'x'", "dedup: {jaccard: 1}"),
    (
        "corpus: [{name: a, paths: x, weight: 0}]",
        "corpus.0.weight: must be more than 0, not 0",
        "corpus: [{name: a, paths: x, weight: 0.1}]",
    ),
    (
        "corpus: [{name: a, paths: x, weight: .inf}]",
        "corpus.0.weight: must be a finite number, not inf",
        "corpus: [{name: a, paths: x, weight: 9}]",
    ),
    (
        "index: {memory: lots}",
        "index.memory: must be a size such as 500MB or 64GiB, not 'lots'",
        "index: {memory: 64GiB}",
    ),
    (
        "index: {memory: 5XB}",
        "index.memory: must be a size such as 500MB or 64GiB, not '5XB'",
        "index: {memory: 500MB}",
    ),
    (
        "embeddings: {keep: maybe}",
        "embeddings.keep: must be true or false, not 'maybe'",
        "embeddings: {keep: true}",
    ),
    (
        "encoder: {model: m, pooling: maen}",
        "encoder.pooling: must be 'auto', 'mean', 'mean_without_special', 'cls', 'max', 'last_token', "
        "'weighted_mean' or 'mean_sqrt_len', not 'maen'; did you mean mean?",
        "encoder: {model: m, pooling: mean}",
    ),
    (
        "encoder: {model: m, batch_tokens: big}",
        "encoder.batch_tokens: must be a whole number or 'auto', not 'big'",
        "encoder: {model: m, batch_tokens: auto}",
    ),
    (
        "encoder: {model: m, batch_tokens: -4}",
        "encoder.batch_tokens: must be at least 1 or 'auto', not -4",
        "encoder: {model: m, batch_tokens: 1}",
    ),
    (
        "corpus: [{name: a, paths: x, separator: '('}]",
        "corpus.0.separator: not a regular expression: missing ), unterminated subpattern at position 0",
        "corpus: [{name: a, paths: x, separator: '()='}]",
    ),
    (
        "corpus: [{name: a, paths: x, separator: '\\s*'}]",
        "corpus.0.separator: matches between any two letters",
        "corpus: [{name: a, paths: x, separator: '\\s+'}]",
    ),
]


@pytest.mark.parametrize(("typed", "said", "mended"), SETTINGS, ids=[row[0] for row in SETTINGS])
def test_a_wrong_setting(typed: str, said: str, mended: str) -> None:
    settings = yaml.safe_load(MINIMAL)
    with pytest.raises(ConfigError) as error:
        parse_config(settings | yaml.safe_load(typed), "c.yaml")
    assert str(error.value) == f"c.yaml: {said}"
    parse_config(settings | (yaml.safe_load(mended) or {}), "c.yaml")


@pytest.mark.parametrize(
    "setting", ["corpus.0.paths", "queries.0.paths", "leakage.paths", "leakage.names"]
)
def test_a_text_is_a_list_of_one(setting: str) -> None:
    settings = yaml.safe_load(MINIMAL) | {"queries": [{"name": "q", "paths": ["x"]}]}
    written, listed = (
        parse_config(yaml.safe_load(yaml.safe_dump(settings)), "c.yaml", [f"{setting}={value}"])
        for value in ("a.txt", "[a.txt]")
    )
    assert written == listed


# The lines of a file, what is said of it, and lines that follow from it.
FILES = [
    (
        "neighbors:\n\tk: 4",
        "line 6, column 1: not valid YAML (found character '\\t' that cannot start any token); indent by "
        "spaces, not by tabs",
        "neighbors:\n  k: 4",
    ),
    (
        "leakage: {paths: a: b}",
        "line 5, column 19: not valid YAML (expected ',' or '}', but got ':'); put a value with a colon in "
        "quotes",
        'leakage: {paths: "a: b"}',
    ),
    (
        "seed: a: b",
        "line 5, column 8: not valid YAML (mapping values are not allowed here); put a value with a colon in "
        "quotes, or mend the indentation",
        'leakage: {names: "a: b"}',
    ),
    (
        "leakage: {paths: *.txt}",
        "line 5, column 19: not valid YAML (expected alphabetic or numeric character, but found '.'); put a "
        "pattern that begins with * in quotes",
        'leakage: {paths: "*.txt"}',
    ),
    (
        "leakage: {paths: @a}",
        "line 5, column 18: not valid YAML (found character '@' that cannot start any token); put the value "
        "in quotes",
        'leakage: {paths: "@a"}',
    ),
    (
        "leakage: {paths: a",
        "line 6, column 1: not valid YAML (expected ',' or '}', but got '<stream end>'); close the bracket",
        "leakage: {paths: a}",
    ),
    (
        "leakage:\n  paths: a\n ngram: 3",
        "line 7, column 2: not valid YAML (expected <block end>, but found '<block mapping start>'); mend "
        "the indentation",
        "leakage:\n  paths: a\n  ngram: 3",
    ),
    ("output: caf\xe9", "not UTF-8 at byte 103; save it as UTF-8", "output: cafe"),
    (None, "must hold settings, such as the line 'output: db'", ""),
]


@pytest.mark.parametrize(("typed", "said", "mended"), FILES)
def test_a_file_that_is_not_yaml(tmp_path: Path, typed: str | None, said: str, mended: str) -> None:
    file = tmp_path / "c.yaml"
    text = "- a" if typed is None else MINIMAL.lstrip() + typed + "\n"
    file.write_text(text, "latin-1")
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert str(error.value) == f"{file}: {said}"
    file.write_text(MINIMAL.lstrip() + mended, "utf-8")
    load_config(file)


OVERRIDES = [
    ("neighbors.k", "write setting=value, such as --set neighbors.k=10", "neighbors.k=10"),
    (
        "corpus.name=x",
        "corpus is a list of 1; number its items from 0, such as corpus.0.name=x",
        "corpus.0.name=x",
    ),
    (
        "corpus.3.name=x",
        "corpus is a list of 1; number its items from 0, such as corpus.0.name=x",
        "corpus.0.name=x",
    ),
    ("output.x=1", "output is 'db', and has no settings of its own", "output=1.5/db"),
    ("output=[", "the value is not valid YAML; write --set 'output=\"[\"'", 'output="["'),
]


@pytest.mark.parametrize(("typed", "said", "mended"), OVERRIDES)
def test_a_wrong_override(typed: str, said: str, mended: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(yaml.safe_load(MINIMAL), "c.yaml", [typed])
    assert str(error.value) == f"--set {typed}: {said}"
    parse_config(yaml.safe_load(MINIMAL), "c.yaml", [mended])


def test_a_setting_below_an_empty_section_can_be_given() -> None:
    settings = yaml.safe_load(f"{MINIMAL}\nneighbors:")
    assert parse_config(settings, "c.yaml", ["neighbors.k=3"]).neighbors.k == 3
