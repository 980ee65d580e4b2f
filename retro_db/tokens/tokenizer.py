"""The language model's tokenizer: text to ids and back, with special tokens as plain text."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from retro_db.errors import DamagedFileError, ModelError
from retro_db.store.folder import FileEntry, Folder
from retro_db.tokens.segments import LONGEST_SEGMENT, SEGMENT, is_cut_before_spaces, segments
from retro_db.tokens.sentencepiece_model import convert_model

FOLDER = "tokenizer"
_SETTINGS = "tokenizer_config.json"
_SEGMENTS_AT_ONCE = 32


def token_type_for(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every id.

    Args:
        vocab_size: Number of ids, all of which are below it.
    """
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class Tokenizer:
    """A fast HuggingFace tokenizer that neither loses text nor adds any.

    Special tokens in a text are encoded as their characters, and no special tokens are added.

    Args:
        definition: Text of a tokenizer.json.
        settings: Content of a tokenizer_config.json, which names the padding token.
    """

    def __init__(self, definition: str, settings: dict[str, Any]) -> None:
        self.definition = definition
        self.settings = settings
        self._rust = RustTokenizer.from_str(definition)
        self._rust.encode_special_tokens = True
        self._rust.no_truncation()
        padding = self._rust.padding
        self._rust.no_padding()
        self.vocab_size = self._largest_id() + 1
        self.pad_id = self._pad_id(padding)

    def __getstate__(self) -> dict[str, Any]:
        return {"definition": self.definition, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def load(cls, path: str) -> Tokenizer:
        """Loads a tokenizer.json, a SentencePiece model, a folder with one, or a hub name.

        Args:
            path: Path of a file or folder, or name on the hub. Code from the hub is never run.

        Raises:
            ModelError: The tokenizer does not exist, or is not a fast one.
        """
        file = Path(os.path.expanduser(path))
        if file.is_dir():
            names = ["tokenizer.json", *sorted(model.name for model in file.glob("*.model"))]
            file = next((file / name for name in names if (file / name).exists()), file / names[0])
        if file.suffix == ".model" and file.exists():
            return cls(*convert_model(file))
        if file.exists():
            return cls._from_file(file)
        if path.startswith((".", "/", "~")) or path.endswith((".json", ".model", "/")):
            raise ModelError(f"tokenizer.path: {file} does not exist; correct the path")
        return cls._from_hub(path)

    @classmethod
    def _from_file(cls, file: Path) -> Tokenizer:
        settings = file.with_name(_SETTINGS)
        try:
            content = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
            return cls(file.read_text("utf-8"), content)
        except Exception as error:
            raise ModelError(f"tokenizer.path: {file} is not a tokenizer: {error}") from error

    @classmethod
    def _from_hub(cls, name: str) -> Tokenizer:
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
            rust = loaded.backend_tokenizer
        except (OSError, ValueError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"tokenizer.path: {name} is neither a folder with a tokenizer.json nor a fast "
                f"tokenizer on the hub ({reason})"
            ) from error
        names = ("pad_token", "eos_token")
        settings = {name: getattr(loaded, name) for name in names if getattr(loaded, name)}
        return cls(rust.to_str(), settings)

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
            definition = folder.read(f"{FOLDER}/tokenizer.json").decode("utf-8")
            return cls(definition, json.loads(folder.read(f"{FOLDER}/{_SETTINGS}")))
        except Exception as error:
            raise DamagedFileError(
                f"{folder.url}: {FOLDER} does not hold a tokenizer ({error}); restore it"
            ) from error

    @property
    def files(self) -> dict[str, bytes]:
        """Names and contents of the files that a database keeps; transformers loads them as a folder."""
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        return {
            "tokenizer.json": self.definition.encode("utf-8"),
            _SETTINGS: json.dumps(settings, indent=1, sort_keys=True).encode("utf-8"),
        }

    @property
    def sha256(self) -> str:
        """Hash of the definition."""
        return hashlib.sha256(self.definition.encode("utf-8")).hexdigest()

    @property
    def end_id(self) -> int | None:
        """The id that ends documents in corpora stored as tokens; None if the settings do not name it."""
        return self._named_id("eos_token")

    @property
    def token_type(self) -> np.dtype:
        """Type that ids are stored as."""
        return token_type_for(self.vocab_size)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, as arrays of `token_type`; long texts are encoded in segments."""
        segmented = [list(self._segments(text)) for text in texts]
        encodings = self._rust.encode_batch_fast(
            list(itertools.chain.from_iterable(segmented)), add_special_tokens=False
        )
        ids = (np.array(encoding.ids, dtype=self.token_type) for encoding in encodings)
        return [
            next(ids)
            if len(pieces) == 1
            else np.concatenate(list(itertools.islice(ids, len(pieces))))
            for pieces in segmented
        ]

    def encode_long(self, text: str) -> Iterator[np.ndarray]:
        """Ids of one long text, a few segments at a time; together they equal the whole text's ids.

        Args:
            text: Text for which `can_encode` is true.

        Returns:
            Arrays of `token_type` that together are the text's ids.
        """
        remaining = self._segments(text)
        while group := list(itertools.islice(remaining, _SEGMENTS_AT_ONCE)):
            yield np.concatenate(self.encode(group))

    def can_encode(self, text: str) -> bool:
        """Whether a text can be tokenized in bounded memory: whole, or in segments if it is long."""
        if 4 * len(text) <= LONGEST_SEGMENT:
            return True
        return all(
            4 * len(segment) <= LONGEST_SEGMENT or len(segment.encode("utf-8")) <= LONGEST_SEGMENT
            for segment in self._segments(text)
        )

    def _segments(self, text: str) -> Iterator[str]:
        return segments(text) if len(text) > SEGMENT and self._can_cut else iter([text])

    @functools.cached_property
    def _can_cut(self) -> bool:
        return is_cut_before_spaces(self._rust)

    def decode(self, rows: Iterable[np.ndarray]) -> list[str]:
        """Text of each row of ids, without padding; characters cut at either end become U+FFFD."""
        return self._rust.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)

    def _largest_id(self) -> int:
        vocabulary = self._rust.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ModelError("tokenizer: its vocabulary is empty")
        return max(vocabulary.values())

    def _pad_id(self, padding: dict[str, Any] | None) -> int:
        """The tokenizer's padding id, or else 0: a chunk's `length`, not this id, marks its padding."""
        pad_id = self._named_id("pad_token")
        if pad_id is not None:
            return pad_id
        return int(padding["pad_id"]) if padding else 0

    def _named_id(self, setting: str) -> int | None:
        token = self.settings.get(setting)
        if isinstance(token, dict):
            token = token.get("content")
        return None if token is None else self._rust.token_to_id(token)
