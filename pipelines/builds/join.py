"""The join: the stages that find every chunk's neighbors, in rounds and waves.

In a round, queries visit all partitions that hold one of their lists, wave after wave, so that what is on
its way stays within bounds. All chunks go through the first round; those that found fewer than k neighbors
go round again, through twice the lists, and what they find then stands for what they found before.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from retro_db.join.at_home import HomeResult
from retro_db.join.setting import JoinSetting
from retro_db.join.span_routing import RoutedSpan, Routing
from retro_db.join.spans import Span, cut_spans, of_whole_parts
from retro_db.join.spatial_order import partition_waves
from retro_db.manifest.parts import Part
from retro_db.store.folder import FileEntry
from retro_db.store.records import StageRecords
from retro_db.store.serialize import digest, from_json
from retro_db.store.slices import SlicedFile

from ..engine.context import Build
from ..engine.jobs import Placement, Stage, Task, fingerprint
from ..engine.resume import standing
from ..stages.home import HomeJob, RoutedChunks
from ..stages.neighbors import (
    VERSION,
    GatheredParts,
    NeighborsJob,
    NeighborsTable,
)
from ..stages.order import OrderedLists, order_stage
from ..stages.route import Removed, RouteJob, route_stage, span_contents
from ..stages.short import ShortJob, ShortSpan
from ..stages.tune import BuiltIndex
from ..stages.visit import VisitJob, VisitResult

# Slices of one exchange: spans, or partitions, times partitions.
_MOST_SLICES = 10_000_000
_VERSION = 1


@dataclass(frozen=True)
class Searched:
    """What is searched: the index, the parts whose chunks are in it, and how the tables look.

    Attributes:
        parts: All parts of the database.
        index: Index of their embeddings.
        parameters: Parameters of the contracts' types: token_type, chunk_tokens, dimension.
        named: Sources whose records name their documents.
        removed: Documents whose chunks are neither queries nor neighbors; None if none was removed.
    """

    parts: list[Part]
    index: BuiltIndex
    parameters: dict[str, str | int]
    named: list[str]
    removed: Removed | None = None

    def namesakes(self, *, of_named: bool) -> list[str]:
        """Sources whose documents a query document must not find if they have its id.

        Args:
            of_named: Whether the records of the query corpus name their documents. Otherwise there are no
                namesakes: ids made from offsets in files match by coincidence alone.
        """
        return self.named if of_named else []


@dataclass
class Join:
    """Finds neighbors in a database, of its own chunks and of query corpora.

    Args:
        build: The build of the database.
        searched: What is searched.
        joins_itself: Whether all chunks of the database are queries too, and their routes serve as keys.
    """

    build: Build
    searched: Searched
    joins_itself: bool = field(kw_only=True)

    def neighbors(
        self, build: Build, parts: list[Part], *, namesakes: list[str] | None = None
    ) -> NeighborsTable:
        """Finds the neighbors of every chunk of some parts.

        Args:
            build: The build, of the database or of a query corpus.
            parts: Parts whose chunks are the queries, their files as the database sees them.
            namesakes: For a query corpus, sources of the database whose documents are skipped if a query's
                document has their id; None if the parts are the database's own.
        """
        return _Queries(self, build, parts, namesakes).complete()

    def setting(self, *, by_name: bool) -> JoinSetting:
        """What the tasks agree on.

        Args:
            by_name: Whether the queries are those of a query corpus.
        """
        config = self.build.config
        return JoinSetting(
            dimension=int(self.searched.parameters["dimension"]),
            nprobe=self.searched.index.measured.join.nprobe,
            k=config.neighbors.k,
            by_name=by_name,
            passes_over_copies=config.neighbors.drop_duplicates,
            memory=int(config.index.memory),
            products=config.neighbors.products,
        )

    @functools.cached_property
    def order(self) -> OrderedLists:
        """The order of the lists, and the partitions."""
        most_rows = self.setting(by_name=False).most_rows
        return order_stage(self.build, self.searched.index, most_rows)

    @functools.cached_property
    def keys(self) -> RoutedChunks:
        """The database's chunks by partition, with all lists that they visit if they are queries too."""
        setting = self.setting(by_name=False)
        if not self.joins_itself:
            setting = replace(setting, nprobe=1)
        routed = self.route(self.build, self.searched.parts, setting, self.searched.named)
        return RoutedChunks(routed, setting.nprobe)

    def route(
        self,
        build: Build,
        parts: list[Part],
        setting: JoinSetting,
        named: list[str],
        only: dict[int, FileEntry] | None = None,
    ) -> list[RoutedSpan]:
        """Routes the chunks of parts.

        Args:
            build: The build, of the database or of a query corpus.
            parts: The parts.
            setting: What the join agrees on; it names the lists of a chunk.
            named: Sources whose records name their documents.
            only: By the number of a gathering span, the ids of its chunks that are routed; None for all.
        """
        searched = self.searched
        template = searched.index.template.file
        removed = None if setting.by_name else searched.removed
        routing = Routing(
            home=self.build.home,
            parameters=searched.parameters,
            named=named,
            are_queries_alone=setting.by_name,
            nprobe=setting.nprobe,
        )
        spans: list[tuple[Span, FileEntry | None]]
        if only is None:
            least = self._least_rows(parts)
            spans = [(span, None) for span in cut_spans(parts, least, setting.most_rows)]
        else:
            gathered = self.gathered(parts)
            spans = [(span, only[span.number]) for span in gathered if span.number in only]
        placement = Placement.in_memory(setting.memory)
        job = RouteJob(
            build.folder,
            self.build.home,
            self.build.folder,
            template,
            routing,
            removed,
            setting,
            build.engine.share(len(spans), placement),
        )
        decides: dict[str, object] = {
            "order": self.order.file.sha256,
            "train": template.sha256,
            "nprobe": routing.nprobe,
            "named": named,
            "removed": removed and removed.sha256,
            "neighbors.drop_duplicates": setting.passes_over_copies,
        }
        return route_stage(build, job, spans, decides)

    def gathered(self, parts: list[Part]) -> list[Span]:
        """The spans whose neighbors are gathered at a time."""
        least = self._least_rows(parts)
        most = max(least, self.setting(by_name=False).most_gathered_rows)
        return cut_spans(parts, least, most)

    def _least_rows(self, parts: Sequence[Part]) -> int:
        """Chunks of a span, so that spans times partitions stay few."""
        chunks = sum(part.rows for part in self.searched.parts)
        setting = self.setting(by_name=False)
        partitions = setting.partitions_for(chunks, self.build.config.neighbors.partitions)
        return sum(part.rows for part in parts) * partitions // _MOST_SLICES


@dataclass(frozen=True)
class _Turn:
    """One round of some queries through the partitions.

    Attributes:
        setting: What its tasks agree on; later rounds have names of their own.
        number: Number of the round, from 1 on.
        keys: The keys by partition, with the lists of a chunk in their files.
        queries: The queries by partition; None if they are the keys.
        identity: Hash of what decides its results.
    """

    setting: JoinSetting
    number: int
    keys: RoutedChunks
    queries: RoutedChunks | None
    identity: str

    @property
    def routed(self) -> list[RoutedSpan]:
        """The queries by partition."""
        return (self.queries or self.keys).spans

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Queries of each partition: int64 [partitions]."""
        return np.sum([span.rows_of_partitions for span in self.routed], axis=0)

    @functools.cached_property
    def visits(self) -> np.ndarray:
        """Visits of each partition's queries to others: int64 [partitions]."""
        return np.sum([span.visits_of_partitions for span in self.routed], axis=0)

    def in_wave(self, wave: int, waves: int) -> JoinSetting:
        """The setting of one of its waves, whose files have names of their own if there are several."""
        turn = f"{self.setting.turn}-wave{wave + 1}" if waves > 1 else self.setting.turn
        return replace(self.setting, turn=turn)


@dataclass
class _Queries:
    """The chunks whose neighbors are looked for.

    Args:
        join: The join.
        build: The build, of the database or of a query corpus.
        parts: Parts of the chunks.
        namesakes: For a query corpus, sources whose documents of the same id are skipped; else None.
    """

    join: Join
    build: Build
    parts: list[Part]
    namesakes: list[str] | None

    @functools.cached_property
    def _setting(self) -> JoinSetting:
        return self.join.setting(by_name=self.namesakes is not None)

    @functools.cached_property
    def _spans(self) -> list[Span]:
        return self.join.gathered(self.parts)

    @property
    def _placement(self) -> Placement:
        return Placement.in_memory(self._setting.memory)

    def complete(self) -> NeighborsTable:
        """Runs what is left of all stages."""
        stage = self._neighbors_stage([])
        # What its records depend on is known before anything is joined.
        state = standing(self.build.folder, stage)
        if not state.is_complete:
            self.build.action.foresee(self.build, state)
            stage = self._neighbors_stage(self._joined())
        written = [part for result in self.build.run(stage) for part in result.parts]
        return NeighborsTable(
            [part.file.below(self.build.place) for part in written],
            sum(part.short_rows for part in written),
        )

    def _neighbors_stage(self, rounds: list[list[SlicedFile]]) -> Stage[GatheredParts]:
        job = NeighborsJob(self.build.folder, self.join.build.home, rounds, self._setting)
        searched = self.join.searched
        all_spans = self.join.gathered(searched.parts)
        removed = searched.removed
        decides = self.build.config.settings(
            "neighbors.k", "neighbors.max_nprobe", "neighbors.drop_duplicates"
        ) | {
            "train": searched.index.template.file.sha256,
            "nprobe": self._setting.nprobe,
            "embed": digest([span_contents(span) for span in all_spans]),
            "queries": self.namesakes,
            "removed": removed and removed.sha256,
        }
        tasks = [
            Task(
                spans[0].name,
                fingerprint(VERSION, decides | {"chunk": [span_contents(span) for span in spans]}),
                spans,
            )
            for spans in of_whole_parts(self._spans)
        ]
        total = sum(span.rows for span in self._spans)
        return Stage(job, tasks, GatheredParts, "chunks", total, self._placement)

    def _joined(self) -> list[list[SlicedFile]]:
        """Joins in rounds; returns each round's files of neighbors, with a slice for each span."""
        lists = self.join.searched.index.lists
        limit = min(self.build.config.neighbors.max_nprobe or lists, lists)
        turn = self._first_turn()
        near, unbounded = self._round(turn)
        rounds = [near]
        while unbounded and turn.setting.nprobe < limit:
            only = self._short(rounds, turn)
            if not only:
                break
            nprobe = min(2 * turn.setting.nprobe, limit)
            turn = self._turn(turn.number + 1, nprobe, only)
            near, unbounded = self._round(turn)
            rounds.append(near)
        return rounds

    def _first_turn(self) -> _Turn:
        if self.namesakes is None and self.join.joins_itself:
            keys = self.join.keys
            return _Turn(self._setting, 1, keys, None, self._identity(self._setting, keys, keys))
        return self._turn(1, self._setting.nprobe)

    def _turn(self, number: int, nprobe: int, only: dict[int, FileEntry] | None = None) -> _Turn:
        """Routes the queries of a round."""
        keys = self.join.keys
        turn = f"-round{number}" if number > 1 else ""
        setting = routes = replace(self._setting, nprobe=nprobe, turn=turn)
        named = [self.build.query] if self.namesakes else []
        if self.namesakes is None:
            named = self.join.searched.named
            # The routes of the keys lie in the same folder.
            routes = replace(setting, turn=turn or "-queries")
        routed = self.join.route(self.build, self.parts, routes, named, only)
        queries = RoutedChunks(routed, setting.nprobe)
        return _Turn(setting, number, keys, queries, self._identity(setting, keys, queries))

    def _identity(self, setting: JoinSetting, keys: RoutedChunks, queries: RoutedChunks) -> str:
        files = [[span.routed.file.sha256 for span in chunks.spans] for chunks in (keys, queries)]
        starts = [span.first_id for span in self._spans]
        copies = setting.passes_over_copies
        return digest([files, starts, setting.nprobe, setting.k, setting.by_name, copies])

    def _round(self, turn: _Turn) -> tuple[list[SlicedFile], int]:
        """Joins all waves; returns files of neighbors, and the number of queries unbounded at home."""
        scratch = self.build.config.neighbors.scratch
        waves = partition_waves(
            (turn.visits * turn.setting.visit_bytes).tolist(), scratch and int(scratch)
        )
        near: list[SlicedFile] = []
        unbounded = 0
        for number, wave in enumerate(waves):
            setting = turn.in_wave(number, len(waves))
            homes, visits = self._wave(turn, setting, wave)
            near += [file for home in homes for file in home.near]
            near += [file for visit in visits for file in visit.near]
            unbounded += sum(home.unbounded for home in homes)
        return near, unbounded

    def _wave(
        self, turn: _Turn, setting: JoinSetting, wave: range
    ) -> tuple[list[HomeResult], list[VisitResult]]:
        homes = self._home_stage(turn, setting, wave)
        if self.join.order.partitions == 1:
            return self.build.run(homes), []
        # Visits are removed once they are joined: then records say what came of the queries at home.
        recorded = self._recorded(homes)
        visits = self._visit_stage(turn, setting, wave, recorded or [])
        if recorded is None or not standing(self.build.folder, visits).is_complete:
            recorded = self.build.run(homes)
            visits = self._visit_stage(turn, setting, wave, recorded)
        results = self.build.run(visits)
        self.build.action.discard(self.build.folder, f"state/join/visits{setting.turn}")
        return recorded, results

    def _recorded(self, stage: Stage[HomeResult]) -> list[HomeResult] | None:
        """What the records say of all tasks, if what they found remains; visits may be gone."""
        records = StageRecords(self.build.folder, stage.name).load()
        results = []
        for task in stage.tasks:
            record = records.get(task.name)
            if record is None or record.depends != task.depends:
                return None
            results.append(from_json(HomeResult, record.result, task.name))
        near = [file.file for result in results for file in result.near]
        return None if self.build.folder.missing(near) else results

    def _home_stage(self, turn: _Turn, setting: JoinSetting, wave: range) -> Stage[HomeResult]:
        partitions = [partition for partition in wave if turn.rows[partition]]
        job = HomeJob(**self._of_partitions(turn, setting, len(partitions)), queries=turn.queries)
        tasks = [
            Task(
                f"partition-{partition:05d}",
                fingerprint(_VERSION, {"route": [turn.identity, partition]}),
                partition,
            )
            for partition in partitions
        ]
        total = int(turn.rows[wave.start : wave.stop].sum())
        return Stage(job, tasks, HomeResult, "chunks", total, self._placement)

    def _visit_stage(
        self, turn: _Turn, setting: JoinSetting, wave: range, homes: list[HomeResult]
    ) -> Stage[VisitResult]:
        partitions = self.join.order.partitions
        job = VisitJob(**self._of_partitions(turn, setting, partitions), homes=homes)
        tasks = [
            Task(
                f"partition-{partition:05d}",
                fingerprint(_VERSION, {"route": [turn.identity, partition, wave.start, wave.stop]}),
                partition,
            )
            for partition in range(partitions)
        ]
        total = int(turn.visits[wave.start : wave.stop].sum())
        return Stage(job, tasks, VisitResult, "visits", total, self._placement)

    def _of_partitions(self, turn: _Turn, setting: JoinSetting, tasks: int) -> dict[str, Any]:
        return {
            "folder": self.build.folder,
            "ordered": self.join.build.folder,
            "keys": turn.keys,
            "starts": [span.first_id for span in self._spans],
            "setting": setting,
            "cores": self.build.engine.share(tasks, self._placement),
        }

    def _short(self, rounds: list[list[SlicedFile]], turn: _Turn) -> dict[int, FileEntry]:
        """Files of the chunks with fewer than k neighbors, by the number of the span."""
        removed = None if turn.setting.by_name else self.join.searched.removed
        job = ShortJob(self.build.folder, self.join.build.home, rounds, removed, turn.setting)
        tasks = [
            Task(span.name, fingerprint(_VERSION, {"route": turn.identity}), span)
            for span in self._spans
        ]
        total = sum(span.rows for span in self._spans)
        spans = self.build.run(Stage(job, tasks, ShortSpan, "chunks", total, self._placement))
        pairs = zip(self._spans, spans, strict=True)
        return {span.number: short.file for span, short in pairs if short.file}
