"""The network as a graph on a page: before or after, in the colours asked for; blocks open at a click."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import streamlit as st

from dashboard.state import address
from dashboard.text import _
from dashboard.widgets import ui
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import Plan
from qaf_core.network.topology.description import Topology
from qaf_core.review.network_graph import measures
from qaf_core.review.network_graph.dot import Drawing, box_ids, dot_text
from qaf_core.review.network_graph.measures import Measure, Scale
from qaf_core.review.network_graph.view import BLOCK, MOST_BOXES, View, blocks_of, home_of, view_of
from qaf_core.text.units import percent_text, with_prefix

BEFORE, AFTER = "before", "after"
LEAST_TOLD = 0.005  # a share of the whole that is told in words


@dataclass(frozen=True, kw_only=True)
class Shade:
    """One thing that layers can be coloured by.

    Attributes:
        label: For people.
        measure: Of the network as it is (None), or under a plan, for the layers that are drawn.
        told: How a number is written.
        after: It is known of the compressed network only.
    """

    label: str
    measure: Callable[[Plan | None, frozenset[str]], Measure]
    told: Callable[[float], str]
    after: bool = False


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A network to draw.

    Attributes:
        key: Of the place on the page; letters and hyphens.
        inventory, topology: The network; without a topology that is said.
        plan: What its layers become, or None: then it is drawn as it is.
        more: What else than its costs it can be coloured by, by short names.
        layer: The one that stands out, or None.
        choose: Is told of a layer that was clicked.
        shade: What it is coloured by at first.
    """

    key: str
    inventory: Sequence[LayerInfo]
    topology: Topology | None
    plan: Plan | None = None
    more: Mapping[str, Shade] = field(default_factory=dict)
    layer: str | None = None
    choose: Callable[[str], None] | None = None
    shade: str = "params"


def show(shown: Shown) -> None:
    """The drawing, with its controls above and its legend below."""
    topology = shown.topology
    if topology is None:
        st.info(
            _(
                "How the layers of this network are connected is not known: its data cannot be followed "
                "through its code."
            ),
            icon=":material/account_tree:",
        )
        return
    after, shade, block = _controls(shown, topology)
    home = home_of(topology, shown.layer)[-1:] if shown.layer else ()
    view = view_of(topology, chosen=[*home, *([block] if block else [])], most=MOST_BOXES)
    plan = shown.plan if after else None
    measure = shade.measure(plan, frozenset(name for box in view.boxes for name in box.layers))
    dark = ui.is_dark()
    scale = measures.scale_for(measure, [measure.of(box.layers) for box in view.boxes], dark)
    drawing = Drawing(
        view=view, inventory={info.name: info for info in shown.inventory}, measure=measure, scale=scale,
        told=shade.told, plan=plan, highlighted=shown.layer,
    )  # fmt: skip
    with st.container(key=f"network-{shown.key}", gap=None):
        st.graphviz_chart(
            dot_text(drawing, dark=dark, _=_), width="content",
            alt=_("The network's layers and how they are connected"),
        )  # fmt: skip
    _listen(shown, view)
    known = all(measure.of(box.layers) is not None for box in view.boxes if box.layers)
    _legend(shade, measure, scale, all_known=known)


def _shades(shown: Shown) -> dict[str, Shade]:
    rows = shown.inventory
    return {
        "params": Shade(
            label=_("Parameters"), told=partial(with_prefix, unit=""),
            measure=lambda plan, drawn: measures.params_of(rows, plan, drawn),
        ),
        "bops": Shade(
            label=_("Bit-operations"), told=partial(with_prefix, unit="BOPs"),
            measure=lambda plan, drawn: measures.bops_of(rows, plan, drawn),
        ),
        **shown.more,
    }  # fmt: skip


def _controls(shown: Shown, topology: Topology) -> tuple[bool, Shade, str | None]:
    """Whether it is drawn after compression, its colours, and the block that is open beside the first."""
    shades = _shades(shown)
    opened = view_of(topology, most=MOST_BOXES).opened
    blocks = [path for path in blocks_of(topology) if path not in opened]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        after = shown.plan is not None
        if shown.plan is not None:
            labels = {BEFORE: _("Before"), AFTER: _("After")}
            after = st.segmented_control(
                _("Network"), list(labels), format_func=labels.__getitem__, required=True,
                key=address.choice("graph", list(labels), AFTER, key=f"{shown.key}-when"),
            ) == AFTER  # fmt: skip
        names = list(shades)
        first = shown.shade if shown.shade in shades else names[0]
        chosen = st.selectbox(
            _("Colour"), names, format_func=lambda name: shades[name].label, width=260,
            key=address.choice("colour", names, first, key=f"{shown.key}-colour"),
        )  # fmt: skip
        block = None
        if blocks:
            block = st.selectbox(
                _("Open a block"), [None, *blocks], width=300,
                format_func=lambda path: _("None beside the first") if path is None else path,
                key=address.choice("block", [None, *blocks], None, key=_block_key(shown)),
            )  # fmt: skip
    return after, shades[chosen], block


def _block_key(shown: Shown) -> str:
    return f"{shown.key}-block"


def _listen(shown: Shown, view: View) -> None:
    """A click on a block opens it, one on a layer chooses it."""
    ids = box_ids(view)
    blocks = {box.name for box in view.boxes if box.kind == BLOCK}
    layers = {box.name: box.layers[0] for box in view.boxes if box.kind != BLOCK and box.layers}
    marked = next((ids[box.name] for box in view.boxes if shown.layer in box.layers), None)
    component_key = f"{shown.key}-clicks"

    def clicked() -> None:
        name = (st.session_state.get(component_key) or {}).get("clicked")
        if name in blocks:
            st.session_state[_block_key(shown)] = name
        elif name in layers and shown.choose is not None:
            shown.choose(layers[name])

    known = blocks | (set(layers) if shown.choose is not None else set())
    mount = st.components.v2.component(
        "qaf_network_graph", js=(ui.ASSETS / "network_graph.js").read_text(encoding="utf-8")
    )
    mount(
        key=component_key, on_clicked_change=clicked,
        data={
            "place": f"network-{shown.key}", "shown": marked,
            "names": {number: name if name in known else None for name, number in ids.items()},
        },
    )  # fmt: skip


def _legend(shade: Shade, measure: Measure, scale: Scale, *, all_known: bool) -> None:
    """What the colours mean, in numbers."""
    swatch = f'<i style="background: {scale.neutral}"></i>'
    unknown = f'<span class="none">{swatch}{html.escape(_("not known"))}</span>'
    steps = ", ".join(scale.colour(scale.top * part / 8) for part in range(9))
    ends = [html.escape(shade.told(value)) for value in (0.0, scale.top / 2, scale.top)]
    words = [
        _("Even steps; a block has the sum of its layers.")
        if measure.adds_up
        else _("Even steps; a block has the largest of its layers.")
    ]
    whole = sum(measure.values.values()) + measure.elsewhere
    if whole and measure.elsewhere / whole >= LEAST_TOLD:
        share = percent_text(measure.elsewhere / whole)
        words.append(_("{share} is in operations that are not drawn, as normalisation.").format(share=share))
    words.append(_("Double frames are closed blocks. Point at a box or an arrow to read more."))
    st.html(
        '<div class="qaf-scale">'
        f"<b>{html.escape(shade.label)}</b>"
        f'<span class="ramp"><i style="background: linear-gradient(90deg, {steps})"></i>'
        f"<span><u>{ends[0]}</u><u>{ends[1]}</u><u>{ends[2]}</u></span></span>"
        f"{'' if all_known else unknown}<span>{html.escape(' '.join(words))}</span></div>"
    )
