"""What shapes a whole plan: method, presets and the controls that set all layers at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.state import address, expectations, jobs, sheets
from dashboard.text import _, meaning
from dashboard.views.explore.choose import Choice
from dashboard.widgets import ui
from qaf_core.errors import QafError
from qaf_core.factorization.effort import Effort
from qaf_core.factorization.options import METHODS, Method
from qaf_core.factorization.structures import FACTORIZED, STRUCTURES
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.rules import BY_OPERATIONS, KERNEL_STRUCTURES, PRESETS, plan_for_ratio
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import RunStatus
from qaf_core.quantization.grid import ACTIVATION_GRID, BITS_ACCEPTED, FLOAT, GRIDS
from qaf_core.review.charts import method_label
from qaf_core.runs.store.request import JobRequest, RunRequest, SensitivityRequest

FIRST_PRESET = "balanced"
PLAN_NAME = "plan"  # of the address
TAKEN = "taken"
ACTIVATION_BITS = (ACTIVATION_GRID.bits, FLOAT.bits)
OFFERED = KERNEL_STRUCTURES
RESTORED = ("ratio", "bits", "structure")  # kept with a run: what its plan was made from before edits
LEAST_RATIO, LARGEST_RATIO = 1.0, 8.0
PRESET_DROPS = {"gentle": 0.003, "balanced": 0.01, "aggressive": 0.03}  # of the metric, expected


def use(request: RunRequest, plan: Plan) -> None:
    """Begin from the plan of an earlier run, before the controls are bound."""
    state, controls = st.session_state, request.controls or {}
    state["method"], state["activation-bits"] = request.method, plan.activation_bits
    bits, structure, ratio = controls.get("bits"), controls.get("structure"), controls.get("ratio")
    # Of a plan made otherwise the controls take what most rows have; the table marks the others.
    common_bits = Counter(row.bits for row in plan.layers if row.bits in GRIDS).most_common(1)
    common = Counter(row.structure for row in plan.layers if row.structure in FACTORIZED).most_common(1)
    state["bits"] = bits if bits in GRIDS else common_bits[0][0] if common_bits else 8
    if structure in OFFERED or common:
        state["structure"] = structure if structure in OFFERED else common[0][0]
    if isinstance(ratio, int | float) and LEAST_RATIO <= ratio <= LARGEST_RATIO:
        state["ratio"] = float(ratio)
    sheets.fill(request.model, plan, {})


def request_of(choice: Choice) -> SensitivityRequest:
    """What is asked to explore the chosen model."""
    return expectations.request_for(
        choice.source.id,
        choice.overrides,
        choice.data,
        choice.calibration,
        st.session_state["activation-bits"],
    )


def ask_plan(place: str, request: JobRequest) -> None:
    """Have a plan sought; what is found fills the table, even if it is what an earlier search found."""
    jobs.remember(place, ui.open_store().ask(request))
    st.session_state.pop(f"taken-{place}", None)


def take_search_result(choice: Choice, place: str, kind: str) -> Mapping[str, Any] | None:
    """What a search found, once its plan is in the table; None, and how it stands is shown, before that.

    Args:
        choice: The model.
        place: Of the search on the page, one for each model.
        kind: Of the job.
    """
    named = address.values_of(place)
    if TAKEN in named:  # the address tells what became of its plan since
        st.session_state[f"taken-{place}"] = named[0]
    job = jobs.recall(ui.open_store(), place, kind)
    ui.job_at_work(job, _("Searching, {time} so far. You may look at other pages meanwhile."))
    if job is None or job.status != RunStatus.COMPLETED:
        return None
    if st.session_state.get(f"taken-{place}") != job.id:
        take_plan(choice, Plan.from_dict(dict(job.result["plan"])))
        st.session_state[f"taken-{place}"] = job.id
        st.rerun(scope="app")
    address.set_values(place, job.id, TAKEN)
    return job.result


def take_plan(choice: Choice, plan: Plan) -> None:
    """Fill the table with a plan made elsewhere; the bulk controls fill it anew."""
    sheets.fill(choice.source.id, plan)


def bind_settings() -> None:
    """Keep the controls' values, also while another page is shown; the address names them."""
    sheets.restore_controls()
    ratio, bits = PRESETS[FIRST_PRESET]
    address.number("ratio", ratio, LEAST_RATIO, LARGEST_RATIO, key="ratio")
    address.choice("bits", tuple(GRIDS), bits, key="bits")
    address.choice("activation-bits", ACTIVATION_BITS, ACTIVATION_BITS[0], key="activation-bits")
    address.choice("structure", OFFERED, "cp", key="structure")
    address.choice("method", METHODS, Method.JOINT, key="method")


def follow_plan(model: str) -> None:
    """Take up the plan that a followed address names."""
    none_named = address.going_back(PLAN_NAME)
    for sheet_id in address.values_of(PLAN_NAME):
        none_named = False
        if not sheets.take_sheet(ui.workspace(), model, sheet_id):
            address.fault(PLAN_NAME, sheet_id)
    if none_named:
        sheets.fill(model, None, {})


def name_plan(model: str) -> None:
    """Have the address name the plan, and remember the step to it."""
    sheets.note_step(model)
    kept = sheets.keep_sheet(ui.workspace(), model)
    address.set_values(PLAN_NAME, *([kept] if kept else []))


def choose_method(choice: Choice) -> None:
    captions = [
        _("Factors found directly on the integer grid, then fitted to the layer's output."),
        _("The published joint method (arXiv 2308.04595) as described, to compare with."),
        _("Factorize in floating point, round to integers afterwards: the usual way."),
        _("No factorization: only careful rounding of the weights. Strong above 3 bits."),
    ]
    columns = st.columns(4, gap="small")
    for column, method, caption in zip(columns, METHODS, captions, strict=True):
        chosen = st.session_state["method"] == method
        with column, st.container(key=f"chosen-{method}" if chosen else f"other-{method}", gap=None):
            st.button(
                method_label(method, _),
                key=f"use-{method}",
                width="stretch",
                icon=":material/check_circle:" if chosen else None,
                on_click=_set_method,
                args=(method, choice.source.id),
            )
            st.caption(caption)


def _set_method(method: str, model: str) -> None:
    before = st.session_state["method"]
    st.session_state["method"] = method
    if Method.DENSE in (before, method) and before != method:
        sheets.fill(model, None)


def bulk_controls(choice: Choice, custom: Container[str] = ()) -> None:
    """The controls that set all layers at once.

    Args:
        choice: The model.
        custom: What differs in rows from what they say: ``structure``, ``rank``, ``bits``.
    """
    dense = st.session_state["method"] == Method.DENSE
    model = choice.source.id
    columns = st.columns([2.9, 1.9, 1.9, 1.3, 1.5, 1.2], gap="small", vertical_alignment="bottom")
    with columns[0]:
        _preset_control(choice, bool(custom))
    with columns[1]:
        _ratio_control(model, dense, "rank" in custom)
    with columns[2]:
        _bits_control(model, "bits" in custom)
    with columns[3]:
        _activation_control(model)
    with columns[4]:
        _structure_control(model, dense, "structure" in custom)
    with columns[5]:
        _reset_button(model)


def _label(name: str, is_custom: bool) -> str:
    """A control's name, and that rows differ from what it says."""
    return _("{name} · Custom").format(name=name) if is_custom else name


def _preset_control(choice: Choice, is_custom: bool) -> None:
    labels = {"gentle": _("Gentle"), "balanced": _("Balanced"), "aggressive": _("Aggressive")}
    now = (st.session_state["ratio"], st.session_state["bits"])
    preset = next((name for name, values in PRESETS.items() if values == now), None)
    with st.container(gap="xsmall", key="presets"):
        st.markdown(_label(_("Preset"), is_custom), help=_preset_help(labels))
        # Buttons, as they hold no value: one that the browser still sends of a control of a moment ago would
        # be taken for a click, and what was typed meanwhile be lost.
        for column, name in zip(st.columns(len(PRESETS), gap="xsmall"), PRESETS, strict=True):
            chosen = name == preset and not is_custom
            with column, st.container(key=f"chosen-{name}" if chosen else f"other-{name}"):
                st.button(
                    labels[name], key=f"preset-{name}", width="stretch", on_click=_use_preset,
                    args=(choice, name),
                )  # fmt: skip


def _ratio_control(model: str, dense: bool, is_custom: bool) -> None:
    st.slider(
        _label(_("Reduction") if is_custom else _("Parameter reduction"), is_custom),
        LEAST_RATIO,
        LARGEST_RATIO,
        step=0.1,
        key="ratio",
        format="%.1f×",
        disabled=dense,
        on_change=sheets.follow_controls,
        args=(model,),
        help=meaning("reduction"),
    )


def _bits_control(model: str, is_custom: bool) -> None:
    st.select_slider(
        _label(_("Weight bits"), is_custom),
        tuple(GRIDS),
        key="bits",
        on_change=sheets.follow_controls,
        args=(model,),
        help=meaning("bits") + " " + _("Bits per stored weight: {accepted}.").format(accepted=BITS_ACCEPTED),
    )


def _activation_control(model: str) -> None:
    st.selectbox(
        _("Activation bits"),
        ACTIVATION_BITS,
        key="activation-bits",
        on_change=sheets.follow_controls,
        args=(model,),
        help=meaning("activation_bits"),
    )


def _structure_control(model: str, dense: bool, is_custom: bool) -> None:
    names = {name: _(STRUCTURES[name].label) for name in FACTORIZED} | {BY_OPERATIONS: _("CP or Tucker-2")}
    st.selectbox(
        _label(_("Structure"), is_custom),
        OFFERED,
        format_func=names.__getitem__,
        key="structure",
        disabled=dense,
        on_change=sheets.follow_controls,
        args=(model,),
        help=structure_help(),
    )


def _reset_button(model: str) -> None:
    st.button(
        _("Reset"),
        icon=":material/restart_alt:",
        key="reset-plan",
        on_click=reset,
        args=(model,),
        width="stretch",
        help=_("Back to the balanced preset, without edits."),
    )


def _preset_help(labels: dict[str, str]) -> str:
    lines = "\n".join(
        "- "
        + _("**{name}**: {ratio:g} times fewer parameters, {bits} bits").format(
            name=labels[name], ratio=ratio, bits=bits
        )
        for name, (ratio, bits) in PRESETS.items()
    )
    drops = ", ".join(f"{100 * drop:g}" for drop in PRESET_DROPS.values())
    text = _("Of an explored model: the smallest plan that is expected to lose at most {drops} points.")
    return f"{lines}\n\n{text.format(drops=drops)}"


def structure_help() -> str:
    """What each structure is, one line each, for a tooltip."""
    names = {name: STRUCTURES[name].label for name in FACTORIZED} | {"dense": "Dense", KEEP: "Keep"}
    lines = [f"- **{_(label)}**: {meaning(name)}" for name, label in names.items()]
    either = _("**CP or Tucker-2**: CP, or Tucker-2 where CP needs more operations than the layer itself.")
    return "\n".join([meaning("structure"), "", *lines, f"- {either}"])


def _use_preset(choice: Choice, chosen: str) -> None:
    """One ratio and one bit-width; of an explored model a point on its expected front."""
    st.session_state["ratio"], st.session_state["bits"] = PRESETS[chosen]
    sheets.fill(choice.source.id, None)
    if st.session_state["method"] != Method.JOINT or choice.obstacle is not None:
        return
    exploration = expectations.known(ui.open_store(), request_of(choice))
    rows = None if exploration is None else expectations.smallest_within(exploration, PRESET_DROPS[chosen])
    if rows is not None:
        bits = st.session_state["activation-bits"]
        take_plan(choice, Plan(model=choice.source.id, layers=rows, activation_bits=bits))


def reset(model: str) -> None:
    st.session_state["ratio"], st.session_state["bits"] = PRESETS[FIRST_PRESET]
    st.session_state["activation-bits"], st.session_state["structure"] = ACTIVATION_BITS[0], "cp"
    sheets.fill(model, None)


def plan_of_controls(choice: Choice, inventory: Sequence[LayerInfo]) -> Plan | None:
    """The plan the bulk controls stand for; None, with the reason shown, where they stand for none."""
    state = st.session_state
    try:
        return plan_for_ratio(
            inventory,
            model=choice.source.id,
            ratio=state["ratio"],
            bits=state["bits"],
            activation_bits=state["activation-bits"],
            structure=state["structure"],
            method=state["method"],
        )
    except QafError as error:
        ui.say_error(error)
        return None


def base_plan(choice: Choice, reference: Plan) -> Plan:
    """The plan the table starts from: one that fills it, or that of the bulk controls."""
    kept = sheets.sheet_of(choice.source.id).base
    if kept is None:
        return reference
    if {row.name for row in kept.layers} == {row.name for row in reference.layers}:
        return kept
    text = _("The earlier plan names other layers than this model has: the table starts from the controls.")
    st.warning(text, icon=":material/warning:")
    sheets.fill(choice.source.id, None, {})
    return reference


def effort_dial(key: str, explained: str, **options: Any) -> Effort:
    """The dial from quick to thorough."""
    names = {
        Effort.QUICK: _("Quick"),
        Effort.STANDARD: _("Standard"),
        Effort.THOROUGH: _("Thorough"),
    }
    chosen = st.segmented_control(
        _("Effort"),
        list(Effort),
        required=True,
        key=address.choice(key, list(Effort), Effort.STANDARD, key=key),
        format_func=names.__getitem__,
        help=explained,
        **options,
    )
    return Effort(chosen)
