"""Dataclasses to JSON and back, strictly: the error for a wrong field names the field."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")

# Deepest nesting of values without a dataclass, which can still be copied and written.
_DEEPEST = 64
_PLAIN = (str, int, float, type(None))
# Most characters of a foreign name that a message shows.
_SHOWN = 100


class DecodeError(ValueError):
    """A value does not fit its dataclass; the message starts with the path of the field."""


def canonical(value: Any) -> bytes:
    """JSON bytes that depend only on the value: sorted keys, no spaces, ASCII.

    Args:
        value: Anything that `json` can write; NaN and infinities are refused.

    Raises:
        ValueError: A float is not finite.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def digest(value: Any) -> str:
    """The sha256 of a JSON value's canonical form, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def to_json(value: Any) -> dict[str, Any]:
    """A dataclass as plain dicts and lists."""
    return dataclasses.asdict(value)


def parse_json(raw: bytes) -> Any:
    """Parses JSON as strictly as it is written here, whoever wrote it.

    Args:
        raw: JSON text in UTF-8.

    Returns:
        Dicts, lists, strings, numbers, booleans and None.

    Raises:
        DecodeError: It is not UTF-8, not JSON, nested too deeply or too large for the memory, a key occurs
            twice in an object, or a number is not finite.
    """
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except (ValueError, RecursionError, MemoryError) as error:
        raise DecodeError(f"not valid JSON ({error or type(error).__name__})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise ValueError("a key occurs twice in an object")
    return unique


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Builds a dataclass from parsed JSON, checking every field's presence and type.

    Args:
        cls: A dataclass whose fields are str, int, float, bool, None, lists, tuples, string-keyed
            dicts, or dataclasses of these.
        data: Value that `json.loads` returned.
        where: Path of `data` in its file, for error messages.

    Returns:
        The dataclass.

    Raises:
        DecodeError: A field is missing, unknown or of another type, a whole number does not fit in 64
            bits, or a value without a type is nested too deeply.
    """
    if not isinstance(data, dict):
        raise DecodeError(f"{where or 'top level'}: expected an object, found {_name(data)}")
    hints, fields = _fields(cls)  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise DecodeError(f"{_join(where, unknown[0])}: unknown field")
    values = {}
    for name, field in fields.items():
        path = _join(where, name)
        if name in data:
            values[name] = _decode(hints[name], data[name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DecodeError(f"{path}: missing")
    return cls(**values)


@functools.cache
def _fields(cls: Any) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """Types and fields of a dataclass, by name."""
    return typing.get_type_hints(cls), {field.name: field for field in dataclasses.fields(cls)}


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        _expect_shallow(value, where)
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _decode(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if origin in (list, tuple):
        _expect(list, value, where)
        items = [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
        return origin(items)
    if origin is dict:
        _expect(dict, value, where)
        return {key: _decode(arguments[1], item, _join(where, key)) for key, item in value.items()}
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        raise DecodeError(f"{where}: a whole number of more than 64 bits")
    if hint is float and type(value) is int:
        return float(value)
    _expect(hint, value, where)
    return value


def _expect_shallow(value: Any, where: str) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        nested = [item for item in level if not isinstance(item, _PLAIN)]
        if not nested:
            return
        groups = [item.values() if isinstance(item, dict) else item for item in nested]
        level = [item for group in groups for item in group]
    raise DecodeError(f"{where}: nested deeper than {_DEEPEST} levels")


def _expect(kind: type, value: Any, where: str) -> None:
    if type(value) is not kind:
        raise DecodeError(f"{where}: expected {kind.__name__}, found {_name(value)}")


def _join(where: str, name: str) -> str:
    name = name[:_SHOWN]
    return f"{where}.{name}" if where else name


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
