"""Cuts long texts into segments that, tokenized separately, give the same tokens as the whole."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

# Characters of a segment, about; longer texts are tokenized in segments. That is faster too: the
# tokenizer's time and memory for one text grow faster than its length.
SEGMENT = 1 << 16
# Most bytes of text to tokenize at once, as each takes some 120 bytes of memory.
LONGEST_SEGMENT = 16_000_000

_CUT = re.compile(r"(?<=\S) (?=\S)")
_LOCAL_PRE_TOKENIZERS = {
    "BertPreTokenizer",
    "ByteLevel",
    "Digits",
    "Metaspace",
    "Punctuation",
    "Sequence",
    "Split",
    "Whitespace",
    "WhitespaceSplit",
}
# Parts of the patterns of GPT-2, GPT-4, Llama 3, Qwen and similar ones. Each matches a space only where it
# begins, or within white space: none reaches over a space between two other characters. None looks
# behind, and a lookahead sees one character.
_LETTER_OR_LESS = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOCAL_PARTS = {
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _CONTRACTION),
    *(r" ?\p{L}+", r"\p{L}+", _LETTER_OR_LESS + r"\p{L}+", _LETTER_OR_LESS + r"[\p{L}\p{M}]+"),
    *(f"{_LETTER_OR_LESS}{_UPPER}*{_LOWER}+{end}" for end in ("", f"{_CONTRACTION}?")),
    *(f"{_LETTER_OR_LESS}{_UPPER}+{_LOWER}*{end}" for end in ("", f"{_CONTRACTION}?")),
    *(r" ?\p{N}+", r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r"[0-9]", r"\d", r"\d+"),
    *(f" ?[^\\s\\p{{L}}\\p{{N}}]+{end}" for end in ("", r"[\r\n]*", r"[\r\n/]*")),
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+", r"\S+", r"\w+", r"[^\w\s]+"),
}
# One character of every kind that pre-tokenizers distinguish, white space last.
_CONTEXT = 3
_KINDS = "stAé1²'._-🐘中ش\u0301\u200d\n\t\u00a0 "


def is_cut_before_spaces(tokenizer: RustTokenizer) -> bool:
    """Whether a text may be cut before any single space between two other characters.

    It may if the pre-tokenizer always cuts there too. That is shown in three steps. The tokenizer has
    nothing that changes the text first: a normalizer, or added tokens with white space in them. Each
    part of the pre-tokenizer has a type, or a pattern, that does not reach over such a space. And for
    every context of one character of any kind on one side and up to two on the other, the whole gives
    the same pieces as its two halves.

    Args:
        tokenizer: Tokenizer that encodes special tokens as text.

    Returns:
        True if all of this holds; False if a cut might change tokens.
    """
    definition = json.loads(tokenizer.to_str())
    if definition["normalizer"] is not None or definition["model"].get("dropout"):
        return False
    if any(_reaches_over_space(token) for token in definition["added_tokens"]):
        return False
    if definition["pre_tokenizer"] is None or not _is_local(definition["pre_tokenizer"]):
        return False
    return _cuts_every_context(tokenizer)


def segments(text: str) -> Iterator[str]:
    """Cuts a text into segments of about `SEGMENT` characters, before single spaces between others."""
    start = 0
    while len(text) - start > SEGMENT and (cut := _CUT.search(text, start + SEGMENT)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _reaches_over_space(token: dict[str, Any]) -> bool:
    if token["special"]:
        return False
    return token["lstrip"] or token["rstrip"] or token["single_word"] or " " in token["content"]


def _is_local(part: dict[str, Any]) -> bool:
    if part["type"] not in _LOCAL_PRE_TOKENIZERS:
        return False
    if part["type"] == "Split":
        return set(_alternatives(part["pattern"].get("Regex", ""))) <= _LOCAL_PARTS
    return all(_is_local(inner) for inner in part.get("pretokenizers", ()))


def _alternatives(pattern: str) -> list[str]:
    """The alternatives of a regular expression: its parts between bars outside of parentheses."""
    parts, depth = [""], 0
    for character in pattern:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _cuts_every_context(tokenizer: RustTokenizer) -> bool:
    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    contexts = ["".join(kinds) for n in (1, 2) for kinds in itertools.product(_KINDS, repeat=n)]
    before = {text: pieces(text) for text in contexts if not text[-1].isspace()}
    after = {text: pieces(" " + text) for text in contexts if not text[0].isspace()}
    return all(
        pieces(f"{left} {right}") == left_pieces + right_pieces
        for left, left_pieces in before.items()
        for right, right_pieces in after.items()
        if len(left) + len(right) <= _CONTEXT
    )
