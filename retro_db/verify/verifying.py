"""All checks of a database, in an order in which each can trust the ones before it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from retro_db.encoder.encoding import Encoder
from retro_db.errors import DamagedFileError, ManifestError
from retro_db.manifest.files import FILE, GENERATIONS
from retro_db.meter import Meter, Work
from retro_db.reader.database import Database
from retro_db.reader.database import open as open_database
from retro_db.search.retriever import open_encoder
from retro_db.threads import available_cores
from retro_db.verify import counting, rules
from retro_db.verify.checksums import check_strangers, file_checks
from retro_db.verify.history import History, check_history, is_begun, read_history
from retro_db.verify.index_lists import IndexExamination, Partitions, check_fine
from retro_db.verify.ledger import Check, Ledger, one_line
from retro_db.verify.opened import Held, corpora
from retro_db.verify.recomputing import Recomputation, choose_documents
from retro_db.verify.removed import check_removed, check_renumbered
from retro_db.verify.table_files import table_checks


@dataclass(frozen=True)
class Verification:
    """What was checked, everything that is wrong, each with its file, and what was left out.

    Attributes:
        files: Listed files, the manifest included.
        chunks: Of the database.
        problems: A line for each.
        notes: A line for each thing that could not be checked.
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
        """Begins; the block gets a function that takes a closing remark."""


@contextlib.contextmanager
def silent(
    name: str, unit: str, total: int, progress: Callable[[], Work]
) -> Iterator[Callable[[str], None]]:
    """A stage that shows nothing."""
    yield lambda remark: None


def verify_database(
    url: str, recompute: float = 0.0, encoder: str | None = None, stage: Stage = silent
) -> Verification:
    """Checks a database against its manifest, its contracts and its rules.

    Args:
        url: Its folder.
        recompute: Share of the documents whose keys, codes and neighbors are computed again, one of
            every corpus at the least; 0 for none.
        encoder: Folder or hub name of the encoder; where the build found it, if left out.
        stage: Shows progress.

    Returns:
        What is wrong.

    Raises:
        NotADatabaseError: There is no manifest.
        UnsupportedVersionError: This release does not read its format.
        InputError: Keys are to be computed again, and their encoder cannot be found or loaded.
    """
    try:
        database = open_database(url)
    except ManifestError as error:
        return Verification(1, 0, [one_line(error)])
    keys_kept = bool(database.manifest.tables.embeddings)
    model = open_encoder(database, encoder) if recompute and keys_kept else None
    with ThreadPoolExecutor(available_cores()) as pool:
        verifier = _Verifier(database, Ledger(pool), pool, stage)
        verifier.check_files()
        verifier.check_rules()
        if model:
            verifier.recompute(model, recompute)
    ledger, files = verifier.ledger, len(database.manifest.files) + 1
    if recompute and not keys_kept:
        ledger.notes.append("nothing was computed again: embeddings were not kept")
    problems, notes = (list(dict.fromkeys(lines)) for lines in (ledger.problems, ledger.notes))
    return Verification(files, len(database), problems, notes)


class _Verifier:
    """One verification on its way."""

    def __init__(self, database: Database, ledger: Ledger, pool: Executor, stage: Stage) -> None:
        self.ledger = ledger
        self._database = database
        self._pool = pool
        self._stage = stage
        self._history = History({database.manifest.generation: database.manifest})
        self._corpora: list[Held] = []

    def check_files(self) -> None:
        """Checksums, manifests, and what should not be there."""
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
            if is_begun(database):
                self.ledger.notes.append(
                    f"an append is under way or was stopped: its files below {GENERATIONS} not checked"
                )
            remark(f"{len(entries) + len(history.manifests):,} files, {meter.work.done:,} bytes")

    def check_rules(self) -> None:
        """Contracts, rules, counts and the index."""
        self._corpora = corpora(self._database)
        meter, manifest = Meter(), self._database.manifest
        for held in self._corpora:
            self.ledger.run_on_files(table_checks(held.corpus))
        total = sum(len(held.corpus) * (3 if held.has_keys else 2) for held in self._corpora)
        total += manifest.counts.indexed_chunks
        with self._stage("rules", "rows", total, lambda: meter.work) as remark:
            self._check_parts(meter)
            self._check_index(meter)
            self.ledger.run(self._checks_of_counts())
            remark(f"{meter.work.done:,} rows")
        for held in self._corpora:
            if len(held.corpus) and not held.has_keys:
                self.ledger.notes.append(
                    f"{held.name}embeddings were not kept: keys and distances not checked"
                )

    def _check_parts(self, meter: Meter) -> None:
        """Every part by itself: documents first, which tell the rest what belongs together."""
        parts = [part for held in self._corpora for part in held.parts()]
        own = [part.part for part in self._corpora[0].parts()]
        self.ledger.run_on_files(
            Check(part.part.documents.path, [part.part.documents.path], run)
            for part in parts
            for run in [functools.partial(rules.check_documents, part)]
        )
        checks, later = [], []
        for part in parts:
            files = [part.part.documents.path, part.part.chunks.path]
            run = functools.partial(rules.check_chunks, part, meter)
            checks.append(Check(files[1], files, run))
            if part.held.has_keys:
                path = part.part.keys_file.path
                run = functools.partial(rules.check_embeddings, part, meter)
                checks.append(Check(path, [path], run))
                files.append(path)
            path = part.neighbors.path
            run = functools.partial(rules.check_neighbors, part, own, meter)
            later.append(Check(path, [*files, path], run))
        self.ledger.run(checks)
        self.ledger.run(later)
        keys = [entry.path for entry in self._database.manifest.tables.embeddings]
        if any(path in self.ledger.damaged for path in keys):
            self.ledger.notes.append("distances not checked: embeddings are damaged")
            return
        self.ledger.run(
            Check(path, [part.part.keys_file.path, path], run)
            for part in parts
            if part.held.has_keys
            for path in [part.neighbors.path]
            for run in [functools.partial(rules.check_distances, part)]
        )

    def _check_index(self, meter: Meter) -> None:
        """Every partition, and then all together."""
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
        # Faiss itself trusts what it searches.
        if len(self.ledger.problems) > before:
            self.ledger.damaged.update(files)

    def _checks_of_counts(self) -> Iterator[Check]:
        """The manifest's counts, and what lists documents across parts."""
        database, [home, *_] = self._database, self._corpora
        tables, tokenizer = database.manifest.tables, database.manifest.tokenizer_files
        yield Check(FILE, [], functools.partial(counting.check_manifest, database))
        run = functools.partial(counting.check_tokenizer, database)
        yield Check("tokenizer", [entry.path for entry in tokenizer], run)
        for held in self._corpora:
            own = held.corpus.tables
            paths = [entry.path for entry in own.dropped]
            yield Check(
                f"{held.name}dropped", paths, functools.partial(counting.check_dropped, held)
            )
            paths = [
                entry.path
                for entry in (*own.documents, *own.chunks, *own.embeddings, *own.neighbors)
            ]
            name = f"counts of {held.name or 'the database'}"
            yield Check(name, paths, functools.partial(counting.check_totals, held))
        paths = [entry.path for entry in (*tables.removed, *tables.documents)]
        yield Check("removed", paths, functools.partial(check_removed, home))
        paths = [entry.path for entry in tables.renumbered]
        yield Check("renumbered", paths, functools.partial(check_renumbered, home, self._history))

    def recompute(self, encoder: Encoder, share: float) -> None:
        """A sample, where every file that it touches is what was written."""
        if self.ledger.damaged:
            self.ledger.notes.append(
                f"nothing was computed again: {min(self.ledger.damaged)} is damaged"
            )
            return
        meter = Meter()
        chosen = [one for held in self._corpora for one in choose_documents(held, share)]
        total = sum(one.chunks for one in chosen)
        with self._stage("recompute", "chunks", total, lambda: meter.work) as remark:
            home = self._corpora[0]
            again = Recomputation(home, self._history, encoder, self._pool, meter)
            for one in chosen:
                path = one.part.neighbors.path
                self.ledger.run_here(Check(path, [], functools.partial(again.check, one)))
            self.ledger.notes += again.notes
            documents = sum(len(one.positions) for one in chosen)
            remark(f"{documents:,} documents, {meter.work.done:,} chunks")
