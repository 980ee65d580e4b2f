"""Tokenizers of the `tokenizers` library, made to encode every text as text."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence, Set
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import pre_tokenizers

from retro_db.tokens.segments import SEGMENT, is_cut_before_spaces, segments

_BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
_BYTE_PIECE_IN_TEXT = {
    "type": "Split",
    "pattern": {"Regex": "<(?=0x[0-9A-F]{2}>)"},
    "behavior": "Isolated",
    "invert": False,
}


class FastModel:
    """A definition of the `tokenizers` library, without truncation, padding and special tokens in texts.

    Args:
        definition: Text of a tokenizer.json.
        named: Tokens that the settings name: they are special, as those are that the definition marks.
    """

    file_name = "tokenizer.json"

    def __init__(self, definition: str, named: Set[str]) -> None:
        self.content = definition.encode("utf-8")
        self._named = RustTokenizer.from_str(definition)
        parsed = json.loads(self._named.to_str())  # with the fields that older definitions lack
        self.padding: dict[str, Any] | None = self._named.padding
        # The vocabulary is copied for every encoding of a byte-level model: once is enough.
        self._vocabulary = self._named.get_vocab(with_added_tokens=True)
        self.special = _special_tokens(parsed, named & self._vocabulary.keys())
        as_text = _as_text(parsed, self.special)
        self._rust = RustTokenizer.from_str(json.dumps(as_text)) if as_text else self._named
        self._rust.encode_special_tokens = True
        self._rust.no_truncation()
        self._rust.no_padding()
        self._renumbered = self._ids_of_added(parsed) if as_text else {}
        self.is_complete = _is_complete(parsed)
        unknown = _unknown_token(parsed)
        self._unknown = None if unknown is None else self._vocabulary.get(unknown)
        self._counts_lengths = not any(
            parsed["model"].get(name)
            for name in ("continuing_subword_prefix", "end_of_word_suffix")
        )

    @property
    def vocab_size(self) -> int:
        """The largest id plus 1."""
        return max(self._vocabulary.values(), default=-1) + 1

    def id_of(self, token: str) -> int | None:
        """The id of a token; None if there is none of this name."""
        return self._vocabulary.get(token)

    def encode(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Ids of each text, one after the other as they are asked for."""
        encodings = self._rust.encode_batch_fast(texts, add_special_tokens=False)
        for encoding in encodings:
            ids: list[int] = encoding.ids
            yield [self._renumbered.get(i, i) for i in ids] if self._renumbered else ids

    def decode(self, rows: Sequence[list[int]]) -> list[str]:
        """Text of each row of ids."""
        return self._named.decode_batch(rows, skip_special_tokens=False)

    def segments(self, text: str) -> Iterator[str]:
        """Cuts a text into segments that, encoded separately, give its ids; short texts are one."""
        return segments(text) if len(text) > SEGMENT and self._can_cut else iter([text])

    def without_token(self, text: str, ids: np.ndarray) -> int:
        """Characters of a text for which there is no token.

        Args:
            text: The text.
            ids: Its ids.
        """
        if self._unknown is None:
            return sum(text.count(character) for character in set(text) if self._lacks(character))
        if not (ids == self._unknown).any():
            return 0
        encoding = self._rust.encode(text, add_special_tokens=False)
        return sum(
            end - start
            for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if number == self._unknown
        )

    @functools.cached_property
    def _can_cut(self) -> bool:
        return is_cut_before_spaces(self._rust)

    @functools.lru_cache(maxsize=1 << 17)  # noqa: B019 - lives as long as the process
    def _lacks(self, character: str) -> bool:
        """Whether a character, once the text is prepared, has parts that no token stands for."""
        normalizer, pre_tokenizer = self._rust.normalizer, self._rust.pre_tokenizer
        normalized = normalizer.normalize_str(character) if normalizer else character
        pieces = (
            pre_tokenizer.pre_tokenize_str(normalized) if pre_tokenizer else [(normalized, None)]
        )
        tokens = self._rust.encode(character, add_special_tokens=False).tokens
        if self._counts_lengths:
            return sum(map(len, tokens)) < sum(len(piece) for piece, _ in pieces)
        return bool(pieces) and not tokens

    def _ids_of_added(self, parsed: dict[str, Any]) -> dict[int, int]:
        """Ids that tokens added to the model get here, with those that they have in the definition."""
        pairs = (
            (self._rust.token_to_id(token["content"]), self._vocabulary[token["content"]])
            for token in parsed["added_tokens"]
            if token["content"] not in self.special
        )
        return {own: defined for own, defined in pairs if own is not None and own != defined}


def settled(definition: str) -> tuple[str, list[str]]:
    """A definition without what would give a text other ids each time.

    Args:
        definition: Text of a tokenizer.json.

    Returns:
        The definition, and what was turned off, in words.
    """
    parsed = json.loads(definition)
    notes = []
    model = parsed.get("model", {})
    if model.get("dropout"):
        notes.append(f"dropout of {model['dropout']:g} turned off")
        model["dropout"] = None
        definition = json.dumps(parsed, ensure_ascii=False)
    notes += [f"{name} turned off" for name in ("truncation", "padding") if parsed.get(name)]
    return definition, notes


def _special_tokens(parsed: dict[str, Any], named: Set[str]) -> set[str]:
    """Tokens that no text may become: marked ones, and named ones that are no single character."""
    special = {token["content"] for token in parsed["added_tokens"] if token["special"]}
    ordinary = {token["content"] for token in parsed["added_tokens"]} - special
    return special | {token for token in named - ordinary if len(token) > 1}


def _unknown_token(parsed: dict[str, Any]) -> str | None:
    model = parsed["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")


def _as_text(parsed: dict[str, Any], special: Set[str]) -> dict[str, Any] | None:
    """The definition with a model that makes no special token of a text; None if it is one already."""
    model = parsed["model"]
    if model["type"] == "Unigram":
        changed = _unigram_as_text(model, special)
        is_literal = model.get("byte_fallback") and any(
            piece in _BYTE_PIECES for piece, _ in model["vocab"]
        )
        if changed is None and not is_literal:
            return None
        parsed = parsed | {"model": changed or model}
        if is_literal:
            steps = [parsed["pre_tokenizer"]] if parsed["pre_tokenizer"] else []
            steps.append(_BYTE_PIECE_IN_TEXT)
            parsed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        return parsed
    is_merged = model["type"] == "BPE" and not model.get("ignore_merges")
    reachable = special & model["vocab"].keys()
    if is_merged:
        reachable &= {"".join(_pair(merge)) for merge in model["merges"]}
    if not reachable:
        return None
    # Text has no such names: pre-tokenizers and bytes leave no noncharacters with spaces between.
    names = {token: f"\U0010ffff {number}" for number, token in enumerate(sorted(reachable))}
    changed = model | {"vocab": {names.get(k, k): v for k, v in model["vocab"].items()}}
    if model.get("unk_token") in names:
        changed["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        changed["merges"] = [
            merge
            for merge in model["merges"]
            if not {*_pair(merge), "".join(_pair(merge))} & names.keys()
        ]
    return parsed | {"model": changed}


def _unigram_as_text(model: dict[str, Any], special: Set[str]) -> dict[str, Any] | None:
    unknown = model["unk_id"]
    vocabulary = [
        ["", score] if piece in special or number == unknown else [piece, score]
        for number, (piece, score) in enumerate(model["vocab"])
    ]
    return model | {"vocab": vocabulary} if vocabulary != model["vocab"] else None


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _is_complete(parsed: dict[str, Any]) -> bool:
    """Whether every text has tokens: the vocabulary has every byte."""
    model = parsed["model"]
    pieces = (
        {piece for piece, _ in model["vocab"]} if model["type"] == "Unigram" else model["vocab"]
    )
    if model.get("byte_fallback") and all(piece in pieces for piece in _BYTE_PIECES):
        return True
    steps = [parsed["normalizer"], parsed["pre_tokenizer"]]
    steps += [inner for step in steps if step for inner in step.get("pretokenizers", ())]
    steps += [inner for step in steps if step for inner in step.get("normalizers", ())]
    is_of_bytes = any(step and step["type"] == "ByteLevel" for step in steps)
    is_by_characters = model["type"] in ("BPE", "Unigram")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return is_of_bytes and is_by_characters and all(byte in pieces for byte in alphabet)
