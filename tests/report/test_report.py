"""The report: one page, its figures those of the database, fit for any screen and any reader."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import orjson
import pytest

from retro_db.report import facts, retrieval
from retro_db.report.facts import gather_facts
from retro_db.report.retrieval import measure_retrieval
from retro_db.report.retrieval_figures import DEEPEST
from retro_db.report.stage_report import pace_of
from retro_db.tokens.tokenizer import Tokenizer
from retro_db_pipelines.commands.cli import run
from support.projects import Project, make_project, remove_documents
from support.texts import python_sources

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "<script>alert('x')</script> $\\frac{1}{2}$ \u202eabc\uffff #010101 & \"more\""


@dataclass
class Page(HTMLParser):
    """What a browser would find in a page."""

    path: Path
    ids: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    elements: Counter[str] = field(default_factory=Counter)
    pictures: list[str] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self.raw = self.path.read_text("utf-8")
        self.feed(self.raw)
        self.close()
        assert not self._open, "elements that are not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements[tag] += 1
        if tag not in VOID:
            self._open.append(tag)
        if "id" in given:
            self.ids.append(str(given["id"]))
        self.links += [str(given[key]) for key in ("href", "src", "xlink:href") if key in given]
        if given.get("role") == "img":
            self.pictures.append(str(given["aria-label"]))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self._rows = self.tables.setdefault(str(given["aria-label"]), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self._rows[-1][-1] += data

    def column(self, table: str, name: str) -> list[str]:
        header, *rows = self.tables[table]
        return [row[header.index(name)] for row in rows]

    def numbers(self, table: str, name: str) -> list[int]:
        return [int(cell.replace(",", "")) for cell in self.column(table, name)]


def report_of(project: Project, name: str = "report.html") -> Page:
    out = project.output.with_name(name)
    assert run(["report", str(project.output), "--out", str(out)]) == 0
    return Page(out)


def map_data(page: Page) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json">(.*?)</script>', page.raw)
    data: dict[str, Any] = json.loads(text)
    return data


@pytest.fixture(scope="module")
def page(small: Project) -> Page:
    return report_of(small)


@pytest.fixture(scope="module")
def page_of_two(two: Project) -> Page:
    return report_of(two)


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two sources, of which one has a hostile name, with something to leave out for every reason."""
    folder = tmp_path_factory.mktemp("screened")
    texts = python_sources(30)
    project = make_project(
        folder,
        texts[:20],
        leakage={"paths": [str(folder / "evaluation.jsonl")]},
        dedup={"jaccard": 0.8},
        queries=[{"name": "evaluation", "paths": [str(folder / "evaluation.jsonl")], "id": "id"}],
        split={"validation": 0.3},
    )
    (folder / "evaluation.jsonl").write_bytes(orjson.dumps({"id": "e", "text": texts[20]}))
    extra = [{"id": "copy", "text": texts[3]}, {"id": "leak", "text": texts[20]}]
    extra += [{"id": f"<b>{i}", "text": text} for i, text in enumerate(texts[21:])]
    lines = [*(orjson.dumps(one) for one in extra), b'{"id": "bad"']
    (folder / "more.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    more = {"name": HOSTILE, "paths": [str(folder / "more.jsonl")], "id": "id", "max_bad": 0.5}
    project.settings["corpus"].append(more | {"fraction": 0.9})
    assert project.build() == 0
    return project


def test_a_page_needs_nothing_but_itself(page: Page) -> None:
    assert page.path.stat().st_size < 3_000_000
    [allowed] = re.findall(r"script-src 'sha256-([^']*)'", page.raw)
    [script] = re.findall(r"<script>(.*?)</script>", page.raw, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed
    assert page.elements["script"] == 2  # the other one is JSON
    assert "innerHTML" not in script
    assert not page.elements["iframe"]
    assert all(link.startswith(("#", "data:,")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", page.raw)


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    inside = [link[1:] for link in page.links if link.startswith("#")]
    assert inside
    assert set(inside) <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page.raw)) <= set(page.ids)


def test_every_picture_is_told_in_words_and_in_figures(page: Page) -> None:
    assert len(page.pictures) == page.elements["svg"] == 13
    assert all(len(told) > 40 for told in page.pictures)
    for told in page.pictures:
        assert page.tables[told.split(".")[0]][1:]


def test_headings_leave_out_no_level(page: Page) -> None:
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    steps = np.diff(page.headings)
    assert steps.max() <= 1


def luminance(color: str) -> float:
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """Of two colors, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_colors_can_be_told_apart_by_light_and_in_the_dark(page: Page) -> None:
    schemes = re.findall(r":root \{(.*?)\}", page.raw, re.DOTALL)
    assert len(schemes) == 3  # the last one for print
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for ground in ("page", "card"):
            for name in ("text", "soft", "accent"):
                assert contrast(colors[name], colors[ground]) >= 4.5, (name, ground)
            for name in (f"c{number}" for number in range(1, 7)):
                assert contrast(colors[name], colors[ground]) >= 3, (name, ground)
        assert contrast(colors["text"], colors["mark"]) >= 4.5
        # A cell of the matrix, at its deepest.
        mixed = [
            round(
                DEEPEST * int(colors["c1"][i : i + 2], 16)
                + (1 - DEEPEST) * int(colors["card"][i : i + 2], 16)
            )
            for i in (1, 3, 5)
        ]
        assert contrast(colors["text"], "#{:02x}{:02x}{:02x}".format(*mixed)) >= 4.5
    assert not re.search(r"(fill|stroke): #", page.raw), "a drawing has a color of its own"


def test_figures_are_those_of_the_files(page: Page, small: Project) -> None:
    manifest = json.loads((small.output / "manifest.json").read_bytes())
    database = small.open()
    every = np.arange(len(database))
    assert page.numbers("Sources", "chunks") == [len(database)]
    lengths = database.chunks.lengths(every)
    assert page.numbers("Chunk length", "chunks") == [
        int(((lengths > low) & (lengths <= low + 8)).sum()) for low in range(0, 64, 8)
    ]
    lists = [
        index.invlists.list_size(number)
        for file in manifest["index_files"][1:]
        for index in [faiss.read_index(str(small.output / file["path"]))]
        for number in range(index.nlist)
    ]
    told = dict(page.tables["Inverted lists"][1:])
    assert told["lists"] == str(len(lists))
    assert told["longest"] == str(max(lists))
    assert told["imbalance"] == f"{len(lists) * sum(n * n for n in lists) / sum(lists) ** 2:.2f}"
    nearest = database.neighbors.distances(every)[:, 0]
    half = np.percentile(nearest[np.isfinite(nearest)], 50)
    assert page.column("Distance of neighbors", "nearest")[2] == f"{half:,.3g}"


def test_copies_are_those_that_leakage_measures(
    page: Page, small: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["leakage", str(small.output), "--json"]) == 0
    histogram = json.loads(capsys.readouterr().out)["histogram"]
    paired = [histogram[0], *(a + b for a, b in zip(histogram[1::2], histogram[2::2], strict=True))]
    assert page.numbers("Copies in neighbors, r(C)", "validation chunks") == paired
    training = page.numbers("Copies in neighbors, r(C)", "training chunks")
    assert sum(training) + sum(paired) == len(small.open())


def test_stages_and_speeds_are_those_of_the_build(page: Page, small: Project) -> None:
    kept = json.loads((small.output / "report" / "stages.json").read_bytes())
    assert page.column("Time of every stage", "stage") == list(kept["stages"])
    assert page.numbers("Time of every stage", "done") == [
        stage["work"]["done"] for stage in kept["stages"].values()
    ]
    assert page.numbers("Recall against speed", "lists visited") == [
        speed["nprobe"] for speed in kept["speeds"]
    ]
    chosen = json.loads((small.output / "manifest.json").read_bytes())["index"]["recall"][-1]
    assert page.column("Recall against speed", "recall@10")[-1] == f"{chosen['recall']:.4f}"
    assert all(speed["queries_per_second"] > 0 for speed in kept["speeds"])


def test_nothing_gets_lost_between_two_steps(screened: Project) -> None:
    page = report_of(screened)
    name, *steps = page.tables["Data flow"]
    assert name == ["step", "kept", "left out", "unit", "why"]
    documents = [row for row in steps if row[3] == "documents"]
    for before, after in itertools.pairwise(documents):
        assert int(after[1]) + int(after[2]) == int(before[1]), after
    why = {row[4]: int(row[2]) for row in documents if row[4]}
    assert why["duplicate"] == why["leakage"] == why["1 not JSON"] == 1
    manifest = screened.open().manifest
    assert int(documents[-1][1]) == manifest.counts.documents
    assert why["fraction"] > 0
    chunks = {row[0]: int(row[1]) for row in steps if row[3] == "chunks"}
    assert chunks["cut into chunks"] == manifest.counts.chunks
    assert chunks["in the index"] == manifest.counts.indexed_chunks < chunks["with an embedding"]


def test_names_are_shown_and_not_obeyed(screened: Project) -> None:
    page = report_of(screened)
    assert page.elements["script"] == 2
    assert not page.elements["b"]
    assert any(name.startswith("<script>alert('x')") for name in map_data(page)["names"])
    assert "\u202e" not in page.raw
    assert page.column("Sources", "source")[1] == re.sub("[\u202e\uffff]", "\ufffd", HOSTILE)
    assert page.column("Sources", "weight")[2] == "queries"
    assert page.numbers("Map of chunks", "chunks drawn") == sorted(
        Counter(
            screened.open().documents["source"].to_pylist()[document]
            for document in screened.open().chunks.documents(np.arange(len(screened.open())))
        ).values(),
        reverse=True,
    )


def test_without_embeddings_or_stage_times_there_is_a_report(tmp_path: Path) -> None:
    project = make_project(tmp_path, python_sources(8), embeddings={"keep": False})
    assert project.build() == 0
    (project.output / "report" / "stages.json").write_text('{"of": "another release"}')
    page = report_of(project)
    assert "Map of chunks" not in page.tables
    assert "Time of every stage" not in page.tables
    assert "is not there, or of another release" in page.text
    assert page.column("Recall against speed", "queries a second")[0] == "-"


def test_removed_chunks_are_not_measured(tmp_path: Path) -> None:
    project = make_project(tmp_path, python_sources(8))
    assert project.build() == 0
    before = len(project.open())
    gone = int(project.open().documents["chunk_count"][2].as_py())
    assert remove_documents(project.output, ["doc-2"]) == 0
    page = report_of(project)
    assert sum(page.numbers("Chunk length", "chunks")) == before - gone
    assert page.tables["Data flow"][-1][1:3] == [f"{before - gone:,}", f"{gone:,}"]
    assert f"Measured on all {before - gone:,} chunks" in page.text
    assert run(["compact", str(project.output), str(tmp_path / "new")]) == 0
    assert run(["report", str(tmp_path / "new")]) == 0
    compacted = Page(tmp_path / "new" / "report" / "report.html")
    assert compacted.column("Time of every stage", "stage")[0] == "compact"


def test_a_missing_file_is_told_or_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path, python_sources(4))
    assert project.build() == 0
    (project.output / "tokenizer" / "tokenizer_config.json").rename(tmp_path / "elsewhere")
    assert run(["report", str(project.output), "--out", str(tmp_path / "out.html")]) == 1
    assert not (tmp_path / "out.html").exists()


def test_a_single_chunk_has_a_report(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["A few words."])
    assert project.build() == 0
    page = report_of(project)
    assert page.text.count("No chunk has a neighbor.") == 2
    assert "nan" not in page.text


def test_many_sources_and_equal_keys_and_one_neighbor(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["A text that all of them share."], neighbors={"k": 1})
    [source] = project.settings["corpus"]
    names = ["others", *(f"source {number}" for number in range(7))]
    project.settings["corpus"] = [source | {"name": name} for name in names]
    assert project.build() == 0
    page = report_of(project)
    assert page.tables["Distance of neighbors"][0] == ["share of chunks below", "nearest"]
    assert "For half of the chunks: nearest within 0." in page.text
    assert "Map of chunks" not in page.tables, "equal keys have no plane"
    assert page.column("Sources", "source") == names
    # Other texts, so that there is a map; five sources are drawn apart.
    (tmp_path / "more.jsonl").write_bytes(
        b"\n".join(orjson.dumps({"id": str(i), "text": t}) for i, t in enumerate(python_sources(3)))
    )
    project.settings["corpus"][0]["paths"] = [str(tmp_path / "more.jsonl")]
    assert project.build("--overwrite") == 0
    page = report_of(project)
    drawn = dict(
        zip(
            page.column("Map of chunks", "source"),
            page.numbers("Map of chunks", "chunks drawn"),
            strict=True,
        )
    )
    assert len(drawn) == 6
    assert drawn["all others"] == 3
    keyless = project.open().manifest.counts.keyless_chunks
    assert drawn["others"] == len(project.open()) - keyless - 7


def test_a_sample_comes_from_few_files(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    database = small.open()
    starts = database.first_chunks
    assert len(starts) > 4
    monkeypatch.setattr(facts, "_PARTS", 2)
    monkeypatch.setattr(facts, "SAMPLE", 50)
    drawn = gather_facts(database).sample.ids
    files = np.unique(np.searchsorted(starts, drawn, side="right") - 1)
    assert len(files) == 2
    assert 25 < len(drawn) <= 50
    assert (np.diff(drawn) > 0).all()


def test_a_folder_is_no_page(
    small: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (str(tmp_path), f"{tmp_path}/new/"):
        assert run(["report", str(small.output), "--out", name]) == 2
        assert "is a folder; name a file in it" in capsys.readouterr().err


def test_speeds_of_another_search_are_left_out(small: Project, tmp_path: Path) -> None:
    copied = tmp_path / "db"
    shutil.copytree(small.output, copied)
    kept = json.loads((copied / "report" / "stages.json").read_bytes())
    kept["speeds"][-1]["nprobe"] += 1
    for stage in kept["stages"].values():
        del stage["pace"]  # as a release wrote it that did not keep times
    (copied / "report" / "stages.json").write_text(json.dumps(kept), "utf-8")
    assert run(["report", str(copied)]) == 0
    page = Page(copied / "report" / "report.html")
    assert set(page.column("Recall against speed", "queries a second")) == {"-"}
    assert "Throughput over time" not in page.tables
    assert "Time of every stage" in page.tables
    assert len(page.column("Recall against speed", "lists visited")) == len(
        small.open().manifest.index.recall
    )


def upper_bounds(values: np.ndarray) -> dict[str, int]:
    """Counts by the smallest of 0, 1, 2, 4, 8, ... that is not below a number."""
    bounds = [0, *(1 << power for power in range(40))]
    counted = Counter(next(bound for bound in bounds if bound >= value) for value in values)
    return {f"{bound:,}": counted[bound] for bound in sorted(counted)}


def counts_of(page: Page, table: str) -> dict[str, int]:
    rows = [row for row in page.tables[table][1:] if row[0].replace(",", "").isdigit()]
    return {name: int(count.replace(",", "")) for name, count in rows if count != "0"}


def test_retrieval_is_what_brute_force_counts(page_of_two: Page, two: Project) -> None:
    page, database = page_of_two, two.open()
    ids = np.setdiff1d(np.arange(len(database)), database.removed_chunks)
    documents = database.documents
    rows = database.chunks.documents(np.arange(len(database)))
    owners = np.array(documents["source"].to_pylist())[rows]
    splits = np.array(documents["split"].to_pylist())[rows]
    near, names = database.neighbors[ids], ["test", "other source"]
    for name in names:
        lists = near[owners[ids] == name]
        found = owners[lists[lists >= 0]]
        [row] = [row for row in page.tables["Sources by sources"] if row[0] == name]
        assert row[1:] == [*(f"{np.mean(found == n):.2%}" for n in names), f"{len(found):,}"]
    # What can be a neighbor: training chunks with an embedding that were not removed.
    possible = ids[(splits[ids] == "train") & database.embeddings[ids].any(axis=1)]
    often = np.array([(near == chunk).sum() for chunk in possible], float)
    assert counts_of(page, "Hubs") == upper_bounds(often)
    measures = {row[0]: row[1] for row in page.tables["Hubs"]}
    spread = often - often.mean()
    assert measures["skewness"] == f"{np.mean(spread**3) / np.mean(spread**2) ** 1.5:.2f}"
    assert measures["mean"] == f"{often.mean():,.2f}"
    assert f"In {int(often.max()):,} lists:" in page.text
    zero = database.neighbors.distances(ids)[:, 0] == 0
    assert page.numbers("Copies by source", "at distance 0") == [
        int((zero & (owners[ids] == name)).sum()) for name in names
    ]


def test_texts_and_lengths_are_what_brute_force_counts(page_of_two: Page, two: Project) -> None:
    page, database = page_of_two, two.open()
    ids = np.setdiff1d(np.arange(len(database)), database.removed_chunks)
    rows = database.chunks.documents(ids)
    owners = np.array(database.documents["source"].to_pylist())[rows]
    tokens = [database.chunks[c][: int(database.chunks.lengths([c])[0])] for c in ids.tolist()]
    earlier: set[bytes] = set()
    copies = Counter[str]()
    for owner, values in zip(owners, tokens, strict=True):
        copies[owner] += values.tobytes() in earlier
        earlier.add(values.tobytes())
    names = ["test", "other source"]
    assert page.numbers("Copies by source", "copies") == [copies[name] for name in names]
    lengths = np.bincount(rows, [len(values) for values in tokens], len(database.documents))
    present = np.setdiff1d(np.arange(len(lengths)), database.removed)
    assert counts_of(page, "Document length") == upper_bounds(lengths[present])
    tokenizer = Tokenizer.of_database(database.folder, database.manifest.tokenizer_files)
    for place, name in enumerate(names):
        own = np.flatnonzero(owners == name)
        own = own[np.arange(200) * len(own) // 200] if len(own) > 200 else own
        chosen = [tokens[row] for row in own]
        assert page.numbers("Bytes a token", "tokens")[place] == sum(map(len, chosen))
        size = len("".join(tokenizer.decode(chosen)).encode())
        assert page.numbers("Bytes a token", "bytes")[place] == size


def test_a_sample_says_that_it_is_one(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    database = small.open()
    ids = np.arange(len(database))
    whole = measure_retrieval(database, ids)
    monkeypatch.setattr(retrieval, "EXACT", 0)
    sampled = measure_retrieval(database, ids)
    assert sampled.copies is None
    assert (sampled.matrix == whole.matrix).all()
    often = whole.hubs.sizes[whole.hubs.sizes > 0]
    assert np.array_equal(np.sort(sampled.hubs.sizes), np.sort(often))
    assert measure_retrieval(database, ids[::2]).chunks.sum() == len(ids[::2])
    page = report_of(small, "sampled.html")
    assert f"Sampled: {len(ids):,} chunks" in page.text
    assert "skewness" not in {row[0] for row in page.tables["Hubs"]}
    assert "copies" not in page.tables["Copies by source"][0]


def test_points_of_the_map_are_chunks_with_their_neighbors(page: Page, small: Project) -> None:
    data, database = map_data(page), small.open()
    points = re.findall(r'data-chunk="(\d+)"[^>]*>\s*<title>', page.raw)
    assert len(points) == len(set(points)) == sum(page.numbers("Map of chunks", "chunks drawn"))
    assert set(points) == set(data["near"])
    for chunk, near in data["near"].items():
        stored = database.neighbors[int(chunk)][:3]
        assert [neighbor for neighbor, _ in near] == stored[stored >= 0].tolist()
        assert all(str(neighbor) in data["chunks"] for neighbor, _ in near)
    assert sum(page.numbers("Clusters of the map", "chunks")) == len(points)
    texts = " ".join(data["chunks"][chunk][1].lower() for chunk in points)
    named = [cell for cell in page.column("Clusters of the map", "words") if cell != "-"]
    assert named
    assert all(cell.split(", ")[0] in texts for cell in named)


def test_nprobe_stands_beside_every_point_of_the_curve(page: Page) -> None:
    [curve] = [svg for svg in page.raw.split("<svg ")[1:] if 'id="recall-figure_1"' in svg]
    labels = re.findall(r'id="recall-label-\d+".*?<text[^>]*>([\d,]+)</text>', curve, re.DOTALL)
    assert set(labels) == set(page.column("Recall against speed", "lists visited"))


def test_equal_databases_have_equal_pages(page: Page, small: Project) -> None:
    assert report_of(small, "again.html").raw == page.raw


def test_generations_and_databases_stand_beside_each_other(two: Project, small: Project) -> None:
    assert run(["report", str(two.output), "--beside-generation", "1"]) == 0
    page = Page(two.output / "report" / "beside.html")
    assert len(page.ids) == len(set(page.ids))
    now, before = "db, generation 2", "db, generation 1"
    assert page.tables["Side by side"][0] == ["figure", now, before]
    counts = two.open().manifest.counts
    [documents] = [row[1:] for row in page.tables["Side by side"] if row[0] == "documents"]
    assert documents == [str(counts.documents - counts.removed_documents), str(counts.documents)]
    assert "All settings are the same." in page.text
    assert {f"Hubs: {now}", f"Hubs: {before}"} <= set(page.tables)
    out = small.output.with_name("beside.html")
    assert run(["report", str(small.output), "--beside", str(two.output), "--out", str(out)]) == 0
    page = Page(out)
    assert out.stat().st_size < 3_000_000
    differing = {row[0]: row[1:] for row in page.tables["Settings that differ"]}
    configs = [project.open().manifest.config for project in (small, two)]
    assert differing["chunk.tokens"] == [str(config["chunk"]["tokens"]) for config in configs]
    assert differing["index.key"] == [str(config["index"]["key"]) for config in configs]
    assert differing["corpus.other source.weight"] == ["-", "0.9"]
    assert "seed" not in differing


def test_a_database_does_not_stand_beside_itself(
    small: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(small.output), "--beside", str(small.output)]) == 2
    assert "is the database itself" in capsys.readouterr().err


def test_pace_adds_up_what_tasks_did_at_a_time() -> None:
    # Ten seconds at 3 a second; within them five at 12 more, and a task that took no time at the end.
    pace = pace_of([(110.0, 10.0, 30), (107.5, 5.0, 60), (110.0, 0.0, 7)])
    assert pace is not None
    assert (pace.started, pace.seconds) == (100.0, 10.0)
    expected = np.full(60, 0.5)
    expected[15:45] += 2
    expected[-1] += 7
    assert np.allclose(pace.done, expected)
    assert pace_of([(110.0, 10.0, 30), (0.0, 5.0, 60)]) is None
    assert pace_of([]) is None
