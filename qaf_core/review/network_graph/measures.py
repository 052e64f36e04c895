"""What a drawing is coloured by: a number for each layer, how those of a block come together, a scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from plotly.colors import sample_colorscale

from qaf_core.network.plan.cost import Cost, layer_cost, original_layer_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import Plan

COSTS = {False: ("#EAF2FB", "#5B9BD5", "#0B4A8F"), True: ("#1B2A3C", "#2F6CA8", "#8CC4F8")}
HARMS = {False: ("#FFF4E5", "#F2A65A", "#B23A06"), True: ("#2E2620", "#A8551C", "#FFB073")}
NEUTRAL = {False: "#F1F4F8", True: "#202A37"}
LEAST_HARM = 0.05  # scales of errors and shares reach at least this far: small ones do not look alarming


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Numbers of layers.

    Attributes:
        values: By layer; those that are not known are not there.
        adds_up: Whether a block has the sum of its layers, or the largest.
        harm: Whether more is worse: another ramp of colours.
        least_top: Where the scale ends at the earliest.
        elsewhere: What rows of the network hold that are no node of the graph.
    """

    values: Mapping[str, float]
    adds_up: bool
    harm: bool = False
    least_top: float = 0.0
    elsewhere: float = 0.0

    def of(self, layers: Iterable[str]) -> float | None:
        """The number of a box with such layers; None where none is known."""
        known = [self.values[name] for name in layers if name in self.values]
        if not known:
            return None
        return math.fsum(known) if self.adds_up else max(known)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Colours from nothing to the largest number drawn, in equal steps.

    Attributes:
        top: The number of the strongest colour.
        ramp: Colours from zero to it.
        neutral: Of what has no number.
    """

    top: float
    ramp: tuple[str, ...]
    neutral: str

    def colour(self, value: float | None) -> str:
        """The colour of a number, as ``#rrggbb``."""
        if value is None:
            return self.neutral
        share = min(1.0, max(0.0, value / self.top)) if self.top > 0 else 0.0
        mixed: str = sample_colorscale(list(self.ramp), [share], colortype="tuple")[0]
        return "#" + "".join(f"{round(255 * float(channel)):02X}" for channel in mixed)


def scale_for(measure: Measure, drawn: Iterable[float | None], dark: bool) -> Scale:
    """The scale of a drawing."""
    top = max([value for value in drawn if value is not None] + [measure.least_top])
    return Scale(top=top, ramp=(HARMS if measure.harm else COSTS)[dark], neutral=NEUTRAL[dark])


def ink_on(fill: str) -> str:
    """Black or white, whichever is read better on a colour given as ``#rrggbb``."""
    channels = [int(fill[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.2
    return "#FFFFFF" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#111827"


def params_of(inventory: Sequence[LayerInfo], plan: Plan | None, drawn: Iterable[str]) -> Measure:
    """Parameters of each layer, as they are or under a plan."""
    return _costs(inventory, plan, drawn, lambda cost: cost.params)


def bops_of(inventory: Sequence[LayerInfo], plan: Plan | None, drawn: Iterable[str]) -> Measure:
    """Bit-operations of each layer for one image, as they are or under a plan."""
    return _costs(inventory, plan, drawn, lambda cost: cost.bops)


def _costs(
    inventory: Sequence[LayerInfo],
    plan: Plan | None,
    drawn: Iterable[str],
    pick: Callable[[Cost], int],
) -> Measure:
    """One of the costs; a BatchNorm that is folded into a layer counts with it."""
    rows = {} if plan is None else {row.name: row for row in plan.layers}
    shown, values, elsewhere = set(drawn), dict[str, float](), 0.0
    for info in inventory:
        cost = (
            original_layer_cost(info)
            if plan is None
            else layer_cost(info, rows.get(info.name), plan.activation_bits)
        )
        owner = info.folded_into or info.name
        number = float(pick(cost))
        if owner in shown:
            values[owner] = values.get(owner, 0.0) + number
        else:
            elsewhere += number
    return Measure(values=values, adds_up=True, elsewhere=elsewhere)


def harm_of(values: Mapping[str, float | None]) -> Measure:
    """Errors of layers, as fractions; a block has the largest inside."""
    known = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
    return Measure(values=known, adds_up=False, harm=True, least_top=LEAST_HARM)


def shares_of(values: Mapping[str, float]) -> Measure:
    """Shares of a harm that all layers do together."""
    return Measure(values=dict(values), adds_up=True, harm=True, least_top=LEAST_HARM)


def time_of(milliseconds: Mapping[str, float]) -> Measure:
    """Milliseconds of each layer."""
    return Measure(values=dict(milliseconds), adds_up=True)
