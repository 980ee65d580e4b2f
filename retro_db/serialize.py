"""Dataclasses to JSON and back, strictly: a file with a wrong field is refused by the field's name."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class DecodeError(ValueError):
    """A value does not fit its dataclass; the message starts with the path of the field."""


def canonical(value: Any) -> bytes:
    """JSON bytes that depend on the value alone: sorted keys, no spaces, ASCII.

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


def from_json(cls: type[T], data: Any, where: str = "") -> T:
    """Builds a dataclass from parsed JSON, checking every field's presence and type.

    Args:
        cls: A dataclass whose fields are str, int, float, bool, None, lists, tuples, string-keyed
            dicts, or dataclasses of these.
        data: What `json.loads` returned.
        where: Path of `data` in its file, for error messages.

    Returns:
        The dataclass.

    Raises:
        DecodeError: A field is missing, unknown or of another type.
    """
    if not isinstance(data, dict):
        raise DecodeError(f"{where or 'top level'}: expected an object, found {_name(data)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
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


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
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
    if hint is float and type(value) is int:
        return float(value)
    _expect(hint, value, where)
    return value


def _expect(kind: type, value: Any, where: str) -> None:
    if type(value) is not kind:
        raise DecodeError(f"{where}: expected {kind.__name__}, found {_name(value)}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
