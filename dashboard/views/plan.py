"""The second half of Explore: bulk controls, the table of layers, the predicted cost, and Run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from dashboard import common, planning
from dashboard.planning import Draft
from dashboard.text import _, plural
from dashboard.views import live
from dashboard.views.choose import Choice
from dashboard.views.tradeoffs import bops_help
from qaf_core.errors import QafError
from qaf_core.network.cost import Cost
from qaf_core.network.inventory import LayerInfo
from qaf_core.network.plan import PRESETS, Plan, plan_for_ratio
from qaf_core.review.units import MISSING, percent_text, size_text, times_text, with_prefix
from qaf_core.runs.request import RunRequest

FIRST_PRESET = "balanced"
METHODS = ("joint", "paper", "sequential", "dense")
STRUCTURES = ("cp", "tucker2", "auto")
BITS = (2, 3, 4, 5, 6, 7, 8, 32)
LONGEST_TABLE_ROWS = 14
BASES_KEY, DRAFTS_KEY, VERSION_KEY = "plan-bases", "plan-drafts", "plan-version"
SETTINGS = ("ratio", "bits", "activation-bits", "structure", "method")


@st.fragment
def plan_and_run(choice: Choice, inventory: tuple[LayerInfo, ...]) -> None:
    """The plan of the chosen model; an edit draws only this part of the page again."""
    _first_settings()
    st.subheader(_("2 · Plan"), anchor=False)
    _method(choice, inventory)
    _bulk(choice, inventory)
    _take_up_edits(choice)
    base = _base_plan(choice, inventory)
    if base is None:
        return
    key = _editor_key(choice)
    edits = (st.session_state.get(key) or {}).get("edited_rows") or {}
    draft = planning.make_draft(inventory, base, edits, st.session_state["ratio"])
    _prediction(choice, inventory, draft)
    _table(inventory, draft, key)
    if edits:
        st.session_state[DRAFTS_KEY][choice.source.id] = draft.plan


def _editor_key(choice: Choice) -> str:
    return f"layers-{choice.source.id}-{st.session_state[VERSION_KEY]}"


def _take_up_edits(choice: Choice) -> None:
    """After a look at another page or model the table's own memory is gone: begin from the plan as it was edited."""
    model = choice.source.id
    if _editor_key(choice) not in st.session_state and model in st.session_state[DRAFTS_KEY]:
        st.session_state[BASES_KEY] = {
            **st.session_state[BASES_KEY],
            model: st.session_state[DRAFTS_KEY].pop(model),
        }
        st.session_state[VERSION_KEY] += 1


def use(request: RunRequest, plan: Plan) -> None:
    """Begin from the plan of an earlier run."""
    _first_settings()
    st.session_state["method"] = request.method
    st.session_state["activation-bits"] = plan.activation_bits
    st.session_state[BASES_KEY] = {**st.session_state.get(BASES_KEY, {}), request.model: plan}
    st.session_state[VERSION_KEY] += 1


def _first_settings() -> None:
    ratio, bits = PRESETS[FIRST_PRESET]
    first = {"ratio": ratio, "bits": bits, "activation-bits": 8, "structure": "cp", "method": "joint"}
    for name in SETTINGS:
        # Written back on every run: the widgets' own memory ends when another page is shown.
        st.session_state[name] = st.session_state.get(name, first[name])
    st.session_state.setdefault(VERSION_KEY, 0)
    st.session_state.setdefault(BASES_KEY, {})
    st.session_state.setdefault(DRAFTS_KEY, {})


def _method(choice: Choice, inventory: Sequence[LayerInfo]) -> None:
    captions = [
        _("Factors found directly on the integer grid, then fitted to the layer's output. The one to use."),
        _("The published joint method (arXiv 2308.04595) as described, to compare with."),
        _("Factorize in floating point, round to integers afterwards: the usual way."),
        _("No factorization: only careful rounding of the weights. Strong above 3 bits."),
    ]
    columns = st.columns(4, gap="small")
    names = {"joint": _("Joint"), "paper": _("Paper"), "sequential": _("Sequential"), "dense": _("Dense")}
    for column, method, caption in zip(columns, METHODS, captions, strict=True):
        chosen = st.session_state["method"] == method
        with column, st.container(key=f"chosen-{method}" if chosen else f"other-{method}", gap=None):
            st.button(
                names[method],
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
    if "dense" in (before, method) and before != method:
        _start_over(model)


def _bulk(choice: Choice, inventory: Sequence[LayerInfo]) -> None:
    dense = st.session_state["method"] == "dense"
    model = choice.source.id
    labels = {"gentle": _("Gentle"), "balanced": _("Balanced"), "aggressive": _("Aggressive")}
    columns = st.columns([2.4, 2.2, 2.2, 1.6, 1.9], gap="small", vertical_alignment="bottom")
    now = (st.session_state["ratio"], st.session_state["bits"])
    preset = next((name for name, values in PRESETS.items() if values == now), None)
    with columns[0]:
        st.session_state["preset"] = preset
        st.segmented_control(
            _("Preset"),
            list(PRESETS),
            format_func=labels.__getitem__,
            key="preset",
            on_change=_use_preset,
            args=(model,),
            help=_preset_help(labels),
        )
    with columns[1]:
        st.slider(
            _("Parameter reduction"),
            1.0,
            8.0,
            step=0.1,
            key="ratio",
            format="%.1f×",
            disabled=dense,
            on_change=_start_over,
            args=(model,),
            help=_(
                "How many times fewer parameters each covered layer gets. It decides the rank: the number of "
                "components a layer is made of. The first convolution and the classifier are not factorized."
            ),
        )
    with columns[2]:
        st.select_slider(
            _("Weight bits"),
            BITS,
            key="bits",
            on_change=_start_over,
            args=(model,),
            help=_("Bits per stored weight: 2 to 8 bits are integers, 32 is floating point."),
        )
    with columns[3]:
        st.selectbox(
            _("Activation bits"),
            (8, 32),
            key="activation-bits",
            on_change=_start_over,
            args=(model,),
            help=_("Bits of the numbers that flow between layers: 8, or 32 for floating point."),
        )
    with columns[4]:
        names = {"cp": _("CP"), "tucker2": _("Tucker-2"), "auto": _("Automatic")}
        st.selectbox(
            _("Structure"),
            STRUCTURES,
            format_func=names.__getitem__,
            key="structure",
            disabled=dense,
            on_change=_start_over,
            args=(model,),
            help=structure_help(),
        )


def _preset_help(labels: dict[str, str]) -> str:
    return "\n".join(
        "- "
        + _("**{name}**: {ratio:g} times fewer parameters, {bits} bits").format(
            name=labels[name], ratio=ratio, bits=bits
        )
        for name, (ratio, bits) in PRESETS.items()
    )


def structure_help() -> str:
    """What each structure is, one line each, for a tooltip."""
    return "\n".join(
        (
            "- " + _("**CP**: a 3×3 convolution becomes three small layers; smallest."),
            "- " + _("**Tucker-2**: two 1×1 layers around a smaller 3×3; often faster."),
            "- " + _("**SVD**: two small layers, for 1×1 convolutions and linear layers."),
            "- " + _("**Dense**: quantized, not factorized. **Keep**: left as it is."),
        )
    )


def _use_preset(model: str) -> None:
    chosen = st.session_state.get("preset")
    if chosen in PRESETS:
        st.session_state["ratio"], st.session_state["bits"] = PRESETS[chosen]
        _start_over(model)


def _reset(model: str) -> None:
    st.session_state["ratio"], st.session_state["bits"] = PRESETS[FIRST_PRESET]
    st.session_state["activation-bits"], st.session_state["structure"] = 8, "cp"
    _start_over(model)


def _start_over(model: str) -> None:
    """Forget the edits: the bulk controls make the plan anew."""
    for key in (BASES_KEY, DRAFTS_KEY):
        st.session_state[key] = {k: v for k, v in st.session_state[key].items() if k != model}
    st.session_state[VERSION_KEY] += 1


def _base_plan(choice: Choice, inventory: Sequence[LayerInfo]) -> Plan | None:
    """The plan the table starts from: kept from before, or made from the bulk controls."""
    state = st.session_state
    kept = state[BASES_KEY].get(choice.source.id)
    if kept is not None and {row.name for row in kept.layers} == {
        info.name for info in inventory if info.planned
    }:
        return kept
    try:
        plan = plan_for_ratio(
            inventory,
            model=choice.source.id,
            ratio=state["ratio"],
            bits=state["bits"],
            activation_bits=state["activation-bits"],
            structure=state["structure"],
            method=state["method"],
        )
    except QafError as error:
        st.error(_(str(error)), icon=":material/error:")
        return None
    state[BASES_KEY] = {**state[BASES_KEY], choice.source.id: plan}
    return plan


def _prediction(choice: Choice, inventory: tuple[LayerInfo, ...], draft: Draft) -> None:
    before, after = planning.cost_before(inventory), planning.preview_cost(inventory, draft.plan)
    columns = st.columns([1, 1, 1, 1, 1.05], gap="small")
    with columns[0]:
        common.metric_card(
            _("Size"),
            size_text(after.size_bytes),
            _("{times} smaller than {before}").format(
                times=times_text(before.size_bytes, after.size_bytes), before=size_text(before.size_bytes)
            ),
            _("The file: integer weights packed at their bits, with scales and everything else."),
        )
    with columns[1]:
        common.metric_card(
            _("Bit-operations"),
            percent_text(after.bops / before.bops) if before.bops else MISSING,
            f"{with_prefix(before.bops, 'BOPs')} → {with_prefix(after.bops, 'BOPs')}",
            bops_help(),
        )
    with columns[2]:
        common.metric_card(
            _("Multiplications"),
            percent_text(after.macs / before.macs, 0) if before.macs else MISSING,
            f"{with_prefix(before.macs, 'MACs')} → {with_prefix(after.macs, 'MACs')}",
            _("Multiply-accumulate operations (MACs) per image, whatever their bits."),
        )
    with columns[3]:
        _memory(before, after)
    with columns[4]:
        _run_box(choice, draft)


def _memory(before: Cost, after: Cost) -> None:
    common.metric_card(
        _("Memory for activations"),
        size_text(after.peak_activation_bytes),
        _("was {before}").format(before=size_text(before.peak_activation_bytes)),
        _(
            "The most that any one layer reads and writes for one image. Factorized layers can be wide inside, so this "
            "can rise."
        ),
    )


def _run_box(choice: Choice, draft: Draft) -> None:
    reason = run_obstacle(choice, draft)
    with st.container(key="run-box", height="stretch", vertical_alignment="center", gap="small"):
        name = st.text_input(
            _("Name of the run"),
            placeholder=_("Name of the run (optional)"),
            key="run-name",
            max_chars=80,
            label_visibility="collapsed",
        )
        if st.button(
            _("Run"),
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            key="start-run",
            disabled=reason is not None,
            help=reason,
        ):
            _start(choice, draft, name)
    if reason:
        st.caption(":material/block: " + reason)


def run_obstacle(choice: Choice, draft: Draft) -> str | None:
    """Why Run cannot be pressed, in words, or None."""
    if draft.problems:
        first = next(iter(draft.problems))
        return (
            plural(
                "{count} row has a problem, see the column Check:",
                "{count} rows have a problem, first:",
                len(draft.problems),
            )
            + f" {first}"
        )
    if choice.obstacle:
        return choice.obstacle
    if all(row.structure == "keep" for row in draft.layers):
        return _("Nothing would be compressed: every layer is kept as it is.")
    return None


def _start(choice: Choice, draft: Draft, name: str) -> None:
    try:
        request = RunRequest(
            model=choice.source.id,
            weights=choice.weights,
            data=choice.data,
            calibration=choice.calibration,
            method=st.session_state["method"],
            plan=draft.plan.to_dict(),
            name=name.strip() or None,
        )
        run_id = common.open_store().create_run(request)
    except QafError as error:
        st.error(_(str(error)), icon=":material/error:")
        return
    common.go_to("run", run=run_id)


def _table(inventory: Sequence[LayerInfo], draft: Draft, key: str) -> None:
    kinds = {"conv2d": _("Convolution"), "depthwise": _("Depthwise convolution"), "linear": _("Linear")}
    frame = planning.plan_frame(inventory, draft, kinds)
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    with left, st.container(gap=None):
        st.markdown("**" + plural("{count} layer", "{count} layers", len(frame)) + "**")
        st.caption(
            _(
                "Double-click a cell under Structure, Rank or Bits to change it. "
                "The controls above fill all rows anew."
            )
        )
    with right, st.container(horizontal=True, horizontal_alignment="right"):
        st.button(
            _("Reset"),
            icon=":material/restart_alt:",
            key="reset-plan",
            on_click=_reset,
            args=(draft.base.model,),
            help=_("Back to the balanced preset, without edits."),
        )
    rows = min(len(frame), LONGEST_TABLE_ROWS)
    st.data_editor(
        frame,
        key=key,
        hide_index=True,
        width="stretch",
        height=35 * (rows + 1) + 3,
        column_config=_columns(),
        disabled=["layer", "kind", "shape", "params", "bops", "size_after", "bops_after", "check"],
    )
    if draft.problems:
        lines = "\n".join(f"- `{name}`: {'; '.join(messages)}" for name, messages in draft.problems.items())
        st.error(
            _("These rows cannot be used as they are; the prediction counts them as they were before.")
            + "\n\n"
            + lines,
            icon=":material/error:",
        )


def _columns() -> dict[str, Any]:
    column = st.column_config
    labels = live.structure_labels()
    return {
        "layer": column.TextColumn(_("Layer"), pinned=True, width="medium"),
        "kind": column.TextColumn(_("Kind")),
        "shape": column.TextColumn(
            _("Shape"), help=_("Channels in and out, then height × width of the output.")
        ),
        "params": column.ProgressColumn(
            _("Parameters"),
            format="%.1f %%",
            min_value=0,
            max_value=100,
            help=_("Share of all parameters of the original network."),
        ),
        "bops": column.ProgressColumn(
            _("BOPs"),
            format="%.1f %%",
            min_value=0,
            max_value=100,
            help=_("Share of the original network's bit-operations. ") + bops_help(),
        ),
        "structure": column.SelectboxColumn(
            _("Structure"),
            options=list(labels),
            format_func=labels.__getitem__,
            required=True,
            help=structure_help(),
        ),
        "rank": column.TextColumn(
            _("Rank"),
            alignment="right",
            help=_(
                "The number of components: more is more accurate and larger. Tucker-2 takes two, such as 12 × 24."
            ),
        ),
        "bits": column.TextColumn(
            _("Bits"),
            alignment="right",
            help=_(
                "Bits per weight: 2 to 8, or 32 for floating point; one number, or one for each factor such as 4, 4, 8."
            ),
        ),
        "size_after": column.NumberColumn(
            _("Size left"),
            format="%.1f %%",
            help=_("Bytes of this layer after compression, as a share of before."),
        ),
        "bops_after": column.NumberColumn(
            _("BOPs left"),
            format="%.1f %%",
            help=_("Bit-operations of this layer after compression, as a share of before."),
        ),
        "check": column.TextColumn(_("Check"), width="large"),
    }
