"""The language model's tokenizer: text to ids and back, special tokens being plain text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro_db.errors import DamagedFileError, ModelError
from retro_db.store.folder import Folder

END_OF_DOCUMENT = "<|endoftext|>"
FOLDER = "tokenizer"
_SETTINGS = "tokenizer_config.json"


class Tokenizer:
    """A fast HuggingFace tokenizer, used so that no text is lost and none is invented.

    Special tokens in a text are encoded as the characters that they are, and none is added.

    Args:
        definition: The text of a tokenizer.json.
        settings: What tokenizer_config.json holds, which names the padding token.
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
        """Loads a tokenizer.json, a folder with one, or a hub name of a fast tokenizer.

        Raises:
            ModelError: There is no such tokenizer, or it is not a fast one.
        """
        file = Path(os.path.expanduser(path))
        if file.is_dir():
            file = file / "tokenizer.json"
        if file.exists():
            return cls._from_file(file)
        if path.startswith((".", "/", "~")) or path.endswith((".json", "/")):
            raise ModelError(f"tokenizer.path: {file} does not exist; correct the path")
        return cls._from_hub(path)

    @classmethod
    def _from_file(cls, file: Path) -> Tokenizer:
        settings = file.with_name(_SETTINGS)
        try:
            content = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
            return cls(file.read_text("utf-8"), content)
        except Exception as error:
            raise ModelError(f"tokenizer.path: {file} is no tokenizer: {error}") from error

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
        settings = {"pad_token": loaded.pad_token} if loaded.pad_token else {}
        return cls(rust.to_str(), settings)

    @classmethod
    def of_database(cls, folder: Folder) -> Tokenizer:
        """The tokenizer that a database keeps.

        Raises:
            DamagedFileError: Its files are missing or no tokenizer.
        """
        try:
            definition = folder.read(f"{FOLDER}/tokenizer.json").decode("utf-8")
            return cls(definition, json.loads(folder.read(f"{FOLDER}/{_SETTINGS}")))
        except Exception as error:
            raise DamagedFileError(
                f"{folder.url}: {FOLDER} holds no tokenizer ({error}); restore it"
            ) from error

    @property
    def files(self) -> dict[str, bytes]:
        """What a database keeps: names and contents, loadable by transformers as a folder."""
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        return {
            "tokenizer.json": self.definition.encode("utf-8"),
            _SETTINGS: json.dumps(settings, indent=1, sort_keys=True).encode("utf-8"),
        }

    @property
    def sha256(self) -> str:
        """Of its definition."""
        return hashlib.sha256(self.definition.encode("utf-8")).hexdigest()

    @property
    def token_type(self) -> np.dtype:
        """uint16 where every id fits, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, as arrays of `token_type`."""
        encodings = self._rust.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.token_type) for encoding in encodings]

    def decode(self, rows: Iterable[np.ndarray]) -> list[str]:
        """Text of each row of ids (without padding); characters cut at an end become U+FFFD."""
        return self._rust.decode_batch([row.tolist() for row in rows], skip_special_tokens=False)

    def _largest_id(self) -> int:
        vocabulary = self._rust.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise ModelError("tokenizer: its vocabulary is empty")
        return max(vocabulary.values())

    def _pad_id(self, padding: dict[str, Any] | None) -> int:
        """The tokenizer's own padding id, else 0: `length` decides what is padding."""
        token = self.settings.get("pad_token")
        if isinstance(token, dict):
            token = token.get("content")
        if token is not None and (own := self._rust.token_to_id(token)) is not None:
            return own
        return int(padding["pad_id"]) if padding else 0


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE, which encodes any text and gives it back exactly.

    Args:
        texts: What it learns its merges from; the result depends on the texts, not on threads.
        vocab_size: Entries at most, the 256 bytes and `<|endoftext|>` included.

    Returns:
        The tokenizer; 0 is the id of `<|endoftext|>`.
    """
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(rust.to_str(), {"eos_token": END_OF_DOCUMENT})
