"""Which documents are left out for their content: too close to an evaluation text (paper, section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retro_db.config import Config, LeakageConfig
from retro_db.corpus.documents import Content, Document, Reject
from retro_db.corpus.planning import Shard
from retro_db.corpus.reading import read_shard
from retro_db.corpus.selection import LEAKAGE, Tally, select
from retro_db.corpus.verdicts import Verdict, write_verdicts
from retro_db.errors import CorpusError
from retro_db.screening.grams import Bands, jaccard
from retro_db.screening.signatures import SignatureFile, SignatureWriter, Signed, sign
from retro_db.store.folder import Folder, TableEntry, describe
from retro_db.tokens.tokenizer import Tokenizer

EVALUATION = "state/screen/evaluation.arrow"


@dataclass(frozen=True)
class ScreenedShard:
    """What the screening of a shard wrote.

    Attributes:
        verdicts: Table of the records that are left out.
        signatures: Of those that are not, where duplicates are wanted.
        content: The sha256 of what was read.
    """

    verdicts: TableEntry
    signatures: TableEntry | None
    content: str


class EvaluationSet:
    """The evaluation documents, to be compared with any text.

    Args:
        file: Their signatures.
        similarity: From which a text is too close.
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
            grams: Of the text, uint64 [g].
            keys: Of its bands, uint64 [b].

        Returns:
            Id and similarity of the closest one, the first of several; None where none is too close.
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
        shards: Of the evaluation texts.
        settings: How they are read and compared.
        folder: The database.

    Returns:
        The file.

    Raises:
        CorpusError: A record cannot be used: what is not compared would leak.
    """
    bands = Bands.for_threshold(settings.jaccard)
    documents = (
        (number, document)
        for shard in shards
        for number, document in enumerate(_all_good(read_shard(shard, settings)))
    )
    with folder.writing(EVALUATION) as file:
        with SignatureWriter(file, bands) as writer:
            for batch in sign(documents, _text, settings.ngram):
                writer.append(batch)
        return describe(file, EVALUATION, writer.rows)


def _text(document: Document) -> str:
    if document.text is None:
        raise CorpusError("leakage.format: evaluation texts cannot be tokens; give them as text")
    return document.text


def _all_good(records: Iterable[Document | Reject]) -> Iterator[Document]:
    for record in records:
        if isinstance(record, Reject):
            raise CorpusError(
                f"leakage.paths: {record}; mend the file, as what cannot be read cannot be kept out"
            )
        yield record


def open_evaluation(folder: Folder, settings: LeakageConfig) -> EvaluationSet:
    """The evaluation documents that `write_evaluation` wrote.

    Args:
        folder: The database.
        settings: The same.
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
        shard: What to read.
        config: Of the build.
        tokenizer: Of the language model.
        evaluation: What no document may be close to.
        folder: The database.
        report: Told, now and again, how many more bytes of the files are read.

    Returns:
        The verdicts, and the signatures if duplicates are to be found.
    """
    source = next(source for source in config.corpus if source.name == shard.source)
    content = Content()
    records = content.watch(read_shard(shard, source, report))
    selected = select(records, shard, config, tokenizer, Tally())
    threshold = config.dedup.jaccard
    path = f"state/screen/signatures-{shard.number:07d}.arrow"
    verdicts: list[Verdict] = []

    def text_of(document: Document) -> str:
        if document.text is not None:
            return document.text
        return tokenizer.decode([document.tokens])[0]  # type: ignore[list-item]

    def unleaked() -> Iterator[list[Signed]]:
        bands = Bands.for_threshold(config.leakage.jaccard)
        for batch in sign(selected, text_of, config.leakage.ngram):
            if evaluation is None:
                yield batch
                continue
            keys = bands.keys([signed.grams for signed in batch])
            found = [
                evaluation.closest(signed.grams, own)
                for signed, own in zip(batch, keys, strict=True)
            ]
            verdicts.extend(
                Verdict(signed.number, LEAKAGE, *close)
                for signed, close in zip(batch, found, strict=True)
                if close
            )
            yield [signed for signed, close in zip(batch, found, strict=True) if not close]

    if threshold is None:
        for _ in unleaked():
            pass
        found = write_verdicts(verdicts, shard.number, "screen", folder)
        return ScreenedShard(found, None, content.sha256)
    with folder.writing(path) as file:
        with SignatureWriter(file, Bands.for_threshold(threshold)) as writer:
            for batch in unleaked():
                writer.append(batch)
        signatures = describe(file, path, writer.rows)
    found = write_verdicts(verdicts, shard.number, "screen", folder)
    return ScreenedShard(found, signatures, content.sha256)
