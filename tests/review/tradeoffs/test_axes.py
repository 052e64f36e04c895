"""Targets are read as people write them."""

from __future__ import annotations

import pytest

from qaf_core.errors import QafError
from qaf_core.review.tradeoffs.axes import AXES, axis_label, axis_text, box_target, passes, read_target
from qaf_core.review.tradeoffs.points import RunPoint

BOX = [("value", True, 0.94), ("size_bytes", False, 8e4), ("latency_ms", False, 5)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("≥ 94 %, ≤ 80 kB, ≤ 5 ms", BOX),
        ("94%; 80 KB; 5ms", BOX),
        ("<= 2 MB deployed, < 20 MB memory", [("deployed_bytes", False, 2e6), ("memory_bytes", False, 2e7)]),
        ("loss ≤ 1 pp and energy 2 mJ", [("drop", False, 0.01), ("energy_joules", False, 2e-3)]),
        ("> 3 GBOPs", [("bops", True, 3e9)]),
        ("94 % 以上、80 kB 以下", [("value", True, 0.94), ("size_bytes", False, 8e4)]),
        ("５００ µs", [("latency_ms", False, 0.5)]),
        (" ", []),
    ],
)  # fmt: skip
def test_a_target_is_read(text: str, told: list[tuple[str, bool, float]]) -> None:
    found = [(each.axis, each.at_least, each.limit) for each in read_target(text)]
    assert [row[:2] for row in found] == [row[:2] for row in told]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in told])


@pytest.mark.parametrize("text", ["small", "5", "≤ 5 parsecs", "94 %, fast"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(QafError, match="cannot be read"):
        read_target(text)


def test_who_passes() -> None:
    point = RunPoint(title="", method="joint", value=0.95, low=0.9, high=1, size_bytes=7e4, bops=None)
    assert passes(point, read_target("94 %, 80 kB")) is True
    assert passes(point, read_target("94 %, 60 kB, 5 ms")) is False
    assert passes(point, read_target("94 %, 80 kB, 5 ms")) is None
    assert [each.text() for each in read_target("94 %, 80 kB")] == [
        "Accuracy ≥ 94.0 %", "Size of the packed file ≤ 80 kB"
    ]  # fmt: skip


def test_axes_have_names_and_units() -> None:
    assert len({axis_label(axis, "miou") for axis in AXES}) == len(AXES)
    told = [axis_text(axis, 0.5) for axis in (*AXES, "drop")]
    assert told == ["50.0 %", "0.50 B", "0.50 B", "0.50 BOPs", "0.50 ms", "500 mJ", "0.50 B", "50 pp"]
    assert axis_text("bops", None) == "–"


def test_a_drawn_box_is_a_target_that_is_read_again() -> None:
    sides = {"value": (0.9412, 0.99), "size_bytes": (1e3, 81_234.0), "deployed_bytes": (0.0, 2e6)}
    drawn = box_target(
        {**sides, "latency_ms": (1, 5.5), "energy_joules": (0, 2e-3), "memory_bytes": (0, 2e7)}
    )
    typed = ", ".join(each.typed() for each in drawn)
    assert typed == "≥ 94.12 %, ≤ 81.2 kB, ≤ 2 MB deployed, ≤ 5.5 ms, ≤ 2 mJ, ≤ 20 MB memory"
    assert [each.typed() for each in read_target(typed)] == typed.split(", ")
