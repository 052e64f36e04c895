"""What can be compressed here, and where each network's cost and weak points are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import address, catalogue
from dashboard.text import _, listed
from dashboard.views.models import add_model, check_model, uploads
from dashboard.widgets import columns, network_graph, run_choice, run_shades, ui
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import QafError
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.plan.cost import original_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.removal import remove_registered
from qaf_core.text.units import count_text, percent_text, size_text, with_prefix


def page() -> None:
    """The Models page: ``?model=ID`` names the model to begin with."""
    ui.page_title(
        _("Models"),
        _("What is ready to be compressed, what this workspace holds, and where each network is heavy."),
    )
    sources = (*catalogue.shipped_models(), *catalogue.registered_models(ui.workspace()))
    added = st.session_state.pop("model-added", None)
    if added:
        text = _("{model} is ready to be compressed.").format(model=ui.plain(added))
        st.toast(text, icon=":material/check_circle:")
    source = _choose(sources)
    _study(source)
    st.subheader(_("Add your own"), anchor=False)
    add_model.show()
    uploads.show(catalogue.registered_models(ui.workspace()))


def _choose(sources: Sequence[ModelSource]) -> ModelSource:
    ids = [source.id for source in sources]
    arrived = address.values_of("model") or address.going_back("model")
    key = address.choice("model", ids, ids[0], key="model-chosen")
    selection = {"selection": {"rows": [ids.index(st.session_state[key])], "columns": [], "cells": []}}
    if arrived:
        st.session_state["model-list"] = selection
    chosen = columns.table(
        pd.DataFrame([_row(source) for source in sources]),
        _columns(),
        most=len(sources),
        key="model-list",
        on_select="rerun",
        selection_mode="single-row-required",
        selection_default=selection,
    )
    source = sources[chosen.selection.rows[0] if chosen.selection.rows else 0]
    if source.id != st.session_state[key]:
        st.session_state[key] = source.id
        address.choice("model", ids, ids[0], key=key)
    return source


def _row(source: ModelSource) -> dict[str, Any]:
    metric = source.card.get("metric") or {}
    inventory = source.card.get("inventory")
    cost = original_cost(catalogue.inventory_of(source, ui.workspace())) if inventory else None
    return {
        "model": source.id,
        "title": listed(filter(None, catalogue.title_of(source))),
        "task": task_label(source.task),
        "classes": len(source.classes),
        "input": " × ".join(str(n) for n in source.input_shape[1:]),
        "accuracy": 100 * metric["value"] if metric else None,
        "size": size_text(cost.size_bytes) if cost else None,
        "compute": with_prefix(cost.macs, "MACs") if cost else None,
        "origin": _("shipped") if source.shipped else _("yours"),
    }


def task_label(task: str) -> str:
    """What a network does, in the user's language."""
    labels = {
        "classification": _("Classification"),
        "segmentation": _("Segmentation"),
        "detection": _("Detection"),
    }
    return labels.get(task, task)


def _columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "model": column.TextColumn(_("Model"), width=160),
        "title": column.TextColumn(_("Description"), width=250),
        "task": column.TextColumn(_("Task")),
        "classes": column.NumberColumn(_("Classes"), width=60),
        "input": column.TextColumn(_("Input, px"), width=90),
        "accuracy": column.NumberColumn(
            _("Measured"), format="%.1f %%", help=_("Of the original, by the measure of its task.")
        ),
        "size": columns.text(_("Size"), "baseline"),
        "compute": columns.text(_("Compute"), "macs"),
        "origin": column.TextColumn(_("From"), width=80),
    }


def _remove(source: ModelSource) -> None:
    """Take a model off, with what was uploaded for it alone."""
    try:
        remove_registered(ui.workspace(), source.id)
    except QafError as error:
        ui.say_error(error)
        return
    st.rerun()


def _study(source: ModelSource) -> None:
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    left.subheader(ui.plain(listed(filter(None, catalogue.title_of(source)))), anchor=False)
    with right, st.container(horizontal=True, horizontal_alignment="right"):
        if st.button(_("Compress it"), type="primary", icon=":material/arrow_forward:", key="compress"):
            ui.go_to("explore", model=source.id)
        check_model.button(source)
        if source.registered:
            with st.popover(_("Remove"), icon=":material/delete:"):
                st.markdown(
                    _(
                        "Takes {model} off the list, and deletes what was uploaded for it alone. Runs stay, "
                        "and what they used."
                    ).format(model=f"**{ui.plain(source.id)}**")
                )
                if st.button(_("Remove it"), key="remove-model"):
                    _remove(source)
    try:
        with st.spinner(_("Looking into the model…"), show_time=True):
            inventory = catalogue.inventory_of(source, ui.workspace())
    except QafError as error:
        ui.say_error(error)
        return
    _facts(source, inventory)
    check_model.show(source)
    draw_network(source, inventory)
    with st.expander(_("All layers"), icon=":material/table_rows:"):
        columns.table(
            pd.DataFrame([_layer_row(info) for info in inventory]), _layer_columns(), placeholder=""
        )


def _facts(source: ModelSource, inventory: Sequence[LayerInfo]) -> None:
    cost = original_cost(inventory)
    able = [info for info in inventory if info.eligible]
    share = sum(info.params for info in able) / max(1, sum(info.params for info in inventory))
    st.markdown(
        _(
            "{params} parameters in {layers} layers · {size} as floating point · {macs} per image · "
            "{able} layers, with {share} of the parameters, can be factorized"
        ).format(
            params=count_text(cost.params),
            layers=len([info for info in inventory if info.planned]),
            size=size_text(cost.size_bytes),
            macs=with_prefix(cost.macs, "MACs"),
            able=len(able),
            share=percent_text(share),
        )
    )
    if len(source.classes) <= 40:
        st.caption(_("Classes: {classes}.").format(classes=ui.plain(listed(source.classes))))


def draw_network(source: ModelSource, inventory: Sequence[LayerInfo]) -> None:
    """The network as it is, or as one of its runs left it."""
    runs = {row.id: row for row in list_rows(ui.open_store(), model=source.id) if row.done}
    run = None
    if runs:
        labels = run_choice.labels(tuple(runs.values()))
        chosen = st.selectbox(
            _("Compressed by"),
            ["", *runs],
            format_func=lambda run_id: labels[run_id] if run_id else _("No run: the network as it is"),
            key=address.choice("compressed", ["", *runs], "", key=f"map-run-{source.id}"),
            help=_("After a run, the drawing also shows what each layer has become and lost."),
        )
        run = ui.find_run(chosen) if chosen else None
    network_graph.show(
        network_graph.Shown(
            key="model-graph",
            inventory=inventory,
            topology=catalogue.topology_of(source, ui.workspace()),
            plan=None if run is None else run.plan_done,
            more={} if run is None else run_shades.of_run(run),
        )
    )


def _layer_row(info: LayerInfo) -> dict[str, Any]:
    able = [name for name in info.structures if name in STRUCTURES]
    return {
        "name": info.name,
        "kind": info.kind,
        "shape": " × ".join(str(n) for n in info.weight_shape),
        "params": info.params,
        "macs": with_prefix(info.macs, "") if info.macs else None,
        "becomes": listed(able),
        "reason": _(info.skip_reason) if info.skip_reason else "",
    }


def _layer_columns() -> dict[str, Any]:
    column = st.column_config
    return {
        "name": columns.text(_("Layer"), "layer"),
        "kind": column.TextColumn(_("Kind")),
        "shape": column.TextColumn(_("Weight")),
        "params": columns.number(_("Parameters"), "localized", "parameters"),
        "macs": columns.text(_("MACs"), "macs"),
        "becomes": columns.text(_("Can become"), "structure"),
        "reason": column.TextColumn(_("Why not more"), width="large"),
    }
