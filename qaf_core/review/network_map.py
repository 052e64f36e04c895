"""A network drawn as nested boxes in forward order: where its cost is and where it is fragile.

The modules of the network stand above their layers; a box is as wide as the layer's share of the whole. Pure:
rows in, figure out; texts go through the caller's translation function ``_``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from qaf_core.network.plan.cost import original_layer_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.review.charts import style
from qaf_core.text.said import Translate, untranslated
from qaf_core.text.units import count_text, percent_text, with_prefix

Amount = Literal["params", "bops"]

SEQUENTIAL = {False: ("#E8F1FA", "#0B5CAD"), True: ("#1E2B3B", "#7CB8F2")}
WARNING = {False: ("#FFF3E0", "#C2410C"), True: ("#2B2320", "#FB923C")}
NEUTRAL = {False: "#F1F4F8", True: "#202A37"}
HEIGHT_PX = 330
LEAST_FRAGILE = 0.05  # the colours of errors reach at least this far, so that small ones do not look alarming


@dataclass(frozen=True, kw_only=True)
class NetworkBox:
    """One module or layer of the drawing.

    Attributes:
        name: Full module path; empty for the whole network.
        parent: Path of the module it stands in; None for the whole network.
        label: Last part of the path.
        amount: Parameters or bit-operations of the layer; of a module the sum of what stands in it.
        share: Of the whole network's amount, 0 … 1.
        error: Relative reconstruction error of the layer after a run, the largest one inside a module, or
            None.
        kind: Of the layer; empty for modules.
    """

    name: str
    parent: str | None
    label: str
    amount: float
    share: float
    error: float | None
    kind: str = ""


def network_boxes(
    inventory: Sequence[LayerInfo],
    *,
    amount: Amount,
    errors: Mapping[str, float] | None = None,
    title: str = "",
) -> tuple[NetworkBox, ...]:
    """The boxes of a drawing, modules before what they hold, in the order of the forward pass.

    Args:
        inventory: The network's rows.
        amount: What the boxes' widths stand for.
        errors: Layer name -> relative error of a run; layers without one have none.
        title: Label of the whole network.
    """
    known = errors or {}
    layers = {info.name: float(getattr(original_layer_cost(info), amount)) for info in inventory}
    kinds = {info.name: info.kind for info in inventory}
    layers = {name: value for name, value in layers.items() if value > 0}
    total = sum(layers.values())
    sums: dict[str, float] = {"": total}
    worst: dict[str, float] = {}
    for name, value in layers.items():
        for path in _above(name) + ((name,) if name else ()):
            if path:
                sums[path] = sums.get(path, 0.0) + value
            if name in known and math.isfinite(known[name]):
                worst[path] = max(worst.get(path, 0.0), known[name])
    return tuple(
        NetworkBox(
            name=path,
            parent=None if not path else path.rpartition(".")[0],
            label=path.rpartition(".")[2] or title,
            amount=value,
            share=value / total if total else 0.0,
            error=worst.get(path),
            kind=kinds.get(path, "") if path in layers else "",
        )
        for path, value in sums.items()
    )


def _above(name: str) -> tuple[str, ...]:
    """The modules a layer stands in, outermost first: ``layer1.0.conv1`` → ``"", "layer1", "layer1.0"``."""
    parts = name.split(".")
    return ("", *(".".join(parts[:count]) for count in range(1, len(parts))))


def network_figure(
    boxes: Sequence[NetworkBox],
    *,
    amount: Amount,
    by_error: bool = False,
    dark: bool = False,
    _: Translate = untranslated,
) -> go.Figure:
    """The drawing; a click on a box makes it the whole width.

    Args:
        boxes: From ``network_boxes``.
        amount: What their widths stand for.
        by_error: Colour by each layer's error instead of its share; layers without one stay neutral.
        dark: Whether the ground is dark.
        _: Translation of texts.
    """
    values = [box.error if by_error else box.share for box in boxes]
    # The largest single layer, not the whole network, has the strongest colour.
    leaves = [value for box, value in zip(boxes, values, strict=True) if box.kind and value is not None]
    top = max([*leaves, LEAST_FRAGILE] if by_error else leaves, default=1.0) or 1.0
    ramp = WARNING[dark] if by_error else SEQUENTIAL[dark]
    fills = [_fill(box, value, top, ramp, dark) for box, value in zip(boxes, values, strict=True)]
    figure = go.Figure(
        go.Icicle(
            ids=[box.name or "(network)" for box in boxes],
            labels=[box.label for box in boxes],
            parents=["" if box.parent is None else box.parent or "(network)" for box in boxes],
            values=[box.amount for box in boxes],
            branchvalues="total",
            sort=False,
            tiling={"orientation": "v", "pad": 1},
            marker={"colors": fills, "line": {"width": 1, "color": "#0F151E" if dark else "#FFFFFF"}},
            textfont={"color": [_ink(fill) for fill in fills]},
            text=[_caption(box, by_error, _) for box in boxes],
            texttemplate="%{label}<br>%{text}",
            hovertext=[_hover(box, amount, _) for box in boxes],
            hovertemplate="%{hovertext}<extra></extra>",
            pathbar={"visible": True, "thickness": 22},
        )
    )
    style(figure, height_px=HEIGHT_PX)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 30, "b": 4}, uniformtext={"minsize": 9, "mode": "hide"})
    return figure


def _fill(box: NetworkBox, value: float | None, top: float, ramp: tuple[str, str], dark: bool) -> str:
    if value is None or not box.kind:
        return NEUTRAL[dark]
    colour: str = sample_colorscale(list(ramp), [min(1.0, value / top)])[0]
    return colour


def _ink(fill: str) -> str:
    """Black or white, whichever is read better on a colour given as ``rgb(r, g, b)`` or ``#rrggbb``."""
    if fill.startswith("#"):
        channels = [int(fill[at : at + 2], 16) for at in (1, 3, 5)]
    else:
        channels = [int(float(part)) for part in fill[fill.index("(") + 1 : -1].split(",")]
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]  # WCAG 2.2
    return "#FFFFFF" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#111827"


def _caption(box: NetworkBox, by_error: bool, _: Translate) -> str:
    if not by_error:
        return percent_text(box.share)
    if box.error is None:
        return ""
    error = percent_text(box.error)
    return error if box.kind else _("up to {error}").format(error=error)


def _hover(box: NetworkBox, amount: Amount, _: Translate) -> str:
    size = (
        _("{count} parameters").format(count=count_text(box.amount))
        if amount == "params"
        else with_prefix(box.amount, "BOPs")
    )
    lines = [f"<b>{box.name or box.label}</b>", f"{size} · {percent_text(box.share)}"]
    if box.kind:
        lines.insert(1, box.kind)
    if box.error is not None:
        text = _("Layer error {error}") if box.kind else _("Largest layer error {error}")
        lines.append(text.format(error=percent_text(box.error)))
    return "<br>".join(lines)
