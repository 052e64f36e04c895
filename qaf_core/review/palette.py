"""Colours and symbols of the charts: the Okabe–Ito palette, told apart by symbol as well as by colour."""

from __future__ import annotations

from dataclasses import dataclass

from qaf_core.factorization.options import Method


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How one series is drawn: its colour on light and on dark ground, its symbol and its line dash."""

    light: str
    dark: str
    symbol: str
    dash: str = "solid"

    def colour(self, dark: bool) -> str:
        """The colour for the ground it stands on."""
        return self.dark if dark else self.light


METHOD_MARKS: dict[str, Mark] = {
    Method.JOINT: Mark(light="#0072B2", dark="#56B4E9", symbol="circle"),
    Method.PAPER: Mark(light="#D55E00", dark="#F0803C", symbol="square"),
    Method.SEQUENTIAL: Mark(light="#00805C", dark="#2BC49A", symbol="triangle-up"),
    Method.DENSE: Mark(light="#B0568C", dark="#E39AC6", symbol="diamond"),
}
ORIGINAL_MARK = Mark(light="#1F2937", dark="#F3F4F6", symbol="star")
OTHER_MARK = Mark(light="#6B7280", dark="#9CA3AF", symbol="x")
FLOAT_MARK = Mark(light="#B45F06", dark="#E69F00", symbol="diamond-open", dash="dash")
QUANTIZED_MARK = Mark(light="#0072B2", dark="#56B4E9", symbol="circle")
PRIMAL_MARK = Mark(light="#00805C", dark="#2BC49A", symbol="circle")
DUAL_MARK = Mark(light="#B0568C", dark="#E39AC6", symbol="diamond", dash="dot")
SECOND_RUN_MARK = Mark(light="#D55E00", dark="#F0803C", symbol="square")


def method_mark(method: str) -> Mark:
    """The mark of a method; an unknown one gets the neutral mark rather than an error."""
    return METHOD_MARKS.get(method, OTHER_MARK)
