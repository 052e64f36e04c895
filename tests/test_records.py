"""Records go through JSON and come back the same; what is damaged is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import pytest

from qaf_core.records import from_plain, to_plain


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    rank: int | tuple[int, int] | None = None
    colour: Colour | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    parts: tuple[Part, ...]
    span: tuple[float, float]
    shares: Mapping[str, float] = field(default_factory=dict)
    first: Part | None = None
    more: Mapping[str, Any] | None = None
    done: bool = False


WHOLE = Whole(
    parts=(Part(name="a", rank=3), Part(name="b", rank=(2, 4), colour=Colour.RED), Part(name="c")),
    span=(0.25, 2.0), shares={"x": 0.5}, first=Part(name="d"), more={"any": [1, {"b": None}]}, done=True,
)  # fmt: skip


@pytest.mark.parametrize("whole", [WHOLE, Whole(parts=(), span=(1.0, 2.0))])
def test_a_record_comes_back_the_same(whole: Whole) -> None:
    plain = to_plain(whole)
    text = json.dumps(plain)
    assert from_plain(Whole, json.loads(text)) == whole
    assert json.loads(text) == plain  # nothing but plain JSON types


def test_numbers_fields_and_keys_of_other_versions_are_taken() -> None:
    plain = {"parts": [], "span": [1, 2], "of_a_later_version": 3}
    assert from_plain(Whole, plain) == Whole(parts=(), span=(1.0, 2.0))


@pytest.mark.parametrize(
    "change",
    [
        {"parts": 3}, {"parts": [{}]}, {"parts": [{"name": 3}]}, {"span": [1.0]}, {"span": ["a", 2.0]},
        {"done": 1}, {"first": "d"}, {"shares": {"x": None}}, {"shares": []}, {"span": [True, 1.0]},
        {"parts": [{"name": "a", "rank": [1, 2, 3]}]}, {"parts": [{"name": "a", "colour": "blue"}]},
    ],
)  # fmt: skip
def test_what_is_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        from_plain(Whole, to_plain(replace(WHOLE)) | change)


def test_what_is_missing_is_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        from_plain(Whole, {"parts": []})
    with pytest.raises((TypeError, ValueError)):
        from_plain(Whole, None)
