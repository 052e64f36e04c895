"""The business case by hand, its bands, and nonsense refused at the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.review.decision.economics import (
    ASSUMPTIONS,
    DAYS_A_MONTH,
    FILE_NAME,
    PRESETS,
    NetworkCosts,
    compute_case,
    keep_assumptions,
    load_assumptions,
    read_assumptions,
)

COSTS = NetworkCosts(
    size_bytes=(4e6, 1e6), seconds=(0.010, 0.004), joules=(0.2, 0.05), memory_bytes=(3e8, 1e8)
)


def span(likely: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    return {"low": likely if low is None else low, "likely": likely, "high": likely if high is None else high}


def test_each_saving_by_hand() -> None:
    told = {
        "currency": "EUR",
        "months": 12,
        "spans": {
            "devices": span(100), "images_a_day": span(1000), "share_moved": span(0.25),
            "price_an_inference": span(0.001), "price_an_hour": span(2.0), "image_bytes": span(2e5),
            "price_a_gb_up": span(0.5), "updates_a_year": span(6), "price_a_gb_update": span(1.0),
            "price_a_kwh": span(0.3), "engineering_days": span(10), "price_a_day": span(800),
        },
        "device_classes": [
            {"name": "small", "memory_bytes": 2e8, "price": 30},
            {"name": "large", "memory_bytes": 1e9, "price": 45},
        ],
    }  # fmt: skip
    case = compute_case(read_assumptions(told), COSTS)
    images = 100 * 1000 * DAYS_A_MONTH
    assert case.monthly == pytest.approx(
        {
            "cloud": images * 0.25 * 0.001,
            "servers": images * 0.75 * 0.006 / 3600 * 2,
            "uplink": images * 0.25 * 2e5 / 1e9 * 0.5,
            "updates": 100 * 0.5 * 3e6 / 1e9,
            "power": images * 0.15 / 3.6e6 * 0.3,
        }
    )
    assert case.one_off == pytest.approx(8000 - 100 * 15)
    assert case.payback_months == pytest.approx(6500 / case.monthly_total)
    assert case.net[12] == pytest.approx(12 * case.monthly_total - 6500)
    assert case.net_low == pytest.approx(case.net)  # nothing is uncertain here
    assert case.tornado == ()


def test_bands_and_tornado_follow_the_spans() -> None:
    case = compute_case(PRESETS["example_line"], COSTS)
    assert case.draws["monthly"][0] < case.monthly_total < case.draws["monthly"][2]
    assert all(low < high for low, high in zip(case.net_low[1:], case.net_high[1:], strict=True))
    widths = [abs(high - low) for _, low, high in case.tornado]
    assert widths == sorted(widths, reverse=True)
    assert compute_case(PRESETS["example_line"], COSTS) == case  # seeded
    assert PRESETS["example_line"].label.startswith("Example")


def test_without_a_saving_nothing_is_paid_back() -> None:
    case = compute_case(
        read_assumptions({"spans": {"engineering_days": span(5), "price_a_day": span(9)}}), COSTS
    )
    assert (case.monthly_total, case.one_off, case.payback_months) == (0, 45, None)
    assert case.draws["paid_back"] == 0


@pytest.mark.parametrize(
    ("spans", "months", "paid_back"),
    [
        ({}, None, 0.0),
        ({"devices": span(1), "images_a_day": span(100), "share_moved": span(1),
          "price_an_inference": span(1)}, 0.0, 1.0),
    ],
)  # fmt: skip
def test_paying_back_needs_something_saved(spans: Any, months: float | None, paid_back: float) -> None:
    case = compute_case(read_assumptions({"spans": spans}), COSTS)
    assert (case.payback_months, case.draws["paid_back"]) == (months, paid_back)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format": 9, "spans": {}}', '{"format": 1, "spans": 3}']
)
def test_damaged_assumptions_are_said(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(WorkspaceError, match="assumptions of a business case cannot be read"):
        load_assumptions(tmp_path)


@pytest.mark.parametrize("value", [-1, 1e300, float("nan"), "12", None, True])
@pytest.mark.parametrize("name", ["devices", "price_a_kwh"])
def test_nonsense_is_refused_at_the_field(name: str, value: Any) -> None:
    with pytest.raises(QafError, match=f"likely of {name}"):
        read_assumptions({"spans": {name: {"low": 0, "likely": value, "high": 5}}})


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (None, "no mapping"),
        ({"spans": {"luck": span(1)}}, "unknown assumption"),
        ({"spans": {"devices": {"low": 3, "likely": 2, "high": 4}}}, "devices is not in order"),
        ({"months": 0}, "months out of range"),
        ({"currency": "Taler of Saxony"}, "currency"),
        ({"device_classes": [{"name": "a"}]}, "device class lacks"),
    ],
)
def test_other_faults_name_their_field(told: Any, message: str) -> None:
    with pytest.raises(QafError, match=message):
        read_assumptions(told)


def test_assumptions_are_kept_with_a_run(tmp_path: Path) -> None:
    assert load_assumptions(tmp_path) is None
    keep_assumptions(tmp_path, PRESETS["example_line"])
    assert load_assumptions(tmp_path) == PRESETS["example_line"]
    assert set(PRESETS["example_line"].spans) <= set(ASSUMPTIONS)
