"""The business case: what compression saves a month, when it has paid for itself, and what matters most.

Every number is an assumption of the user's with a low, a likely and a high value, or measured on the run. The
only constants are those of the calendar and of units. The presets are examples, and are called so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.files import read_json, write_json
from qaf_core.text.said import Said, say

FILE_NAME = "economics.json"
FORMAT = 1
DRAWS = 10_000
SEED = 0
DAYS_A_MONTH = 365.25 / 12
SECONDS_AN_HOUR, JOULES_A_KWH, BYTES_A_GB = 3600.0, 3.6e6, 1e9
LONGEST_CURRENCY = 8
MOST_CLASSES = 12
MOST_MONTHS = 120

FloatArray = NDArray[np.float64]
Values = Mapping[str, Any]

#: What each assumption is, and its largest sensible value.
ASSUMPTIONS: dict[str, tuple[str, float]] = {
    "devices": ("Devices", 1e9),
    "images_a_day": ("Images a day and device", 1e9),
    "share_moved": ("Share of inferences moved from the cloud to the device", 1.0),
    "price_an_inference": ("Price of one inference in the cloud", 1e6),
    "price_an_hour": ("Price of one hour of a server", 1e6),
    "image_bytes": ("Bytes sent up for one image", 1e12),
    "price_a_gb_up": ("Price of one GB sent up", 1e6),
    "updates_a_year": ("Updates over the air in a year", 1e5),
    "price_a_gb_update": ("Price of one GB of updates", 1e6),
    "price_a_kwh": ("Price of one kWh", 1e6),
    "engineering_days": ("Days of engineering, once", 1e6),
    "price_a_day": ("Price of one day of engineering", 1e9),
}
SAVINGS = {
    "cloud": "Inferences in the cloud",
    "servers": "Hours of servers",
    "uplink": "Images sent up",
    "updates": "Updates over the air",
    "power": "Power",
}


@dataclass(frozen=True, kw_only=True)
class Span:
    """An assumption: the smallest, the likely and the largest value it may have."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """A class of devices: what it can hold, and what one costs."""

    name: str
    memory_bytes: float
    price: float


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the user assumes.

    Attributes:
        spans: By the names in ``ASSUMPTIONS``; those left out are 0: nothing is saved or paid there.
        currency: In which all prices are.
        months: How far the case looks ahead.
        device_classes: To buy from; the cheapest that holds the network is taken.
        label: Where the numbers come from; presets say that they are examples.
    """

    spans: Mapping[str, Span]
    currency: str = "JPY"
    months: int = 36
    device_classes: tuple[DeviceClass, ...] = ()
    label: str = ""

    def likely(self) -> dict[str, float]:
        """The likely value of every assumption."""
        return {name: self.spans[name].likely if name in self.spans else 0.0 for name in ASSUMPTIONS}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {
            "format": FORMAT, "label": self.label, "currency": self.currency, "months": self.months,
            "spans": {name: vars(span) for name, span in self.spans.items()},
            "device_classes": [vars(row) for row in self.device_classes],
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NetworkCosts:
    """What was measured of both networks: file size, time and energy of one inference, memory."""

    size_bytes: tuple[float, float]
    seconds: tuple[float, float] = (0.0, 0.0)
    joules: tuple[float, float] = (0.0, 0.0)
    memory_bytes: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class BusinessCase:
    """What the assumptions come to.

    Attributes:
        monthly: Saving a month by source, likely values.
        monthly_total: Their sum.
        one_off: What is paid once, less what cheaper devices save; negative where that is more.
        payback_months: When the sum has paid for itself; None if never, 0 if at once.
        months, net, net_low, net_high: Month by month the sum gained so far: likely, and the 5 and 95 %
            quantiles of the simulation.
        tornado: Net at the end by assumption at its low and its high value, the widest first.
        draws: Quantiles 5, 50, 95 % of the saving a month and of the net at the end, and the share of draws
            that have paid for themselves by then.
    """

    currency: str
    monthly: Mapping[str, float]
    monthly_total: float
    one_off: float
    payback_months: float | None
    months: tuple[int, ...]
    net: tuple[float, ...]
    net_low: tuple[float, ...]
    net_high: tuple[float, ...]
    tornado: tuple[tuple[str, float, float], ...]
    draws: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def read_assumptions(data: Any) -> Assumptions:
    """Assumptions from plain data, as screens and files give them.

    Raises:
        QafError: If a value is no sensible number; it names the field.
    """
    if not isinstance(data, Mapping):
        raise QafError("assumptions are no mapping", got=type(data).__name__, expected="spans, currency, …")
    spans = data.get("spans", {})
    if not isinstance(spans, Mapping):
        raise QafError("spans of the assumptions are no mapping", got=type(spans).__name__)
    if unknown := sorted(str(name) for name in spans.keys() - ASSUMPTIONS.keys()):
        raise QafError("unknown assumption", got=unknown[0][:60], expected=", ".join(ASSUMPTIONS))
    currency, months = data.get("currency", "JPY"), data.get("months", 36)
    if not isinstance(currency, str) or not 0 < len(currency) <= LONGEST_CURRENCY:
        raise QafError("currency is no short text", got=repr(currency)[:40], expected="such as JPY")
    if isinstance(months, bool) or not isinstance(months, int) or not 1 <= months <= MOST_MONTHS:
        raise QafError(
            "months out of range",
            got=repr(months)[:40],
            expected=say("1 to {most}", most=MOST_MONTHS),
        )
    classes = data.get("device_classes", [])
    if not isinstance(classes, list | tuple) or len(classes) > MOST_CLASSES:
        raise QafError(
            "device_classes is no short list",
            expected=say("at most {most} classes", most=MOST_CLASSES),
        )
    return Assumptions(
        spans={name: _read_span(name, values) for name, values in spans.items()},
        currency=currency,
        months=months,
        device_classes=tuple(_read_class(row) for row in classes),
        label=str(data.get("label", ""))[:200],
    )


def _read_span(name: str, values: Any) -> Span:
    if not isinstance(values, Mapping) or set(values) != {"low", "likely", "high"}:
        raise QafError(
            say("{name} is no span", name=name), got=repr(values)[:60], expected="low, likely and high"
        )
    numbers = {
        key: _number(say("{part} of {name}", part=key, name=name), values[key], ASSUMPTIONS[name][1])
        for key in values
    }
    if not numbers["low"] <= numbers["likely"] <= numbers["high"]:
        raise QafError(
            say("{name} is not in order", name=name), got=repr(dict(values)), expected="low ≤ likely ≤ high"
        )
    return Span(**numbers)


def _read_class(row: Any) -> DeviceClass:
    if not isinstance(row, Mapping) or not {"name", "memory_bytes", "price"} <= row.keys():
        raise QafError("a device class lacks a field", expected="name, memory_bytes and price")
    return DeviceClass(
        name=str(row["name"])[:60],
        memory_bytes=_number(say("memory_bytes of a device class"), row["memory_bytes"], 1e15),
        price=_number(say("price of a device class"), row["price"], 1e9),
    )


def _number(field: str | Said, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise QafError(
            say("{name} out of range", name=field),
            got=repr(value)[:40],
            expected=say("a number from 0 to {most:g}", most=most),
        )
    return float(value)


def keep_assumptions(folder: Path, assumptions: Assumptions) -> None:
    """Keep assumptions in a run's folder."""
    write_json(folder / FILE_NAME, assumptions.to_dict(), for_people=True)


def load_assumptions(folder: Path) -> Assumptions | None:
    """The assumptions kept with a run; None where there are none.

    Raises:
        WorkspaceError: If they are damaged or of a newer version.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        return read_assumptions(content)
    except (QafError, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            "the assumptions of a business case cannot be read",
            got=f"{path} ({error})",
            remedy="move the file away",
        ) from error


def compute_case(assumptions: Assumptions, costs: NetworkCosts) -> BusinessCase:
    """What the assumptions come to, with a seeded simulation of their spans (triangular distributions)."""
    likely = assumptions.likely()
    monthly = {key: float(value) for key, value in _monthly(likely, costs).items()}
    hardware = _hardware_saving(assumptions.device_classes, costs)
    months = np.arange(assumptions.months + 1)
    total, one_off = sum(monthly.values()), float(_one_off(likely, hardware))
    drawn = _draw(assumptions)
    monthly_drawn, one_off_drawn = _total(drawn, costs), _one_off(drawn, hardware)
    paths = months[:, None] * monthly_drawn[None, :] - one_off_drawn[None, :]
    low, high = np.quantile(paths, (0.05, 0.95), axis=1)
    return BusinessCase(
        currency=assumptions.currency,
        monthly=monthly,
        monthly_total=total,
        one_off=one_off,
        payback_months=_payback(one_off, total),
        months=tuple(map(int, months)),
        net=tuple(float(month * total - one_off) for month in months),
        net_low=tuple(map(float, low)),
        net_high=tuple(map(float, high)),
        tornado=_tornado(assumptions, costs, hardware),
        draws={
            "monthly": [float(value) for value in np.quantile(monthly_drawn, (0.05, 0.5, 0.95))],
            "net": [float(value) for value in np.quantile(paths[-1], (0.05, 0.5, 0.95))],
            "paid_back": float(((paths[-1] >= 0) & ((monthly_drawn > 0) | (one_off_drawn < 0))).mean()),
            "count": DRAWS,
            "seed": SEED,
        },
    )


def _payback(one_off: float, monthly: float) -> float | None:
    """The month in which a sum has paid for itself; None where it never does, or nothing is saved at all."""
    if one_off < 0 <= monthly:
        return 0.0
    return max(0.0, one_off) / monthly if monthly > 0 else None


def _monthly(values: Values, costs: NetworkCosts) -> dict[str, Any]:
    """Saving a month by source; numbers or arrays of draws."""
    images = values["devices"] * values["images_a_day"] * DAYS_A_MONTH
    moved = images * values["share_moved"]
    less = {key: before - after for key, (before, after) in vars(costs).items()}
    updates = values["devices"] * values["updates_a_year"] / 12
    return {
        "cloud": moved * values["price_an_inference"],
        "servers": (images - moved) * less["seconds"] / SECONDS_AN_HOUR * values["price_an_hour"],
        "uplink": moved * values["image_bytes"] / BYTES_A_GB * values["price_a_gb_up"],
        "updates": updates * less["size_bytes"] / BYTES_A_GB * values["price_a_gb_update"],
        "power": images * less["joules"] / JOULES_A_KWH * values["price_a_kwh"],
    }


def _total(values: Values, costs: NetworkCosts) -> Any:
    return sum(_monthly(values, costs).values())


def _one_off(values: Values, hardware: float) -> Any:
    return values["engineering_days"] * values["price_a_day"] - values["devices"] * hardware


def _hardware_saving(classes: tuple[DeviceClass, ...], costs: NetworkCosts) -> float:
    """What one device costs less, since a class with less memory holds the network; 0 where unknown."""
    prices = [
        min((row.price for row in classes if row.memory_bytes >= needed), default=math.nan)
        for needed in costs.memory_bytes
    ]
    known = all(math.isfinite(price) for price in prices) and all(needed > 0 for needed in costs.memory_bytes)
    return max(0.0, prices[0] - prices[1]) if known else 0.0


def _draw(assumptions: Assumptions) -> dict[str, FloatArray]:
    generator = np.random.default_rng(SEED)
    likely = assumptions.likely()
    drawn = {}
    for name in ASSUMPTIONS:
        span = assumptions.spans.get(name)
        if span is None or span.low == span.high:
            drawn[name] = np.full(DRAWS, likely[name])
        else:
            drawn[name] = generator.triangular(span.low, span.likely, span.high, DRAWS)
    return drawn


def _tornado(
    assumptions: Assumptions, costs: NetworkCosts, hardware: float
) -> tuple[tuple[str, float, float], ...]:
    likely = assumptions.likely()

    def net(name: str, value: float) -> float:
        values = {**likely, name: value}
        return float(assumptions.months * _total(values, costs) - _one_off(values, hardware))

    rows = [
        (name, net(name, span.low), net(name, span.high))
        for name, span in assumptions.spans.items()
        if span.low < span.high
    ]
    return tuple(sorted(rows, key=lambda row: -abs(row[2] - row[1])))


def _example(label: str, **values: tuple[float, float, float]) -> Assumptions:
    spans = {name: Span(low=low, likely=likely, high=high) for name, (low, likely, high) in values.items()}
    return Assumptions(spans=spans, currency="JPY", months=36, label=label)


#: To begin with, by name: invented numbers that show what belongs where.
PRESETS = {
    "example_line": _example(
        "Example: 40 cameras of a production line, inference moved from the cloud to the device",
        devices=(30, 40, 60), images_a_day=(5_000, 20_000, 40_000), share_moved=(0.8, 1.0, 1.0),
        price_an_inference=(0.002, 0.005, 0.01), image_bytes=(50_000, 150_000, 400_000),
        price_a_gb_up=(5, 10, 20), updates_a_year=(2, 4, 12), price_a_gb_update=(5, 10, 20),
        price_a_kwh=(20, 27, 35), engineering_days=(15, 25, 45), price_a_day=(60_000, 80_000, 110_000),
    ),
    "example_server": _example(
        "Example: a service on servers of one's own, paid by the hour",
        devices=(1, 1, 1), images_a_day=(1e6, 5e6, 1e7), price_an_hour=(60, 100, 200),
        price_a_kwh=(20, 27, 35), engineering_days=(10, 20, 40), price_a_day=(60_000, 80_000, 110_000),
    ),
}  # fmt: skip
