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


def counted(count: int, noun: str) -> str:
    """A number of things in words, such as `1 file` or `1,200 files`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


_REDACTED = "***"
# A name and a password, which may hold anything; a port and a path with an @ look the same, and go too. For
# the web also a token alone; on other filesystems a name alone is part of the address:
# `abfs://container@account`. All counts are bounded, so that no text takes long.
_USER = re.compile(
    r"(?<=://)[^\s/?#@:]{0,512}:(?:[^\s/?#]{0,512}@|\S{1,512}@)"
    r"|(?<=http://)[^\s/?#]{1,1024}@|(?<=https://)[^\s/?#]{1,1024}@",
    re.IGNORECASE,
)
# The end of a scheme, an address, and the parameters behind it, but for what may follow a URL in a sentence.
_QUERY = re.compile(
    r"([A-Za-z]{0,5})(://[^\s?\"'<>]{0,2048}\?)([^\s\"'<>]*?)([).,:;\]}]*(?=[\s\"'<>]|$))"
)
_WEB = ("http", "https")
# Parameters whose values are shown, if they look as such values do. Any other one may sign or authorize, now
# or in a service to come; what signs also changes with every signature, and names made of URLs must not.
_SHOWN_PARAMETERS = {
    *("config", "dataset", "download", "file", "filename", "format", "generation", "id", "index"),
    *("lang", "language", "length", "limit", "name", "offset", "page", "page_size", "part", "path"),
    *("per_page", "raw", "rev", "revision", "shard", "size", "split", "start", "type", "version"),
    "versionid",
}
_HARMLESS = re.compile(r"(?:[\w.,:/-]|%2[0CF]){0,64}", re.IGNORECASE)
_NAME = re.compile(r"[\w.~%-]+")
# In text that is no URL: names that are known to sign or authorize.
_NAMES = (
    r"x-(?:amz|goog)-[\w.-]*"
    r"|[\w.-]{0,64}?(?:token|secret|passw(?:or)?d|passphrase|pwd|credential|signature|auth|hmac)[\w.-]{0,64}"
    r"|[\w.-]{0,64}?(?:key|keyid|key-id|key_id|accessid|sig)|key-pair-id|policy|expires|s[et]"
    r"|code|sign|hash|md5|jwt|pass|sid|hdne?[ast]+|jsessionid"
)
# Also matches in a URL that is the value of a parameter, and so is percent-encoded.
_NAMED = re.compile(
    rf"((?:[?&;#]|%3F|%26)(?:{_NAMES})(?:=|%3D))(?:(?!%26|%23)[^\s&;#\"'<>])+", re.IGNORECASE
)
# And in a part of a path.
_IN_PATH = re.compile(r"([/~](?:hdne?[ast]+|hmac)=)[^\s&;#\"'<>/]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """A text without the credentials in its URLs.

    Replaced are the part before the host, and the values of all query parameters but those that are known to
    say nothing, such as `page`. Redacting a text again does not change it.

    Args:
        text: Any text.

    Returns:
        The text with `***` in these places.
    """
    text = _QUERY.sub(_redacted_query, _USER.sub(f"{_REDACTED}@", text))
    for named in (_NAMED, _IN_PATH):
        text = named.sub(rf"\1{_REDACTED}", text)
    return text


def _redacted_query(url: re.Match[str]) -> str:
    """A URL whose parameters tell no secrets."""
    scheme, address, parameters, behind = url.groups()
    pieces = re.split(r"([&;#])", parameters)
    is_web = scheme.lower() in _WEB
    # Every second one divides two others.
    pieces[::2] = (_redacted_parameter(piece, is_web=is_web) for piece in pieces[::2])
    return f"{scheme}{address}{''.join(pieces)}{behind}"


def _redacted_parameter(piece: str, *, is_web: bool) -> str:
    name, equals, value = piece.partition("=")
    is_known = name.lower() in _SHOWN_PARAMETERS
    if not is_web and not (equals and _NAME.fullmatch(name)):
        return piece  # a wildcard, behind which a folder may be named year=2020
    if not equals:
        return piece if is_known or not name else _REDACTED
    if not _NAME.fullmatch(name):
        return _REDACTED
    return piece if is_known and _HARMLESS.fullmatch(value) else f"{name}={_REDACTED}"
