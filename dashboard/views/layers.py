"""What became of each layer, for one run or two side by side, down to the weights and their grids."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.state import address, catalogue, rows
from dashboard.state.overrides import overrides_of
from dashboard.text import _, meaning
from dashboard.views.run import live
from dashboard.widgets import columns, network_graph, run_choice, run_shades, ui
from qaf_core.errors import QafError
from qaf_core.pipeline.results import LayerRow
from qaf_core.review import charts, histograms
from qaf_core.review.labels import solve_labels
from qaf_core.runs.listing import RunRow, list_rows
from qaf_core.runs.store.record import RunRecord
from qaf_core.text.units import bits_text, percent_text, rank_text

HISTOGRAM_COLUMNS = 4


def page() -> None:
    """The Layers page: ``?run=ID`` names the run to begin with."""
    ui.page_title(
        _("Layers"),
        _("How well each layer's weights were kept, and how its factors use their integer grids."),
    )
    runs = [row for row in list_rows(ui.open_store()) if row.done]
    left, right = st.columns(2)
    with left:
        first = run_choice.choose_run(runs, _("None of its layers is done."))
    if not runs:
        ui.empty_state(
            "stacks",
            _("No layer has been compressed yet"),
            _("Once a run has solved its first layers, they can be studied here."),
            ("explore", _("Choose a model")),
        )
        return
    if first is None:
        return
    with right:
        second = _choose_second(first, runs)
    run_choice.say_partial(first)
    shown = [first] if second is None else [first, second]
    _errors(shown)
    key, names = _layer_key(shown)
    _network(first, key, names)
    layer = _choose_layer(key, names)
    for run in shown:
        _details(run, layer, titled=len(shown) > 1)


def _choose_second(first: RunRecord, runs: Sequence[RunRow]) -> RunRecord | None:
    others = {run.id: run for run in runs if run.model == first.model and run.id != first.id}
    second = st.selectbox(
        _("Compare with"),
        list(others),
        index=None,
        format_func=run_choice.labels(tuple(others.values())).__getitem__,
        placeholder=_("No other run") if others else _("No other run of this model"),
        disabled=not others,
        key=address.choice("second", list(others), None, key=f"second-{first.id}"),
    )
    return ui.find_run(second) if second in others else None


def _errors(runs: Sequence[RunRecord]) -> None:
    left, right = st.columns([4, 6], gap="medium")
    titles = _distinct_titles(runs)
    with left:
        st.markdown(f"**{_('Error of each layer')}**", help=meaning("layer_error"))
        st.caption(ui.plain(rows.errors_sentence(runs[0])))
        series = [rows.layer_errors(run, html.escape(title)) for run, title in zip(runs, titles, strict=True)]
        st.plotly_chart(
            charts.layer_error_figure(series, dark=ui.is_dark(), _=_),
            key="layer-errors",
            config={"displayModeBar": False},
            alt=_("Error of each layer"),
        )
    with right:
        for run, title in zip(runs, titles, strict=True):
            st.markdown(f"**{ui.plain(title)}**")
            columns.table(
                live.layer_frame(run.layers), live.layer_columns(),
                most=columns.MOST_ROWS // len(runs), key=f"table-{run.id}",
            )  # fmt: skip


def _distinct_titles(runs: Sequence[RunRecord]) -> list[str]:
    titles = [ui.run_title(run) for run in runs]
    if len(set(titles)) < len(titles):
        return [
            f"{title} ({charts.method_label(run.method, _)}, {run.id[-6:]})"
            for run, title in zip(runs, titles, strict=True)
        ]
    return titles


def _layer_key(runs: Sequence[RunRecord]) -> tuple[str, list[str]]:
    """The key of the layer that is looked into, and what it may be."""
    names = list(dict.fromkeys(row.name for run in runs for row in run.layers))
    worst = max(runs[0].layers, key=lambda row: row.relative_error or 0.0).name
    return address.choice("layer", names, worst, key=f"layer-of-{runs[0].id}"), names


def _network(run: RunRecord, key: str, names: Sequence[str]) -> None:
    """The graph of a run's network, the chosen layer marked."""
    st.subheader(_("The network"), anchor=False)
    missing = run_choice.missing_model(run)
    if missing is not None:
        st.info(ui.plain(missing), icon=":material/account_tree:")
        return

    def choose(layer: str) -> None:
        if layer in names:
            st.session_state[key] = layer

    try:
        given = overrides_of(run.request)
        source = catalogue.open_model(run.model, ui.workspace(), given)
        inventory = catalogue.inventory_of(source, ui.workspace(), given)
        topology = catalogue.topology_of(source, ui.workspace(), given)
    except QafError as error:
        ui.say_error(error)
        return
    network_graph.show(
        network_graph.Shown(
            key="layers-graph", inventory=inventory, topology=topology, plan=run.plan_done,
            more=run_shades.of_run(run), layer=st.session_state[key], choose=choose, shade="error",
        )
    )  # fmt: skip


def _choose_layer(key: str, names: Sequence[str]) -> str:
    st.subheader(_("Inside a layer"), anchor=False)
    return st.selectbox(_("Layer"), names, key=key, help=_("The one with the largest error is shown first."))


def _details(run: RunRecord, layer: str, *, titled: bool) -> None:
    row = next((row for row in run.layers if row.name == layer), None)
    if titled:
        st.markdown(f"**{ui.plain(ui.run_title(run))}**")
    if row is None:
        st.caption(_("This run has not compressed this layer."))
        return
    _facts(row)
    kept = ui.open_store().layer_details(run.id, layer).get("histograms") or {}
    if not kept:
        st.caption(_("No histograms were kept for this layer."))
        return
    _histograms(run.id, kept)
    _solve_course(run, layer)


def _facts(row: LayerRow) -> None:
    labels, ends = live.structure_labels(), solve_labels(_)
    parts = [labels.get(row.structure, row.structure)]
    if rank := rank_text(row.rank):
        parts.append(_("rank {rank}").format(rank=rank))
    if bits := bits_text(row.bits):
        parts.append(_("{bits} bits").format(bits=bits))
    if row.relative_error is not None:
        parts.append(_("error {error}").format(error=percent_text(row.relative_error)))
    if row.output_error is not None:
        error = percent_text(math.sqrt(max(0.0, row.output_error)))
        parts.append(_("error of its output {error}").format(error=error))
    parts.append(ends.get(row.status, row.status))
    st.caption(" · ".join(parts))


def _histograms(run_id: str, kept: Mapping[str, Any]) -> None:
    places = st.columns(min(HISTOGRAM_COLUMNS, len(kept)), gap="small")
    for position, (name, histogram) in enumerate(kept.items()):
        with places[position % len(places)]:
            title, help_text = _factor_title(name), _factor_help(name)
            # Factors kept in floating point have values, not codes.
            draw = (
                histograms.weight_histogram_figure
                if "edges" in histogram
                else histograms.code_histogram_figure
            )
            figure = draw(histogram, dark=ui.is_dark(), _=_)
            st.markdown(f"**{ui.plain(title)}**", help=help_text)
            st.plotly_chart(
                figure, key=f"histogram-{run_id}-{name}", config={"displayModeBar": False}, alt=title
            )


def _factor_title(name: str) -> str:
    titles = {
        "weight": _("Original weights"),
        "A": _("Output factor A"),
        "B": _("Input factor B"),
        "C": _("Kernel factor C"),
        "core": _("Core"),
        "U_out": _("Output factor"),
        "U_in": _("Input factor"),
        "W": _("Weights on the grid"),
    }
    return titles.get(name, _("Factor {name}").format(name=name))


def _factor_help(name: str) -> str | None:
    texts = {
        "A": _("Mixes the components into the output channels: the last small layer."),
        "B": _("Turns the input channels into the components: the first small layer."),
        "C": _("One small image filter per component: the middle layer."),
    }
    return texts.get(name)


def _solve_course(run: RunRecord, layer: str) -> None:
    events = ui.open_store().events_since(run.id, kinds=("iteration",), layer=layer)
    iterations = [stored.event.data for stored in events]
    if not iterations:
        return
    with st.expander(_("How the solver got there"), icon=":material/show_chart:"):
        left, right = st.columns(2, gap="medium")
        dark = ui.is_dark()
        left.plotly_chart(
            charts.convergence_figure(iterations, dark=dark, _=_),
            key=f"course-{run.id}",
            config={"displayModeBar": False},
            alt=_("Layer error by iteration"),
        )
        right.plotly_chart(
            charts.residual_figure(iterations, dark=dark, _=_),
            key=f"course-residuals-{run.id}",
            config={"displayModeBar": False},
            alt=_("Residuals by iteration"),
        )
