"""Texts of many kinds, which show what a tokenizer loses before a build relies on it."""

from __future__ import annotations

from dataclasses import dataclass, field

TEXTS = {
    "English": "The quick brown fox jumps over the lazy dog.",
    "capitals": "NASA and iPhone, McDonald, straße, ŒUVRE",
    "punctuation": "a, b; c: (d) [e] {f} <g> \"h\" 'i' - j_k/l\\m | n & o % p # q @ r * s + t = u ~ v ^ w",
    "digits": "0 12 345 6789 3.14159 -17 1e-5",
    "white space": "two  spaces,\ta tab,\na line\r\n\r\nand  an end ",
    "code": "def f(x):\n    if x > 1:\n        return x ** 2  # comment\n",
    "Latin with marks": "naïve café, Ångström, Łódź, señor, čeština, Nước ấm",
    "combining marks": "Nu\u031bo\u031b\u0301c a\u0302\u0301m, e\u0301, n\u0303, \u1112\u1161\u11ab",
    "Greek": "Ελλάδα και θάλασσα",
    "Cyrillic": "Москва и Київ",
    "Armenian and Georgian": "Հայաստան საქართველო",
    "Hebrew": "שלום עולם",
    "Arabic": "مرحبا بالعالم",
    "Devanagari": "नमस्ते दुनिया",
    "Bengali and Tamil": "বাংলা தமிழ்",
    "Thai": "สวัสดีชาวโลก",
    "Amharic": "ሰላም ለዓለም",
    "Han": "北京 東京 漢字",
    "kana": "ひらがな カタカナ ﾊﾝｶｸｶﾞ",
    "Hangul": "한국어 서울",
    "symbols": "→ ∑ ≤ € £ © ™ ½ ² ﬁ Ⅻ \uff11\uff12",
    "emoji": "🐘 🎉 👩\u200d🚀 👍🏽 🇫🇷",
    "controls": "a\x00b\x01c\x7fd\u200be\u202ef\ufeffg\ufffd",
    "beyond the basic plane": "\U0001d4b3 𐍈 𠀀",
}

# Names of texts that are listed.
_NAMED = 8


@dataclass
class Trial:
    """What became of the texts.

    Attributes:
        texts: Number of texts.
        lacking: Names of those with characters for which there is no token.
        changed: Names of the others that do not come back as they were.
    """

    texts: int
    lacking: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        back = self.texts - len(self.lacking) - len(self.changed)
        parts = [f"{back} of {self.texts} kinds of text come back exactly"]
        if self.lacking:
            parts.append(f"some characters have no token: {_listed(self.lacking)}")
        if self.changed:
            parts.append(f"changed: {_listed(self.changed)}")
        return "; ".join(parts)


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} others" if more > 0 else "")
