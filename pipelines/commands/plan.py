"""The command `plan`: from what it is asked, as text, to what it prints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from retro_db.config import Config, in_units, load_config, parse_config
from retro_db.corpus.estimating import CHARACTERS_PER_TOKEN
from retro_db.errors import InputError
from retro_db.plan import (
    JOIN,
    TOKENS_PER_DOCUMENT,
    BreadthLaw,
    BreadthPlan,
    Facts,
    IndexPlan,
    JoinPlan,
    MeasuredRates,
    Plan,
    StageNeeds,
    estimated_facts,
    given_facts,
    make_plan,
)
from retro_db.store.serialize import to_json

from ..engine.console import Console

# Digits, perhaps in groups of three; then a power of ten or a letter.
_COUNT = re.compile(
    r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:e\+?(\d{1,2})|\s*([KMBT]))?",
    re.IGNORECASE,
)
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
    nprobe: str | None = None,
    sample: str | None = None,
    *,
    probing: bool = False,
) -> Plan:
    """Plans what a configuration builds, or a corpus of which the number of tokens is given.

    Args:
        config: A YAML file, or None.
        options: Description of the corpus, if no file is given.
        overrides: `a.b=value` each.
        chunks_per_second: What a device embeds.
        nprobe: Lists that a chunk visits.
        sample: A database of a sample of the corpus, in which that is measured.
        probing: Whether the rates of this machine are measured.

    Raises:
        InputError: Both or none are given, a number is none, a setting is wrong, or the sample is too small.
    """
    rate = parse_count(chunks_per_second, "--chunks-per-second") if chunks_per_second else None
    breadth = _whole(nprobe, "--nprobe", _MOST_ENTRIES) if nprobe else None
    each = parse_count(options.bytes_per_token or f"{CHARACTERS_PER_TOKEN}", "--bytes-per-token")
    if config is None:
        if options.tokens is None:
            raise InputError("plan: nothing to plan; give CONFIG.yaml, or --tokens such as 1.75T")
        settings = _settings(overrides)
        facts = _given_facts(settings, options.tokens, options, each)
    else:
        _refuse_description(config, options)
        settings = load_config(config, overrides)
        facts = estimated_facts(settings, each)
    return make_plan(settings, facts, rate, breadth, *_measured(sample, settings), probing=probing)


def _given_facts(
    settings: Config, tokens: str, options: CorpusOptions, bytes_per_token: float
) -> Facts:
    """Facts of the corpus that the command line describes."""
    return given_facts(
        settings,
        _whole(tokens, "--tokens", _MOST_TOKENS),
        parse_count(
            options.tokens_per_document or f"{TOKENS_PER_DOCUMENT}", "--tokens-per-document"
        ),
        bytes_per_token,
        _whole(options.vocab_size or f"{_VOCAB_SIZE}", "--vocab-size", _MOST_ENTRIES),
        _whole(options.dimension or f"{_DIMENSION}", "--dimension", _MOST_DIMENSIONS),
    )


def _refuse_description(config: str, options: CorpusOptions) -> None:
    """Refuses options that describe a corpus which the configuration names."""
    for name, value in asdict(options).items():
        if value is not None and name != "bytes_per_token":
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{option}: {config} decides that; leave {option} out, or leave {config} out and give "
                "--tokens"
            )


def _measured(
    sample: str | None, settings: Config
) -> tuple[list[BreadthLaw], MeasuredRates | None]:
    if sample is None:
        return [], None
    # Imports torch, which takes seconds.
    from .plan_sample import measure_sample

    return measure_sample(sample, settings)


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
    """A positive number, such as 300, 1,000, 1_000, 2.5, 1e9, 12M, 300B or 1.75T.

    Args:
        text: As typed.
        option: Where.

    Raises:
        InputError: It is none.
    """
    match = _COUNT.fullmatch(text.strip())
    number = 0.0
    if match:
        digits, power, letter = match.groups()
        factor = 10 ** int(power or 0) * _FACTORS[(letter or "").upper()]
        number = float(re.sub("[,_]", "", digits)) * factor
    if not number > 0:
        raise InputError(
            f"{option}: {text!r} is not a positive number; write one such as 1000, 1,000,000, 1e9, 12M, "
            "300B or 1.75T"
        )
    return number


def _whole(text: str, option: str, most: int) -> int:
    number = round(parse_count(text, option))
    if not 1 <= number <= most:
        raise InputError(f"{option}: {text} is not between 1 and {most:,}; give another")
    return number


def show_plan(plan: Plan, console: Console, *, as_json: bool) -> None:
    """Prints what a build would take."""
    if as_json:
        console.show_json(to_json(plan))
        return
    console.say(f"corpus     {plan.tokens:,} tokens in {plan.documents:,} documents, {plan.source}")
    queried = f", and {plan.queried_chunks:,} of query corpora" if plan.queried_chunks else ""
    console.say(
        f"chunks     {plan.chunks:,} of {plan.chunk_tokens} tokens, {plan.token_type}{queried}"
    )
    console.say(
        f"shards     {plan.shards:,} over {in_units(plan.input_bytes)} of input; {plan.parts:,} parts of "
        f"at most {plan.largest_part:,} chunks"
    )
    _show_planned_tables(plan, console)
    temporary = ", ".join(f"{table.table} {in_units(table.bytes)}" for table in plan.temporary)
    console.say(
        f"disk       {in_units(plan.totals.peak_bytes)} until the build ends: the total, and below state/ or "
        f"removed at the end {temporary}"
    )
    _say_planned_index(plan.index, console)
    _say_planned_join(plan.join, console)
    if plan.breadths:
        _show_breadths(plan.breadths, console)
    _show_planned_stages(plan, console)
    bands = plan.totals.shuffled_bytes
    payload = f"{in_units(bands)} of band keys, to find duplicates" if bands else "no payload"
    console.say(
        f"shuffle    {in_units(plan.totals.descriptor_bytes)} of descriptors over all stages, {payload}"
    )
    for hours in plan.hours:
        console.say(
            f"hours      {hours.stage}: {hours.hours:,.2f} {hours.device} hours at "
            f"{hours.chunks_per_second:,g} chunks/s ({hours.source})"
        )
    if all(hours.stage != JOIN for hours in plan.hours):
        console.say(f"hours      {JOIN}: no rate is known; give --probe or --sample")
    console.say(
        "           Rates come from the sources named: --probe measures this machine, --sample takes those "
        "of a database that your machines built, --chunks-per-second what benchmarks/embedding.py prints"
    )


def _show_planned_tables(plan: Plan, console: Console) -> None:
    rows = [
        (
            table.table,
            f"{table.files:,}",
            f"{table.rows:,}" if table.rows else "-",
            in_units(table.bytes),
            f"{table.bytes_per_chunk:,.3f}",
        )
        for table in plan.tables
    ]
    totals = plan.totals
    each = f"{totals.bytes_per_chunk:,.3f}"
    rows.append(("total", f"{totals.files:,}", "-", in_units(totals.bytes), each))
    console.show_table(("table", "files", "rows", "size", "bytes a chunk"), rows)


def _say_planned_index(index: IndexPlan, console: Console) -> None:
    """The key, and the memory of training and of search."""
    console.say(
        f"index      {index.key}: {index.lists:,} lists, {index.entries:,} entries of "
        f"{index.entry_bytes} bytes, {index.partitions:,} partitions"
    )
    console.say(
        f"memory     training {in_units(index.training_bytes)} for {index.training_points:,} points, of "
        f"{in_units(index.memory)} (index.memory)"
    )
    streamed = ""
    if index.search_groups > 1:
        streamed = (
            f", in {index.search_groups:,} groups of partitions one after another; all opened at once "
            f"take {in_units(index.loaded_bytes)}"
        )
    console.say(f"memory     search {in_units(index.search_bytes)} a worker{streamed}")


def _say_planned_join(join: JoinPlan, console: Console) -> None:
    """How neighbors are found, and the bytes that move for it."""
    others = f", of which a chunk visits about {join.visited:,.1f} others" if join.visited else ""
    waves = f" in {join.waves:,} waves" if join.waves > 1 else ""
    console.say(
        f"join       {join.nprobe:,} lists a chunk, {join.partitions:,} partitions{others}{waves}; "
        f"{in_units(join.worker_memory)} a worker"
    )
    console.say(
        f"join       {in_units(join.written_bytes)} written and {in_units(join.read_bytes)} read for the "
        f"neighbors, in sequence, keys {join.key_reads:,} times; {join.operations:.1e} multiplications"
    )


def _show_breadths(breadths: Sequence[BreadthPlan], console: Console) -> None:
    """The lists that recalls take at full size, and what follows from them."""
    console.say(
        "recall     what a chunk must visit for it, predicted from nested parts of the sample:"
    )
    rows = [
        (
            f"{plan.breadth.recall:g}",
            f"{plan.breadth.nprobe:,}",
            f"{plan.breadth.least:,} to {plan.breadth.most:,}",
            in_units(plan.moved_bytes),
            f"{plan.operations:.1e}",
        )
        for plan in breadths
    ]
    console.show_table(
        ("recall@10", "lists a chunk", "range", "written and read", "multiplications"), rows
    )


def _show_planned_stages(plan: Plan, console: Console) -> None:
    rows = [
        (
            stage.stage,
            f"{stage.tasks:,}",
            *_needs(stage.needs),
            in_units(stage.descriptor_bytes),
            f"{stage.list_requests:,}",
        )
        for stage in plan.stages
    ]
    totals, needs = plan.totals, [stage.needs for stage in plan.stages if stage.needs]
    rows.append(
        (
            "total",
            f"{totals.tasks:,}",
            in_units(sum(need.read for need in needs)),
            in_units(sum(need.written for need in needs)),
            f"{sum(need.random_reads for need in needs):,}",
            "",
            "",
            in_units(totals.descriptor_bytes),
            f"{totals.list_requests:,}",
        )
    )
    headers = (
        "stage",
        "tasks",
        "read",
        "written",
        "rows",
        "memory",
        "disk",
        "descriptors",
        "lists",
    )
    console.show_table(headers, rows)
    console.say(
        "           rows: read one by one; memory and disk: of a task, beside libraries and models, the disk "
        "where the database lies on an object store; lists: requests that list files"
    )


def _needs(needs: StageNeeds | None) -> tuple[str, ...]:
    """Cells of the table of stages."""
    if needs is None:
        return ("-",) * 5
    sizes = [in_units(size) for size in (needs.read, needs.written)]
    limits = [in_units(size) if size else "-" for size in (needs.memory, needs.disk)]
    return (*sizes, f"{needs.random_reads:,}" if needs.random_reads else "-", *limits)
