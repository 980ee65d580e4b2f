"""The language model's tokenizer: text to ids and back, with special tokens as plain text."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retro_db.errors import DamagedFileError, ModelError
from retro_db.store.folder import FileEntry, Folder
from retro_db.tokens.fast_model import FastModel, settled
from retro_db.tokens.segments import LONGEST_SEGMENT
from retro_db.tokens.sentencepiece_model import SentencePieceModel, read_model
from retro_db.tokens.trials import TEXTS, Trial

FOLDER = "tokenizer"
_SETTINGS = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
# Settings that name a special token, and the one that names the file of a SentencePiece model.
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
_MODEL_FILE = "vocab_file"
_SEGMENTS_AT_ONCE = 32


def token_type_for(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every id.

    Args:
        vocab_size: Number of ids, all of which are below it.
    """
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class Tokenizer:
    """A fast HuggingFace tokenizer or a SentencePiece model that neither loses text nor adds any.

    Special tokens in a text are encoded as their characters, and no special tokens are added.

    Args:
        definition: Text of a tokenizer.json, or the bytes of a SentencePiece model.
        settings: Content of a tokenizer_config.json, which names the special tokens.
        notes: What of the tokenizer was turned off, in words.

    Attributes:
        definition: As given.
        settings: As given.
        notes: As given.
        vocab_size: The largest id plus 1.
        pad_id: Id that fills chunks.
        is_complete: Whether every text has tokens.
    """

    def __init__(
        self, definition: str | bytes, settings: dict[str, Any], notes: Sequence[str] = ()
    ) -> None:
        self.definition = definition
        self.settings = settings
        self.notes = list(notes)
        self._model: FastModel | SentencePieceModel
        if isinstance(definition, bytes):
            self._model = SentencePieceModel(definition)
        else:
            named = {token for name in _NAMES if (token := self._name(name)) is not None}
            self._model = FastModel(definition, named)
        self.vocab_size = self._model.vocab_size
        if not self.vocab_size:
            raise ModelError("tokenizer: its vocabulary is empty")
        self.is_complete = self._model.is_complete
        self.pad_id = self._pad_id(self._model.padding)

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": self.definition, "settings": self.settings, "notes": self.notes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def load(cls, path: str) -> Tokenizer:
        """Loads a tokenizer.json, a SentencePiece model, a folder with one, or a hub name.

        Args:
            path: Path of a file or folder, or name on the hub. Code from the hub is never run.

        Raises:
            ModelError: The tokenizer does not exist, cannot be read, or cannot encode every text.
        """
        tokenizer = cls._loaded(path)
        try:
            tokenizer.encode(list(TEXTS.values()))
        except Exception as error:
            raise ModelError(
                f"tokenizer.path: {path} cannot encode every text ({error}): it has neither a token for "
                "unknown characters nor one for every byte; give it one"
            ) from error
        return tokenizer

    @classmethod
    def _loaded(cls, path: str) -> Tokenizer:
        file = Path(os.path.expanduser(path))
        if file.is_dir():
            names = ["tokenizer.json", *sorted(model.name for model in file.glob("*.model"))]
            file = next((file / name for name in names if (file / name).exists()), file / names[0])
        if file.suffix == ".model" and file.exists():
            model = read_model(file)
            return cls(model.content, model.settings | {_MODEL_FILE: model.file_name})
        if file.exists():
            return cls._from_file(file)
        if path.startswith((".", "/", "~")) and not Path(os.path.expanduser(path)).is_dir():
            raise ModelError(f"tokenizer.path: {file} does not exist; correct the path")
        if path.endswith((".json", ".model")):
            raise ModelError(f"tokenizer.path: {file} does not exist; correct the path")
        return cls._from_hub(os.path.expanduser(path))

    @classmethod
    def _from_file(cls, file: Path) -> Tokenizer:
        try:
            content: dict[str, Any] = {}
            # transformers, too, prefers what tokenizer_config.json says.
            for name in (_SPECIAL_TOKENS, _SETTINGS):
                if (beside := file.with_name(name)).exists():
                    content |= json.loads(beside.read_text("utf-8"))
            definition, notes = settled(file.read_text("utf-8"))
            return cls(definition, content, notes)
        except Exception as error:
            raise ModelError(f"tokenizer.path: {file} is not a tokenizer: {error}") from error

    @classmethod
    def _from_hub(cls, name: str) -> Tokenizer:
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
            definition, notes = settled(loaded.backend_tokenizer.to_str())
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            folder = Path(name)
            holds = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else ""
            what = (
                f"{name} holds no tokenizer.json and no SentencePiece .model, but {holds or 'nothing'}"
                if folder.is_dir()
                else f"{name} is neither a folder with a tokenizer.json nor a fast tokenizer on the hub"
            )
            raise ModelError(f"tokenizer.path: {what} ({reason})") from error
        settings = {name: getattr(loaded, name) for name in _NAMES if getattr(loaded, name, None)}
        return cls(definition, settings, notes)

    @classmethod
    def of_database(cls, folder: Folder, listed: Sequence[FileEntry] = ()) -> Tokenizer:
        """The tokenizer that a database keeps.

        Args:
            folder: Folder of the database.
            listed: Entries of the tokenizer's files in the manifest; empty before it is written.

        Raises:
            DamagedFileError: A file is missing, has another size, or does not hold a tokenizer.
        """
        for entry in listed:
            with folder.holding(entry):
                pass
        try:
            settings = json.loads(folder.read(f"{FOLDER}/{_SETTINGS}"))
            if _MODEL_FILE in settings:
                return cls(folder.read(f"{FOLDER}/{SentencePieceModel.file_name}"), settings)
            return cls(folder.read(f"{FOLDER}/{FastModel.file_name}").decode("utf-8"), settings)
        except Exception as error:
            raise DamagedFileError(
                f"{folder.url}: {FOLDER} does not hold a tokenizer ({error}); restore it"
            ) from error

    @property
    def file(self) -> str:
        """Path in a database of the file that holds the definition."""
        return f"{FOLDER}/{self._model.file_name}"

    @property
    def files(self) -> dict[str, bytes]:
        """Names and contents of the files that a database keeps; transformers loads a tokenizer.json's."""
        settings = dict(self.settings)
        if isinstance(self._model, FastModel):
            settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
            settings.pop(_MODEL_FILE, None)
        return {
            self._model.file_name: self._model.content,
            _SETTINGS: json.dumps(settings, indent=1, sort_keys=True).encode("utf-8"),
        }

    @property
    def sha256(self) -> str:
        """Hash of the definition."""
        return hashlib.sha256(self._model.content).hexdigest()

    @property
    def end_id(self) -> int | None:
        """The id that ends documents in corpora stored as tokens; None if the settings do not name it."""
        return self._named_id("eos_token")

    @property
    def token_type(self) -> np.dtype:
        """Type that ids are stored as."""
        return token_type_for(self.vocab_size)

    def encode(self, texts: Sequence[str], lacking: list[int] | None = None) -> list[np.ndarray]:
        """Ids of each text, as arrays of `token_type`; long texts are encoded in segments.

        Args:
            texts: Texts for which `can_encode` is true.
            lacking: List to which the number of each text's characters is added for which there is no
                token; None if nobody asks.
        """
        segmented = [list(self._model.segments(text)) for text in texts]
        pieces = list(itertools.chain.from_iterable(segmented))
        encoded = [np.array(ids, dtype=self.token_type) for ids in self._model.encode(pieces)]
        if lacking is not None:
            counts = iter(self._lacking(pieces, encoded))
            lacking += [sum(itertools.islice(counts, len(own))) for own in segmented]
        ids = iter(encoded)
        return [
            next(ids) if len(own) == 1 else np.concatenate(list(itertools.islice(ids, len(own))))
            for own in segmented
        ]

    def encode_long(self, text: str, lacking: list[int] | None = None) -> Iterator[np.ndarray]:
        """Ids of one long text, a few segments at a time; together they equal the whole text's ids.

        Args:
            text: Text for which `can_encode` is true.
            lacking: As for `encode`; every few segments add their number.

        Returns:
            Arrays of `token_type` that together are the text's ids.
        """
        remaining = self._model.segments(text)
        while group := list(itertools.islice(remaining, _SEGMENTS_AT_ONCE)):
            ids = [np.array(row, dtype=self.token_type) for row in self._model.encode(group)]
            if lacking is not None:
                lacking += self._lacking(group, ids)
            yield np.concatenate(ids)

    def _lacking(self, texts: Sequence[str], ids: Sequence[np.ndarray]) -> list[int]:
        if self.is_complete:
            return [0] * len(texts)
        return [self._model.without_token(*pair) for pair in zip(texts, ids, strict=True)]

    def can_encode(self, text: str) -> bool:
        """Whether a text can be tokenized in bounded memory: whole, or in segments if it is long."""
        if 4 * len(text) <= LONGEST_SEGMENT:
            return True
        return all(
            4 * len(segment) <= LONGEST_SEGMENT or len(segment.encode("utf-8")) <= LONGEST_SEGMENT
            for segment in self._model.segments(text)
        )

    def decode(self, rows: Iterable[np.ndarray]) -> list[str]:
        """Text of each row of ids, without padding; characters cut at either end become U+FFFD."""
        return self._model.decode([row.tolist() for row in rows])

    def tried(self) -> Trial:
        """What becomes of texts of many kinds, and of the special tokens as texts."""
        special = " ".join(sorted(self._model.special))
        texts = TEXTS | ({"its special tokens": special} if special else {})
        lacking: list[int] = []
        ids = self.encode(list(texts.values()), lacking)
        decoded = self.decode(ids)
        trial = Trial(len(texts))
        for name, text, given, lacks in zip(texts, texts.values(), decoded, lacking, strict=True):
            if lacks:
                trial.lacking.append(name)
            elif given != text:
                trial.changed.append(name)
        return trial

    def _pad_id(self, padding: dict[str, Any] | None) -> int:
        """The tokenizer's padding id, or else 0: a chunk's `length`, not this id, marks its padding."""
        pad_id = self._named_id("pad_token")
        if pad_id is not None:
            return pad_id
        return int(padding["pad_id"]) if padding else 0

    def _name(self, setting: str) -> str | None:
        token = self.settings.get(setting)
        return token.get("content") if isinstance(token, dict) else token

    def _named_id(self, setting: str) -> int | None:
        token = self._name(setting)
        return None if token is None else self._model.id_of(token)
