"""Decompresses files member by member: what is sound is read on, what is damaged is measured."""

from __future__ import annotations

import bz2
import contextlib
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import zstandard

BY_NAME = {".zst": "zstd", ".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_MEMBERS = {
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bz2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}
# A frame of zstd without content, which may come first, and the size of what follows its header.
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_SKIPPABLE_HEADER = 8
MAGIC_BYTES = 10
BLOCK = 1 << 20
# Compressed bytes that are decompressed at a time: no format makes more than 256 MB of them.
_FEED = 1 << 13
_OUTPUT = 1 << 18
# A damaged member of fewer bytes is measured byte by byte.
_MEASURED_EXACTLY = 1 << 18
# Decompressed bytes of a member that wait in memory until its checksum is known; a larger member is
# looked through first, and read then.
_HELD = 1 << 25
# Lines of which most are like the first one are no noise.
_MOSTLY = 0.8
# Bytes of a line that are kept to look at its beginning and end.
_LINE = 1 << 20
# Bytes at the end of a file: the size of the last gzip member, which may differ by this share from what a
# damaged one gives, or the mark of xz.
_TRAILER, _DOUBT = 4, 0.25
# Beginnings of members that are tried behind damage.
_MOST_CANDIDATES = 1000
# `zstd --long=31` writes the largest window; reading it takes as much memory.
_LARGEST_WINDOW = 1 << 31
_ERRORS = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError)


def compression_of(name: str, beginning: bytes) -> str | None:
    """The compression of a file, by its name, or else by its first bytes.

    Args:
        name: Name of the file.
        beginning: First `MAGIC_BYTES` bytes of the file, or all of a shorter one.

    Returns:
        zstd, gzip, bz2, xz, or None for a plain file.
    """
    if by_name := BY_NAME.get(os.path.splitext(name)[1]):
        return by_name
    if _SKIPPABLE.match(beginning):
        return "zstd"
    return next((kind for kind, magic in _MEMBERS.items() if magic.match(beginning)), None)


@dataclass(frozen=True)
class Damage:
    """A stretch of a compressed file that cannot be read.

    Attributes:
        detail: What is wrong, and where.
        bytes: Compressed bytes of the stretch.
        lines: Ends of lines in what could be decompressed of it; it is not trusted otherwise.
        measured: Compressed bytes that held these lines.
        is_noise: Whether what followed these lines is noise, so that they are few.
    """

    detail: str
    bytes: int
    lines: int = 0
    measured: int = 0
    is_noise: bool = False


class Members(io.RawIOBase):
    """The decompressed content of a file, up to its end or to damage, behind which it may go on.

    A member is what one run of a compressor writes: a gzip member, a zstd frame, a stream of xz or bzip2.
    Its content is given once its checksum is known to be right; the content of a member that is cut off
    is given as far as it goes. Zero bytes between members and behind them are padding.

    Args:
        file: The compressed file, at its first byte or at the first byte of a member.
        kind: Its compression.
        is_trusted: Whether content is given before its checksum is known, as for reading a beginning.

    Attributes:
        damage: What ended the content, if damage did.
        sound: Compressed bytes of the content given so far.
    """

    damage: Damage | None = None
    sound = 0

    def __init__(self, file: io.BufferedReader, kind: str, *, is_trusted: bool = False) -> None:
        self._file = file
        self._kind = kind
        self._is_trusted = is_trusted
        self._position = self._end = file.tell()
        self._resumed_at: int | None = None
        self._blocks = self._contents()
        self._block = memoryview(b"")

    def readable(self) -> bool:
        """Whether it can be read: yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer as far as there is content in memory; 0 at the end and at damage."""
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count

    def resume(self) -> bool:
        """Goes on behind the damage; False if nothing is there that can be read."""
        self.damage = None
        if self._resumed_at is None:
            return False
        self._end, self._resumed_at = self._resumed_at, None
        self._blocks = self._contents()
        return True

    def _contents(self) -> Iterator[bytes]:
        """Blocks of the content from `_end` on; sets `damage` if that is why they end."""
        start = self._end
        while self._skip_padding():
            begin = self._end
            try:
                yield from self._decoded(begin) if self._is_trusted else self._checked(begin)
            except _CutOffError as error:
                last = begin + self._measure(begin).measured
                self.damage = Damage(str(error), self._position - last)
                self.sound += last - start
                return
            except _ERRORS as error:
                self.sound += begin - start
                self._skip_damage(begin, " ".join(str(error).split())[:300])
                return
        self.sound += self._end - start

    def _skip_padding(self) -> bool:
        """Moves `_end` to the next member, or to what should be one; False at the end of the file."""
        self._file.seek(self._end)
        block = self._file.read(BLOCK)
        while block:
            rest = block.lstrip(b"\0")
            self._end += len(block) - len(rest)
            if self._kind == "zstd" and _SKIPPABLE.match(rest):
                self._file.seek(self._end)
                header = self._file.read(_SKIPPABLE_HEADER)
                self._end += _SKIPPABLE_HEADER + int.from_bytes(header[4:], "little")
                self._file.seek(self._end)
            elif rest:
                return True
            block = self._file.read(BLOCK)
        return False

    def _checked(self, begin: int) -> Iterator[bytes]:
        """Content of the member at a place, as a whole or not at all, but for one that is cut off."""
        blocks: list[bytes] = []
        size, cut_off = 0, None
        try:
            for block in self._decoded(begin):
                size += len(block)
                if size <= _HELD:
                    blocks.append(block)
                else:
                    blocks.clear()
        except _CutOffError as error:
            if self._has_trailer(size):
                raise ValueError("damaged within, as its end is there") from error
            cut_off = error
        yield from blocks if size <= _HELD else self._decoded(begin)
        if cut_off:
            raise cut_off

    def _has_trailer(self, size: int) -> bool:
        """Whether the file ends as a whole member does, of about the size that was decompressed."""
        self._file.seek(-_TRAILER, os.SEEK_END)
        trailer = self._file.read(_TRAILER)
        if self._kind == "xz":
            return trailer.endswith(b"YZ")
        if self._kind == "gzip":
            stored = int.from_bytes(trailer, "little")
            return abs(stored - size % (1 << 32)) <= _DOUBT * size
        return False

    def _decoded(self, begin: int, feed: int = _FEED, output: int = _OUTPUT) -> Iterator[bytes]:
        """Content of the member at a place, unchecked; `_end` is behind it when it is complete."""
        self._file.seek(begin)
        self._position = begin
        decoder = _DECODERS[self._kind]()
        while not decoder.eof:
            data = self._file.read(feed)
            if not data:
                raise _CutOffError(f"cut off after {self._position:,} bytes")
            self._position += len(data)
            try:
                yield from _fed(decoder, data, output)
            except _ERRORS as error:
                if "not enough memory" in str(error).lower():
                    raise MemoryError(f"{self._kind}: {error}") from error
                raise
        self._end = self._position - len(decoder.unused_data)

    def _skip_damage(self, begin: int, detail: str) -> None:
        """Looks for the next sound member, and measures what is lost before it."""
        tried = self._position - begin
        size = self._file.seek(0, os.SEEK_END)
        self._resumed_at = None if self._is_trusted else self._next_sound(begin + 1)
        end = size if self._resumed_at is None else self._resumed_at
        place = f"{self._kind} at byte {begin:,}: {detail}"
        self.damage = replace(self._measure(begin, tried), detail=place, bytes=end - begin)

    def _next_sound(self, begin: int) -> int | None:
        """Where the next member begins that can be read whole."""
        candidates = 0
        magic = _MEMBERS[self._kind]
        while True:
            self._file.seek(begin)
            block = self._file.read(BLOCK)
            for match in magic.finditer(block):
                candidates += 1
                if candidates > _MOST_CANDIDATES:
                    return None
                if self._is_sound(begin + match.start()):
                    return begin + match.start()
            if len(block) < MAGIC_BYTES:
                return None
            begin += len(block) - MAGIC_BYTES + 1

    def _is_sound(self, begin: int) -> bool:
        try:
            for _ in self._decoded(begin):
                pass
        except _ERRORS:
            return False
        return True

    def _measure(self, begin: int, tried: int | None = None) -> Damage:
        """Lines in what can be decompressed of a damaged member, and the bytes that held them.

        Behind damage decompressors may go on with noise. The lines before that tell more then: those that
        begin and end like the first one.
        """
        position = self._position
        tried = position - begin if tried is None else tried
        feed, output = (1, 1 << 8) if tried <= _MEASURED_EXACTLY else (_FEED, _OUTPUT)
        lines, alike, last, rest, frame = 0, 0, begin, b"", b""
        before_noise = _Lines()
        with contextlib.suppress(*_ERRORS):
            for block in self._decoded(begin, feed, output):
                last = self._position if block else last
                *whole, rest = (rest[-_LINE:] + block).split(b"\n")
                for line in whole:
                    frame = frame or line[:1] + line[-1:]
                    lines += 1
                    alike += line[:1] + line[-1:] == frame
                    if alike == lines:
                        before_noise = _Lines(lines, last - begin)
        self._position = position
        is_noise = alike < _MOSTLY * lines
        if is_noise and before_noise.count:
            lines, last = before_noise.count, begin + before_noise.bytes
        return Damage("", 0, lines, last - begin, is_noise)


@dataclass(frozen=True)
class _Lines:
    """Ends of lines, and the compressed bytes that held them."""

    count: int = 0
    bytes: int = 0


class _CutOffError(EOFError):
    """The file ends within a member."""


def _fed(decoder: Any, data: bytes, output: int) -> Iterator[bytes]:
    """What a decompressor makes of some bytes, at most `output` bytes at a time where it can tell."""
    if not hasattr(decoder, "needs_input"):
        yield decoder.decompress(data)
        return
    yield decoder.decompress(data, output)
    while not decoder.eof and not decoder.needs_input:
        yield decoder.decompress(b"", output)


_DECODERS: dict[str, Callable[[], Any]] = {
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj(),
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}
