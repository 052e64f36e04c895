"""Frozen dataclasses as plain JSON types, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

LARGEST_WHOLE = 2**1000  # larger ones are no floats
T = TypeVar("T")


class Record:
    """A frozen dataclass that crosses processes or is kept in files."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types: a key for each field."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def to_plain(value: Any) -> Any:
    """A record, or anything made of records, as plain JSON types: a key for each field."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(part) for part in value]
    return value.value if isinstance(value, Enum) else value


def from_plain(kind: type[T], value: Any) -> T:
    """What ``to_plain`` made of a record; unknown keys are passed over, fields with a default may be missing.

    Raises:
        ValueError, TypeError: If something is missing or of another kind.
    """
    record: T = _read(kind, value)
    return record


@cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any) -> Any:
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise TypeError(f"{value!r:.60} is no object")
        known: dict[str, Any] = _type_hints(kind)  # type: ignore[arg-type]  # a class, which is hashable
        values = {field.name: value[field.name] for field in fields(kind) if field.name in value}
        make: Any = kind
        return make(**{name: _read(known[name], part) for name, part in values.items()})
    if origin is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_read(part, item) for part, item in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _read(parts[1], part) for key, part in value.items()}
    if not isinstance(origin, type) or parts:  # one of several kinds
        return _read_one_of(parts, value)
    if issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) is int and abs(value) < LARGEST_WHOLE:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r:.60} is no {kind.__name__}")
    return value


def _read_one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        try:
            return _read(kind, value)
        except (TypeError, ValueError):
            continue
    raise TypeError(f"{value!r:.60} is none of {', '.join(map(str, kinds))}")
