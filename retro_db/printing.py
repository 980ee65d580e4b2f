"""Texts from anywhere, fit to be shown."""

from __future__ import annotations

import re

# Terminals obey the first two, and some the third; the others turn what is read around.
_OBEYED = (*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_NO_CHARACTERS = (0xFFFE, 0xFFFF)  # no XML may have them
_SHOWN = dict.fromkeys((*_OBEYED, *_NO_CHARACTERS), "\ufffd") | {ord("\t"): "\t", ord("\n"): " "}


def printable(text: str) -> str:
    """A text from anywhere as one line that is only shown: U+FFFD stands for what would be obeyed."""
    return text.translate(_SHOWN)


_GONE = "***"
# A name and a password, which may hold a slash where no port and path can be meant; for the web a token
# alone too. On other filesystems what is alone is part of the address: `abfs://container@account`.
_USER = re.compile(
    r"(?<=://)[^\s/?#@:]*:(?:[^\s/?#]*@|(?!\d{1,5}/)[^\s@\"']{1,512}@)"
    r"|(?<=http://)[^\s/?#]+@|(?<=https://)[^\s/?#]+@"
)
# `Expires` and its like are no secrets, but change with every signature: names must not.
_NAMES = (
    r"x-(?:amz|goog)-[\w.-]*"
    r"|[\w.-]{0,64}?(?:token|secret|passw(?:or)?d|passphrase|pwd|credential|signature|auth)[\w.-]{0,64}"
    r"|[\w.-]{0,64}?(?:key|keyid|key-id|key_id|accessid|sig)|key-pair-id|policy|expires|s[et]"
)
# Also of a URL that is itself the value of a parameter, and so percent-encoded.
_PARAMETER = re.compile(
    rf"((?:[?&;#]|%3F|%26)(?:{_NAMES})(?:=|%3D))(?:(?!%26|%23)[^\s&;#\"'<>])+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """A text in which URLs have no credentials any more.

    Gone are what stands before the host, and the values of query parameters that sign or authorize,
    such as `X-Amz-Signature`, `sig`, `token`, `AWSAccessKeyId`. What is redacted already stays as it is.

    Args:
        text: Any.

    Returns:
        The text with `***` in these places.
    """
    return _PARAMETER.sub(rf"\1{_GONE}", _USER.sub(f"{_GONE}@", text))
