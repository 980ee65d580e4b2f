"""Screens documents: finds those too close to an evaluation text (paper, section 2.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.config import Config, LeakageConfig
from retro_db.corpus.documents import Content, Document, Reject
from retro_db.corpus.reading import read_shard
from retro_db.corpus.selection import LEAKAGE, Tally, select
from retro_db.corpus.sharding import Shard
from retro_db.corpus.verdicts import Verdict, write_verdicts
from retro_db.errors import CorpusError
from retro_db.screening.grams import Bands, jaccard
from retro_db.screening.signatures import SignatureFile, SignatureWriter, Signed, sign
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.tokens.tokenizer import Tokenizer

EVALUATION = "state/screen/evaluation.arrow"


@dataclass(frozen=True)
class ScreenedShard:
    """Files that the screening of a shard wrote.

    Attributes:
        verdicts: Table of the records to drop.
        signatures: Signatures of the other records; None if duplicates are not looked for.
        content: Hash (sha256) of the records that were read.
    """

    verdicts: TableEntry
    signatures: TableEntry | None
    content: str


class EvaluationSet:
    """The evaluation documents, with which texts are compared.

    Args:
        file: Signatures of the documents.
        similarity: Jaccard similarity from which a text is too close.
    """

    def __init__(self, file: SignatureFile, similarity: float) -> None:
        self._file = file
        self._similarity = similarity
        keys = file.keys.reshape(-1)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def closest(self, grams: np.ndarray, keys: np.ndarray) -> tuple[str, float] | None:
        """The evaluation document that a text is too close to.

        Args:
            grams: Grams of the text, uint64 [g].
            keys: Band keys of the text, uint64 [b].

        Returns:
            Id and similarity of the closest document, the first of several; None if none is too close.
        """
        lows = np.searchsorted(self._keys, keys, side="left")
        highs = np.searchsorted(self._keys, keys, side="right")
        spans = [self._order[low:high] for low, high in zip(lows, highs, strict=True) if low < high]
        best: tuple[str, float] | None = None
        for row in np.unique(np.concatenate(spans) // len(keys)) if spans else ():
            similarity = jaccard(grams, self._file.grams(row))
            if similarity >= self._similarity and (best is None or similarity > best[1]):
                best = (self._file.id(row), similarity)
        return best


def write_evaluation(
    shards: Sequence[Shard], settings: LeakageConfig, folder: Folder
) -> TableEntry:
    """Writes the signatures of all evaluation documents into one file.

    Args:
        shards: Shards of the evaluation texts.
        settings: Settings of the leakage filter: how texts are read and compared.
        folder: Folder of the database.

    Returns:
        The file of signatures.

    Raises:
        CorpusError: A record cannot be used, so that its text could leak.
    """
    bands = Bands.for_threshold(settings.jaccard)
    documents = (
        (number, document)
        for shard in shards
        for number, document in enumerate(_all_good(read_shard(shard, settings)))
    )
    return _write_signatures(sign(documents, _text, settings.ngram), bands, folder, EVALUATION)


def _text(document: Document) -> str:
    if document.text is None:
        raise CorpusError("leakage.format: evaluation texts cannot be tokens; give them as text")
    return document.text


def _all_good(records: Iterable[Document | Reject]) -> Iterator[Document]:
    for record in records:
        if isinstance(record, Reject):
            raise CorpusError(
                f"leakage.paths: {record}; mend the file, as text that cannot be read cannot be kept out"
            )
        yield record


def open_evaluation(folder: Folder, settings: LeakageConfig) -> EvaluationSet:
    """The evaluation documents that `write_evaluation` wrote.

    Args:
        folder: Folder of the database.
        settings: Settings of the leakage filter, as for `write_evaluation`.
    """
    return EvaluationSet(SignatureFile(folder.local(EVALUATION)), settings.jaccard)


def screen_shard(
    shard: Shard,
    config: Config,
    tokenizer: Tokenizer,
    evaluation: EvaluationSet | None,
    folder: Folder,
    report: Callable[[int], None],
) -> ScreenedShard:
    """Compares the documents of a shard with the evaluation texts, and signs the others.

    Args:
        shard: Shard to read.
        config: Configuration of the build.
        tokenizer: Tokenizer of the language model.
        evaluation: Evaluation documents that no document may be close to; None for none.
        folder: Folder of the database.
        report: Called with the number of bytes of the files read since the last call.

    Returns:
        The verdicts, and the signatures if `dedup` looks for duplicates.
    """
    content = Content()
    verdicts: list[Verdict] = []
    records = content.watch(read_shard(shard, config.source(shard.source), report))
    selected = select(records, shard, config, tokenizer, Tally())
    text_of = functools.partial(_text_or_decoded, tokenizer=tokenizer)
    batches = sign(selected, text_of, config.leakage.ngram)
    if evaluation is not None:
        bands = Bands.for_threshold(config.leakage.jaccard)
        batches = _unleaked(batches, evaluation, bands, verdicts)
    signatures = None
    if config.dedup.jaccard is not None:
        path = f"state/screen/signatures-{shard.number:07d}.arrow"
        bands = Bands.for_threshold(config.dedup.jaccard)
        signatures = _write_signatures(batches, bands, folder, path)
    else:
        for _ in batches:
            pass  # to the end, so that verdicts and content are complete
    written = write_verdicts(verdicts, shard.number, "screen", folder)
    return ScreenedShard(written, signatures, content.sha256)


def _text_or_decoded(document: Document, tokenizer: Tokenizer) -> str:
    if document.text is not None:
        return document.text
    return tokenizer.decode([document.tokens])[0]  # type: ignore[list-item]


def _unleaked(
    batches: Iterable[list[Signed]],
    evaluation: EvaluationSet,
    bands: Bands,
    verdicts: list[Verdict],
) -> Iterator[list[Signed]]:
    """Documents that are not close to an evaluation document; adds the verdicts on the others."""
    for batch in batches:
        unleaked = []
        keys = bands.keys([signed.grams for signed in batch])
        for signed, band_keys in zip(batch, keys, strict=True):
            if closest := evaluation.closest(signed.grams, band_keys):
                verdicts.append(Verdict(signed.number, LEAKAGE, *closest))
            else:
                unleaked.append(signed)
        yield unleaked


def _write_signatures(
    batches: Iterable[list[Signed]], bands: Bands, folder: Folder, path: str
) -> TableEntry:
    with folder.writing(path) as file:
        with SignatureWriter(file, bands) as writer:
            for batch in batches:
                writer.append(batch)
        return describe(file, path, writer.rows)
