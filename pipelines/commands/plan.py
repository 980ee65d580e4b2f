"""The command `plan`: what it is asked, as text, to what it starts from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from retro_db.config import Config, load_config, parse_config
from retro_db.corpus.estimating import CHARACTERS_PER_TOKEN
from retro_db.errors import InputError
from retro_db.plan import TOKENS_PER_DOCUMENT, Plan, estimated_facts, given_facts, make_plan

_COUNT = re.compile(r"(\d[\d,_]*(?:\.\d+)?|\.\d+)\s*([KMBT]?)", re.IGNORECASE)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Beyond, sums do not fit in 64 bits.
_MOST_TOKENS = 10**15
# As the paper's tokenizer (section 2.1), and BERT-base.
_VOCAB_SIZE, _DIMENSION = 128_000, 768
_MOST_DIMENSIONS, _MOST_ENTRIES = 65_536, 1 << 31


@dataclass(frozen=True)
class CorpusOptions:
    """What the command line says of a corpus; None where it does not."""

    tokens: str | None = None
    tokens_per_document: str | None = None
    vocab_size: str | None = None
    dimension: str | None = None
    bytes_per_token: str | None = None


def plan_build(
    config: str | None,
    options: CorpusOptions,
    overrides: Sequence[str] = (),
    chunks_per_second: str | None = None,
) -> Plan:
    """Plans what a configuration builds, or a corpus of which the number of tokens is given.

    Args:
        config: A YAML file, or None.
        options: Description of the corpus, if no file is given.
        overrides: `a.b=value` each.
        chunks_per_second: What a device embeds.

    Raises:
        InputError: Both or none are given, a number is none, or a setting is wrong.
    """
    rate = parse_count(chunks_per_second, "--chunks-per-second") if chunks_per_second else None
    each = parse_count(options.bytes_per_token or f"{CHARACTERS_PER_TOKEN}", "--bytes-per-token")
    if config is None:
        if options.tokens is None:
            raise InputError("plan: nothing to plan; give CONFIG.yaml, or --tokens such as 1.75T")
        settings = _settings(overrides)
        facts = given_facts(
            settings,
            _whole(options.tokens, "--tokens", _MOST_TOKENS),
            parse_count(
                options.tokens_per_document or f"{TOKENS_PER_DOCUMENT}", "--tokens-per-document"
            ),
            each,
            _whole(options.vocab_size or f"{_VOCAB_SIZE}", "--vocab-size", _MOST_ENTRIES),
            _whole(options.dimension or f"{_DIMENSION}", "--dimension", _MOST_DIMENSIONS),
        )
        return make_plan(settings, facts, rate)
    for name, value in asdict(options).items():
        if value is not None and name != "bytes_per_token":
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option}: {config} decides that; leave {option} out, or leave {config} out and give "
                "--tokens"
            )
    settings = load_config(config, overrides)
    return make_plan(settings, estimated_facts(settings, each), rate)


def _settings(overrides: Sequence[str]) -> Config:
    """The defaults, of a corpus, a tokenizer and an encoder that nobody looks at."""
    data = {
        "output": "db",
        "corpus": [{"name": "corpus", "paths": ["corpus.jsonl"]}],
        "tokenizer": {"path": "tokenizer"},
        "encoder": {"model": "encoder"},
    }
    return parse_config(data, "--set", overrides)


def parse_count(text: str, option: str) -> float:
    """A positive number, such as 300, 1,000, 2.5, 12M, 300B or 1.75T.

    Args:
        text: As typed.
        option: Where.

    Raises:
        InputError: It is none.
    """
    match = _COUNT.fullmatch(text.strip())
    number = float(re.sub("[,_]", "", match[1])) * _FACTORS[match[2].upper()] if match else 0.0
    if not 0 < number < float("inf"):
        raise InputError(
            f"{option}: {text!r} is not a positive number; write one such as 1000, 12M, 300B or 1.75T"
        )
    return number


def _whole(text: str, option: str, most: int) -> int:
    number = round(parse_count(text, option))
    if not 1 <= number <= most:
        raise InputError(f"{option}: {text} is not between 1 and {most:,}; give another")
    return number
