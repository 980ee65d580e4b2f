"""All checks of a database, in an order in which each can trust the ones before it."""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from retro_db.config import Config
from retro_db.errors import DamagedFileError, ManifestError
from retro_db.manifest.sealing import FILE, GENERATIONS
from retro_db.meter import Meter, Work
from retro_db.reader.database import Database
from retro_db.reader.database import open as open_database
from retro_db.threads import available_cores
from retro_db.verify import counting, rules
from retro_db.verify.checksums import check_strangers, file_checks
from retro_db.verify.corpus_files import Inputs
from retro_db.verify.history import History, begun_update, check_history, read_history
from retro_db.verify.index_lists import IndexExamination, Partitions, check_fine
from retro_db.verify.ledger import Check, Ledger, one_line
from retro_db.verify.opened import OpenedCorpus, OpenedPart, opened_corpora
from retro_db.verify.removal_checks import check_removed, check_renumbered
from retro_db.verify.sampling import Sample
from retro_db.verify.table_files import table_checks

if TYPE_CHECKING:
    from retro_db.encoder.encoder import Encoder

# Values of embeddings that two cores compare in about a minute.
_DISTANCE_VALUES = 10_000_000_000


@dataclass(frozen=True)
class Verification:
    """What was checked, each problem with its file, and what could not be checked.

    Attributes:
        files: Number of listed files, the manifest included.
        chunks: Number of chunks of the database.
        problems: One line for each problem.
        notes: One line for each thing that could not be checked.
    """

    files: int
    chunks: int
    problems: list[str]
    notes: list[str] = field(default_factory=list)


class Stage(Protocol):
    """Shows progress while a block runs, as a console does."""

    def __call__(
        self, name: str, unit: str, total: int, progress: Callable[[], Work]
    ) -> AbstractContextManager[Callable[[str], None]]:
        """Begins a stage; the block gets a function that takes a closing remark."""


@contextlib.contextmanager
def silent(
    name: str, unit: str, total: int, progress: Callable[[], Work]
) -> Iterator[Callable[[str], None]]:
    """A stage that shows nothing."""
    yield lambda remark: None


def verify_database(
    url: str,
    recompute: float = 0.0,
    encoder: str | None = None,
    stage: Stage = silent,
    *,
    inputs: Config | None = None,
    seed: int | None = None,
) -> Verification:
    """Checks a database against its manifest, its contracts and its rules.

    Args:
        url: Folder of the database, or its URL.
        recompute: Share of the documents whose embeddings, codes and neighbors are computed again, at least
            one document of every corpus; 0 for none.
        encoder: Folder or hub name of the encoder; the one that the build used by default.
        stage: Shows progress.
        inputs: Configuration whose corpus is compared with the tables, as large a share of its shards; None
            if it is not at hand.
        seed: Seed of every sample; by default another one each time. Notes tell it.

    Returns:
        The problems, and what could not be checked.

    Raises:
        NotADatabaseError: The folder has no manifest.
        UnsupportedVersionError: This release does not read its format.
        InputError: Embeddings are to be computed again, and their encoder cannot be found or loaded.
    """
    try:
        database = open_database(url)
    except ManifestError as error:
        return Verification(1, 0, [one_line(error)])
    embeddings_kept = bool(database.manifest.tables.embeddings)
    model = _open_encoder(database, encoder) if recompute and embeddings_kept else None
    with ThreadPoolExecutor(available_cores()) as pool:
        seed = secrets.randbelow(1 << 32) if seed is None else seed
        verifier = _Verifier(database, Ledger(pool), pool, stage, seed)
        verifier.check_files()
        verifier.check_rules()
        if model:
            verifier.recompute(model, recompute)
        if inputs:
            verifier.compare(inputs, recompute)
    ledger, files = verifier.ledger, len(database.manifest.files) + 1
    if recompute and not embeddings_kept:
        ledger.notes.append("nothing was computed again: embeddings were not kept")
    if not recompute:
        ledger.notes.append(
            "whether embeddings, codes and neighbors are those of the text was not checked: --recompute "
            "checks a share, and with --inputs documents and tokens too"
        )
    problems, notes = (list(dict.fromkeys(lines)) for lines in (ledger.problems, ledger.notes))
    return Verification(files, len(database), problems, notes)


def _open_encoder(database: Database, encoder: str | None) -> Encoder:
    # Imports torch and transformers, which takes seconds.
    from retro_db.search.retriever import open_encoder

    return open_encoder(database, encoder)


class _Verifier:
    """A verification that is running, its ledger and what it has opened."""

    def __init__(
        self, database: Database, ledger: Ledger, pool: Executor, stage: Stage, seed: int
    ) -> None:
        self.ledger = ledger
        self._database = database
        self._pool = pool
        self._stage = stage
        self._seed = seed
        self._history = History({database.manifest.generation: database.manifest})
        self._corpora: list[OpenedCorpus] = []

    def check_files(self) -> None:
        """Verifies checksums and manifests, and looks for files that no manifest lists."""
        database, meter = self._database, Meter()
        self._history = history = read_history(database, self.ledger)
        entries = {entry.path: entry for entry in (*database.manifest.files, *history.superseded)}
        size = sum(entry.bytes for entry in entries.values())
        with self._stage("files", "bytes", size, lambda: meter.work) as remark:
            self.ledger.run(
                [
                    Check(FILE, [], functools.partial(check_history, database.folder, history)),
                    Check("other files", [], functools.partial(check_strangers, database, history)),
                ]
            )
            self.ledger.run_on_files(file_checks(database, history, meter))
            if update := begun_update(database):
                self.ledger.notes.append(
                    f"{update} is under way or was stopped: its files below {GENERATIONS} not checked"
                )
            remark(f"{len(entries) + len(history.manifests):,} files, {meter.work.done:,} bytes")

    def check_rules(self) -> None:
        """Checks contracts, rules, counts and the index."""
        self._corpora = opened_corpora(self._database)
        meter, manifest = Meter(), self._database.manifest
        for corpus in self._corpora:
            self.ledger.run_on_files(table_checks(corpus.reader))
        total = manifest.counts.indexed_chunks
        total += sum(
            len(corpus.reader) * (3 if corpus.has_embeddings else 2) for corpus in self._corpora
        )
        with self._stage("rules", "rows", total, lambda: meter.work) as remark:
            self._check_parts(meter)
            self._check_index(meter)
            self.ledger.run(self._checks_of_counts())
            remark(f"{meter.work.done:,} rows")
        for corpus in self._corpora:
            if len(corpus.reader) and not corpus.has_embeddings:
                self.ledger.notes.append(
                    f"{corpus.name}embeddings were not kept: neither they nor distances were checked"
                )

    def _check_parts(self, meter: Meter) -> None:
        """Checks every part by itself: documents first, since they say which chunks belong together."""
        parts = [part for corpus in self._corpora for part in corpus.parts()]
        home_parts = [part.files for part in self._corpora[0].parts()]
        self.ledger.run_on_files(
            Check(part.files.documents.path, [part.files.documents.path], run)
            for part in parts
            for run in [functools.partial(rules.check_documents, part)]
        )
        checks, later = [], []
        for part in parts:
            files = [part.files.documents.path, part.files.chunks.path]
            run = functools.partial(rules.check_chunks, part, meter)
            checks.append(Check(files[1], files, run))
            if part.corpus.has_embeddings:
                path = part.files.keys_file.path
                run = functools.partial(rules.check_embeddings, part, meter)
                checks.append(Check(path, [path], run))
                files.append(path)
            path = part.neighbors.path
            run = functools.partial(rules.check_neighbors, part, home_parts, meter)
            later.append(Check(path, [*files, path], run))
        self.ledger.run(checks)
        self.ledger.run(later)
        embeddings = self._database.manifest.tables.embeddings
        if any(entry.path in self.ledger.damaged for entry in embeddings):
            self.ledger.notes.append("distances not checked: embeddings are damaged")
            return
        measured = [part for part in parts if part.corpus.has_embeddings]
        sample = self._sample_of_distances(measured)
        self.ledger.run(
            Check(path, [part.files.keys_file.path, path], run)
            for part in measured
            for path in [part.neighbors.path]
            for run in [functools.partial(rules.check_distances, part, sample)]
        )

    def _sample_of_distances(self, parts: list[OpenedPart]) -> Sample:
        """All rows where that is soon done, else a share of them, which a note tells."""
        rows = sum(part.files.rows for part in parts)
        values = sum(part.files.rows * rules.values_of_row(part.corpus) for part in parts)
        sample = Sample(min(1.0, _DISTANCE_VALUES / max(values, 1)), self._seed)
        if sample.share < 1:
            self.ledger.notes.append(
                f"distances were checked on {sample.share:.2%} of {rows:,} rows (seed {self._seed}): "
                f"{sample.missing(rows)}"
            )
        return sample

    def _check_index(self, meter: Meter) -> None:
        """Checks every partition, and then all together."""
        manifest, [home, *_] = self._database.manifest, self._corpora
        files = [entry.path for entry in manifest.index_files]
        if any(path in self.ledger.damaged for path in files):
            self.ledger.notes.append("index not checked: files of it are damaged")
            return
        try:
            partitions = Partitions(self._database, self._pool)
            examination = IndexExamination(home, partitions, meter)
        except DamagedFileError as error:
            self.ledger.problems.append(one_line(error))
            self.ledger.damaged.update(files)
            return
        before = len(self.ledger.problems)
        self.ledger.run(examination.checks())
        tables = manifest.tables
        needed = [entry.path for entry in (*tables.documents, *tables.embeddings)]
        if not tables.embeddings:
            needed += [entry.path for entry in tables.neighbors]
        self.ledger.run(
            [
                Check("the whole index", needed, examination.check_whole),
                Check("fine codes", files, functools.partial(check_fine, home)),
            ]
        )
        # Faiss does not check what it searches.
        if len(self.ledger.problems) > before:
            self.ledger.damaged.update(files)

    def _checks_of_counts(self) -> Iterator[Check]:
        """Yields the checks of the manifest's counts, and of the tables that name documents of all parts."""
        database, [home, *_] = self._database, self._corpora
        tables, tokenizer = database.manifest.tables, database.manifest.tokenizer_files
        yield Check(FILE, [], functools.partial(counting.check_manifest, database))
        run = functools.partial(counting.check_tokenizer, database)
        yield Check("tokenizer", [entry.path for entry in tokenizer], run)
        for corpus in self._corpora:
            listed = corpus.reader.tables
            paths = [entry.path for entry in listed.dropped]
            run = functools.partial(counting.check_dropped, corpus)
            yield Check(f"{corpus.name}dropped", paths, run)
            rows = (*listed.documents, *listed.chunks, *listed.embeddings, *listed.neighbors)
            paths = [entry.path for entry in rows]
            name = f"counts of {corpus.name or 'the database'}"
            yield Check(name, paths, functools.partial(counting.check_totals, corpus))
        paths = [entry.path for entry in (*tables.removed, *tables.documents)]
        yield Check("removed", paths, functools.partial(check_removed, home))
        paths = [entry.path for entry in tables.renumbered]
        yield Check("renumbered", paths, functools.partial(check_renumbered, home, self._history))

    def compare(self, config: Config, share: float) -> None:
        """Compares a sample of the shards with the files that they were read from."""
        meter = Meter()
        inputs = Inputs(self._corpora[0], config, Sample(share, self._seed))
        self.ledger.notes += inputs.notes
        size = sum(shard.bytes for shard in inputs.shards)
        with self._stage("inputs", "bytes", size, lambda: meter.work) as remark:
            for shard in inputs.shards:
                self.ledger.run(
                    [Check(f"shard {shard.number}", [], functools.partial(inputs.check, shard))]
                )
                meter(shard.bytes)
            remark(f"{len(inputs.shards):,} shards, {size:,} bytes")

    def recompute(self, encoder: Encoder, share: float) -> None:
        """Computes a sample again, if no file is damaged."""
        from retro_db.verify.recomputing import Recomputation, choose_documents

        if self.ledger.damaged:
            self.ledger.notes.append(
                f"nothing was computed again: {min(self.ledger.damaged)} is damaged"
            )
            return
        meter = Meter()
        wanted = Sample(share, self._seed)
        samples = [
            chosen for corpus in self._corpora for chosen in choose_documents(corpus, wanted)
        ]
        total = sum(sample.chunks for sample in samples)
        with self._stage("recompute", "chunks", total, lambda: meter.work) as remark:
            home = self._corpora[0]
            again = Recomputation(home, self._history, encoder, self._pool, meter)
            for sample in samples:
                path = sample.part.neighbors.path
                self.ledger.run_here(Check(path, [], functools.partial(again.check, sample)))
            self.ledger.notes += again.notes
            documents = sum(len(sample.positions) for sample in samples)
            remark(f"{documents:,} documents, {meter.work.done:,} chunks")
        count = sum(entry.rows for c in self._corpora for entry in c.reader.tables.documents)
        if share < 1:
            self.ledger.notes.append(
                f"{documents:,} of {count:,} documents were computed again (seed {self._seed}): "
                f"{wanted.missing(count)}"
            )
