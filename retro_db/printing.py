"""Texts from anywhere, made safe to print."""

from __future__ import annotations

import re

# Control characters: terminals obey the first two ranges, and some the third. The last two ranges reverse
# the direction of text.
_OBEYED = (*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_NO_CHARACTERS = (0xFFFE, 0xFFFF)  # not allowed in XML
_SHOWN = dict.fromkeys((*_OBEYED, *_NO_CHARACTERS), "\ufffd") | {ord("\t"): "\t", ord("\n"): " "}


def printable(text: str) -> str:
    """A text from anywhere as one line that is safe to print: U+FFFD replaces control characters."""
    return text.translate(_SHOWN)


_REDACTED = "***"
# A name and a password, which may have a slash unless a port and a path can be meant; for the web also a
# token alone. On other filesystems a name alone is part of the address: `abfs://container@account`.
_USER = re.compile(
    r"(?<=://)[^\s/?#@:]*:(?:[^\s/?#]*@|(?!\d{1,5}/)[^\s@\"']{1,512}@)"
    r"|(?<=http://)[^\s/?#]+@|(?<=https://)[^\s/?#]+@"
)
# `Expires` and the like are not secrets, but they change with every signature, and names must not.
_NAMES = (
    r"x-(?:amz|goog)-[\w.-]*"
    r"|[\w.-]{0,64}?(?:token|secret|passw(?:or)?d|passphrase|pwd|credential|signature|auth)[\w.-]{0,64}"
    r"|[\w.-]{0,64}?(?:key|keyid|key-id|key_id|accessid|sig)|key-pair-id|policy|expires|s[et]"
)
# Also matches in a URL that is the value of a parameter, and so is percent-encoded.
_PARAMETER = re.compile(
    rf"((?:[?&;#]|%3F|%26)(?:{_NAMES})(?:=|%3D))(?:(?!%26|%23)[^\s&;#\"'<>])+", re.IGNORECASE
)


def redacted(text: str) -> str:
    """A text without the credentials in its URLs.

    Replaced are the part before the host, and the values of query parameters that sign or authorize, such
    as `X-Amz-Signature`, `sig`, `token`, `AWSAccessKeyId`. Redacting a text again does not change it.

    Args:
        text: Any text.

    Returns:
        The text with `***` in these places.
    """
    return _PARAMETER.sub(rf"\1{_REDACTED}", _USER.sub(f"{_REDACTED}@", text))
