"""What a tokenizer loses of a text: chunks decode to their exact text only where it loses nothing."""

from __future__ import annotations

from retro_db.tokens.tokenizer import Tokenizer

# Each pair of texts differs in one thing; a tokenizer that gives both the same tokens loses it.
_PAIRS = {
    "upper case": ("Which Text", "which text"),
    "line ends and spaces": ("one\n\n    two", "one two"),
    "accents": ("na\u00efve caf\u00e9", "naive cafe"),
    "rare characters": ("\ua66e \U0001d54f", "\ua66f \U0001d54a"),
}


def losses(tokenizer: Tokenizer) -> list[str]:
    """Names what a tokenizer loses of texts, such as `upper case`.

    Args:
        tokenizer: The language model's tokenizer.
    """
    lost = []
    for name, texts in _PAIRS.items():
        try:
            first, second = tokenizer.encode(texts)
            is_lost = first.tolist() == second.tolist()
        except Exception:  # noqa: BLE001 - tokenizers raises no other of a character without a token
            is_lost = True
        if is_lost:
            lost.append(name)
    return lost
