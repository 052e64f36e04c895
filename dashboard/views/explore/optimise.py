"""Explore's search under budgets: what is allowed, the best plan for it, and what holds it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard.state import address, jobs
from dashboard.state.plan_draft import Draft
from dashboard.text import _, listed
from dashboard.views.explore import controls
from dashboard.views.explore.choose import Choice
from dashboard.widgets import ui
from qaf_core.factorization.effort import REFINING_SECONDS, Effort
from qaf_core.factorization.options import Method
from qaf_core.runs.jobs.plans.sweep import BUDGETS, METHODS, front_requests
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import SearchRequest
from qaf_core.search.budget.budgets import lock_text
from qaf_core.text.units import percent_text, size_text

LARGEST_BUDGET = 1e12


def offer(choice: Choice, draft: Draft) -> None:
    """What to set, the button, and what was found; it fills the plan's table when it is done."""
    with st.expander(_("Best plan under a budget"), icon=":material/auto_awesome:"):
        st.caption(
            _(
                "Say what the model may take, or how much accuracy it may lose, and every layer gets the "
                "structure, rank and bits with which the network is expected to lose least. Several limits "
                "hold together; an empty field is no limit."
            )
        )
        budgets = _budgets()
        left, middle, right = st.columns([2.2, 1.4, 1.2], gap="medium", vertical_alignment="bottom")
        locked = left.multiselect(
            _("Layers that stay as they are in the table"),
            [row.name for row in draft.layers],
            key=address.several(
                "lock", [row.name for row in draft.layers], [], key=f"locked-{choice.source.id}"
            ),
            placeholder=_("none"),
        )
        with middle:
            effort = controls.effort_dial(
                "search-effort",
                _(
                    "Quick takes the first choice. Standard refines it for up to 10 minutes, thorough for up "
                    "to an hour: networks are compressed, and what they diverge on calibration images "
                    "decides. Each layer of the plan is then solved with that effort."
                ),
            )
        place = f"optimise-{choice.source.id}"
        disabled = st.session_state["method"] != Method.JOINT or choice.obstacle is not None
        if right.button(
            _("Find the best plan"),
            icon=":material/search:",
            key="find-best",
            width="stretch",
            disabled=disabled or not budgets,
            help=_("For the joint method, with a model that can be run.") if disabled else None,
        ):
            locks = tuple(lock_text(row) for row in draft.layers if row.name in locked)
            controls.ask_plan(place, _request(choice, budgets, locks, effort))
        result = controls.take_search_result(choice, place, "search")
        if result is not None:
            st.success(ui.plain(_result_text(result)), icon=":material/check_circle:")
        _front(choice, disabled=disabled, effort=effort)


def _front(choice: Choice, *, disabled: bool, effort: Effort) -> None:
    """A search for each of several sizes, found and dense, each followed by a run; in the background."""
    place, store = f"front-{choice.source.id}", ui.open_store()
    left, right = st.columns([1.2, 3.6], gap="medium", vertical_alignment="center")
    begin = left.button(
        _("Measure a front"),
        icon=":material/ssid_chart:",
        key="measure-front",
        width="stretch",
        disabled=disabled,
    )
    if begin:
        requests = front_requests(
            controls.request_of(choice), BUDGETS, METHODS, REFINING_SECONDS[effort], effort
        )
        jobs.remember(place, *(store.ask(request) for request in requests))
    searches = jobs.recall_all(store, place, "search")
    if not searches:
        right.caption(
            _(
                "Five sizes, each with the best plan and with plain rounding, measured one after another in "
                "the background: points appear on Trade-offs as they finish. What was measured before counts."
            )
        )
        return
    with right:
        if all(job.is_final for job in searches):
            _say_done(searches)
            return
        _follow_front(place)
        # Not in what is drawn every other second: on a busy machine a click just then was lost now and then.
        st.button(_("Stop the front"), key="stop-front", on_click=_stop, args=([job.id for job in searches],))


@st.fragment(run_every=2.0)
@ui.guarded
def _follow_front(place: str) -> None:
    """How far a front is; drawn again and again only while it is measured."""
    store = ui.open_store()
    searches = jobs.recall_all(store, place, "search")
    if all(job.is_final for job in searches):
        st.rerun(scope="app")
    _say_done(searches)


def _say_done(searches: Sequence[JobRecord]) -> None:
    text = _("{done} of {count} searches are done; their runs appear on Trade-offs.")
    done = sum(job.is_final for job in searches)
    st.info(text.format(done=done, count=len(searches)), icon=":material/ssid_chart:")


def _stop(job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        ui.ask_to_stop(job_id)


def _budgets() -> tuple[str, ...]:
    """The limits as ``qaf search`` takes them."""
    size, bops, drop, latency = st.columns(4, gap="small")
    fields = (
        (size, "size", _("Size, kB"), 1.0, "kB", None),
        (bops, "bops", _("Bit-operations, % of the original"), 0.01, "x", None),
        (
            drop,
            "drop",
            _("Accuracy lost, points"),
            1.0,
            "pp",
            _("The model is made as small as this allows."),
        ),
        (
            latency,
            "latency",
            _("Time, % of plain INT8"),
            0.01,
            "x",
            _("By layers timed on this machine, once; it takes minutes."),
        ),
    )
    budgets = []
    for column, kind, label, unit, sign, help_text in fields:
        value = column.number_input(
            label,
            min_value=0.0,
            value=None,
            key=address.number(kind, None, 0.0, LARGEST_BUDGET, key=f"budget-{kind}"),
            help=help_text,
            format="%g",
            placeholder=_("no limit"),
        )
        if value:
            budgets.append(f"{kind}={value * unit:.6g}{sign}")
    return tuple(budgets)


def _request(
    choice: Choice, budgets: tuple[str, ...], locks: tuple[str, ...], effort: Effort
) -> SearchRequest:
    return SearchRequest(
        **vars(controls.request_of(choice)), budgets=budgets, locks=locks,
        time_limit=REFINING_SECONDS[effort], effort=effort,
    )  # fmt: skip


def _result_text(result: Mapping[str, Any]) -> str:
    cost, before, predicted = result["cost"], result["baseline_cost"], result["predicted"]
    low, high = predicted["ci95"]
    text = _(
        "The table below is filled with the plan for {budget}: {size}, {bops} of the bit-operations, "
        "expected {value} ({low} to {high})."
    ).format(
        budget=listed(result["budget"]),
        size=size_text(cost["size_bytes"]),
        bops=percent_text(cost["bops"] / before["bops"]),
        value=percent_text(predicted["value"]),
        low=percent_text(low),
        high=percent_text(high),
    )
    if result["binding"] is None:
        return text + " " + _("No limit holds it back.")
    kinds = {
        "size": _("size"),
        "bops": _("bit-operations"),
        "drop": _("accuracy lost"),
        "latency": _("time"),
    }
    return (
        text
        + " "
        + _("What holds it back is {limit}: {price}.").format(
            limit=kinds[result["binding"]], price=_price_text(result["price"])
        )
    )


def _price_text(price: str) -> str:
    """What more of the limit would be worth, told by the search in English."""
    *_words, amount, unit = price.split()
    text = (
        _("1 % more would save about {amount} kB")
        if unit == "kB"
        else _("1 % more would win about {amount} points")
    )
    return text.format(amount=amount)
