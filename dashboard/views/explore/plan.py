"""The second half of Explore: the plan's table of layers, the predicted cost, and Run."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from typing import Any

import streamlit as st

from dashboard.state import catalogue, expectations, plan_draft, sheets
from dashboard.state.estimates import history_of
from dashboard.state.plan_draft import Draft
from dashboard.text import _, meaning, plural
from dashboard.views.explore import controls, expected, fastest, files, optimise
from dashboard.views.explore.choose import Choice
from dashboard.views.run import live
from dashboard.widgets import network_graph, plan_table, run_shades, ui
from qaf_core.errors import QafError
from qaf_core.factorization.effort import Effort, effort_options
from qaf_core.factorization.options import Method
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.plan.cost import Cost, plan_cost
from qaf_core.network.plan.layer_info import KEEP, LayerInfo
from qaf_core.network.plan.validation import oversized_ranks
from qaf_core.quantization.grid import BITS_ACCEPTED
from qaf_core.runs.estimate import count_work
from qaf_core.runs.store.request import RunRequest
from qaf_core.text.units import MISSING, duration_text, percent_text, size_text, times_text, with_prefix


@st.fragment
@ui.guarded
def plan_and_run(choice: Choice, inventory: tuple[LayerInfo, ...]) -> None:
    """The plan of the chosen model; an edit draws only this part of the page again."""
    controls.bind_settings()
    model, key = choice.source.id, f"plan-table-{choice.source.id}"
    controls.follow_plan(model)
    sheets.take_typed(model, plan_table.typed(key))
    st.subheader(_("2 · Plan"), anchor=False)
    controls.choose_method(choice)
    place = st.container()
    fastest.offer(choice)
    reference = controls.plan_of_controls(choice, inventory)
    if reference is None:
        with place:
            controls.bulk_controls(choice)
        return
    base = controls.base_plan(choice, reference)
    controls.name_plan(model)
    draft = plan_draft.make_draft(inventory, base, sheets.sheet_of(model).edits, st.session_state["ratio"])
    edited = plan_draft.differing(draft, reference)
    with place:
        controls.bulk_controls(choice, frozenset().union(*edited.values()))
    optimise.offer(choice, draft)
    expected.show(choice, draft)
    files.toolbar(model, draft)
    _table(inventory, draft, key, edited)
    _network(choice, inventory, draft)
    with st.container(key="savings"):  # stays in sight at the foot of the window, see style.css
        _prediction(choice, inventory, draft)


def _prediction(choice: Choice, inventory: tuple[LayerInfo, ...], draft: Draft) -> None:
    before, after = plan_draft.cost_before(inventory), plan_cost(inventory, draft.plan)
    columns = st.columns([1, 1, 1, 1, 2.1], gap="small")
    with columns[0]:
        ui.metric_card(
            _("Size"),
            size_text(after.size_bytes),
            _("{times} smaller than {before}").format(
                times=times_text(before.size_bytes, after.size_bytes), before=size_text(before.size_bytes)
            ),
            meaning("packed_file"),
            height="stretch",
        )
    with columns[1]:
        ui.metric_card(
            _("Bit-operations"),
            percent_text(after.bops / before.bops) if before.bops else MISSING,
            f"{with_prefix(before.bops, 'BOPs')} → {with_prefix(after.bops, 'BOPs')}",
            meaning("bops"),
            height="stretch",
        )
    with columns[2]:
        ui.metric_card(
            _("Multiplications"),
            percent_text(after.macs / before.macs, 0) if before.macs else MISSING,
            f"{with_prefix(before.macs, 'MACs')} → {with_prefix(after.macs, 'MACs')}",
            meaning("macs"),
            height="stretch",
        )
    with columns[3]:
        _memory(before, after)
    with columns[4]:
        _run_box(choice, inventory, draft)


def _memory(before: Cost, after: Cost) -> None:
    ui.metric_card(
        _("Working memory"),
        size_text(after.peak_activation_bytes),
        _("was {before}").format(before=size_text(before.peak_activation_bytes)),
        meaning("working_memory"),
        height="stretch",
    )


def _run_box(choice: Choice, inventory: Sequence[LayerInfo], draft: Draft) -> None:
    reason = run_obstacle(choice, inventory, draft)
    with st.container(key="run-box", gap="xsmall"):
        controls.effort_dial(
            "solver-effort",
            _(
                "How hard each layer is solved: starts, iterations and rounds of rounding. Thorough takes "
                "about five times as long, two minutes a layer at most; quick a third."
            ),
            label_visibility="collapsed",
        )
        left, right = st.columns([2, 1], gap="xsmall")
        name = left.text_input(
            _("Name of the run"),
            placeholder=_("Name of the run (optional)"),
            key="run-name",
            max_chars=80,
            label_visibility="collapsed",
        )
        if right.button(
            _("Run"),
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            key="start-run",
            disabled=reason is not None,
            help=ui.plain(reason) if reason else None,
        ):
            _start(choice, draft, name)
        if reason:
            st.caption(":material/block: " + ui.plain(reason))
        elif draft.layers:
            _expected_time(choice, inventory, draft)


def _expected_time(choice: Choice, inventory: Sequence[LayerInfo], draft: Draft) -> None:
    """About how long the run will take here."""
    request = _request(choice, draft, "")
    history = history_of(ui.open_store(), request)
    seconds = sum(history.seconds(count_work(request, inventory, history)).values())
    st.caption(
        ":material/schedule: " + _("Takes about {time}.").format(time=duration_text(seconds)),
        help=live.basis_text(history.runs),
    )


def run_obstacle(choice: Choice, inventory: Sequence[LayerInfo], draft: Draft) -> str | None:
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
    shapes = {info.name: info.weight_shape for info in inventory}
    if st.session_state["method"] == Method.PAPER and any(
        row.structure != KEEP and not STRUCTURES[row.structure].published(shapes[row.name])
        for row in draft.layers
    ):
        return _("The paper's method solves CP only: choose another structure, or another method.")
    if all(row.structure == KEEP for row in draft.layers):
        return _("Nothing would be compressed: every layer is kept as it is.")
    return None


def _request(choice: Choice, draft: Draft, name: str) -> RunRequest:
    effort = st.session_state.get("solver-effort", Effort.STANDARD)
    return RunRequest(
        **choice.overrides.of(choice.source.id),
        data=choice.data,
        calibration=choice.calibration,
        method=st.session_state["method"],
        plan=replace(draft.plan, options={**draft.plan.options, **effort_options(effort)}).to_dict(),
        seed=draft.plan.seed,
        name=name.strip() or None,
        controls={key: st.session_state[key] for key in controls.RESTORED},
    )


def _start(choice: Choice, draft: Draft, name: str) -> None:
    try:
        run_id = ui.open_store().create_run(_request(choice, draft, name))
    except QafError as error:
        ui.say_error(error)
        return
    ui.go_to("run", run=run_id)


def _table(inventory: Sequence[LayerInfo], draft: Draft, key: str, edited: Container[str]) -> None:
    kinds = {"conv2d": _("Convolution"), "depthwise": _("Depthwise convolution"), "linear": _("Linear")}
    rows = plan_draft.plan_rows(inventory, draft, kinds, edited)
    with st.container(gap=None):
        st.markdown("**" + plural("{count} layer", "{count} layers", len(rows)) + "**")
        st.caption(
            _(
                "Structure, Rank and Bits can be changed; Enter goes to the next row, "
                "a column can be pasted. The controls above fill all rows anew; "
                "{mark} marks rows that differ from them."
            ).format(mark=plan_table.MARK)
        )
    plan_table.show(key, rows, _columns(), live.structure_labels(), sheets.taken(draft.base.model))
    if draft.problems:
        lines = "\n".join(
            f"- {ui.plain(name)}: {ui.plain('; '.join(messages))}"
            for name, messages in draft.problems.items()
        )
        st.error(
            _("These rows cannot be used as they are; the prediction counts them as they were before.")
            + "\n\n"
            + lines,
            icon=":material/error:",
        )
    for warning in oversized_ranks(draft.plan, inventory):
        st.warning(ui.plain(warning.text(_)), icon=":material/warning:")


def _network(choice: Choice, inventory: tuple[LayerInfo, ...], draft: Draft) -> None:
    """The graph under the plan, drawn only while it is looked at."""
    opened = st.expander(
        _("The network under this plan"), icon=":material/account_tree:", key="plan-network",
        on_change="rerun",
    )  # fmt: skip
    if not opened.open:
        return
    knowledge = expectations.known(ui.open_store(), controls.request_of(choice))
    shares = {} if knowledge is None else knowledge[1].shares(draft.plan)
    with opened:
        network_graph.show(
            network_graph.Shown(
                key="plan-graph", inventory=inventory, plan=draft.plan,
                topology=catalogue.topology_of(choice.source, ui.workspace(), choice.overrides),
                more={"sensitivity": run_shades.shares_shade(shares)} if shares else {},
            )
        )  # fmt: skip


def _columns() -> list[dict[str, Any]]:
    shares = _("Share of all parameters of the original network.")
    bops = _("Share of the original network's bit-operations. ") + meaning("bops")
    bits = _("Bits per weight: {accepted}; one number, or one for each factor such as 4, 4, 8.")
    structure = controls.structure_help().replace("**", "")
    columns = (
        ("layer", _("Layer"), meaning("layer")),
        ("kind", _("Kind"), ""),
        ("shape", _("Shape"), _("Channels in and out, then height × width of the output.")),
        ("params", _("Parameters"), shares),
        ("bops", _("BOPs"), bops),
        ("structure", _("Structure"), structure),
        ("rank", _("Rank"), meaning("rank")),
        ("bits", _("Bits"), bits.format(accepted=BITS_ACCEPTED)),
        ("size_after", _("Size left"), _("Bytes of this layer after compression, as a share of before.")),
        (
            "bops_after",
            _("BOPs left"),
            _("Bit-operations of this layer after compression, as a share of before."),
        ),
        ("check", _("Check"), ""),
    )
    return [
        {"key": key, "label": label, "help": help_text, "share": key in ("params", "bops")}
        for key, label, help_text in columns
    ]
