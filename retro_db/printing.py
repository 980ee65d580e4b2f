"""Texts from anywhere, fit to be shown."""

from __future__ import annotations

# Terminals obey the first two, and some the third; the others turn what is read around.
_OBEYED = (*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_NO_CHARACTERS = (0xFFFE, 0xFFFF)  # no XML may have them
_SHOWN = dict.fromkeys((*_OBEYED, *_NO_CHARACTERS), "\ufffd") | {ord("\t"): "\t", ord("\n"): " "}


def printable(text: str) -> str:
    """A text from anywhere as one line that is only shown: U+FFFD stands for what would be obeyed."""
    return text.translate(_SHOWN)
