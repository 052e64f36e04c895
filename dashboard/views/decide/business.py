"""The business case: assumptions with a low, a likely and a high value, and what they come to."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard.text import _
from dashboard.widgets import blocks, ui
from qaf_core.errors import QafError
from qaf_core.review.decision.economics import (
    ASSUMPTIONS,
    LONGEST_CURRENCY,
    MOST_MONTHS,
    PRESETS,
    Assumptions,
    BusinessCase,
    keep_assumptions,
    read_assumptions,
)
from qaf_core.review.report import decision_sections
from qaf_core.review.report.review import Review
from qaf_core.text.units import MISSING, decimal_text, percent_text

SPAN = ("low", "likely", "high")


def show(review: Review) -> None:
    """Assumptions to the left, what they come to on the right."""
    _presets(review)
    if review.assumptions is None:
        st.info(
            _("Nothing is assumed yet. Begin with one of the examples, or with empty fields."),
            icon=":material/payments:",
        )
        return
    if review.case is not None:
        _cards(review.case)
    left, right = st.columns(2, gap="medium")
    with left:
        _form(review, review.assumptions)
    with right:
        if review.case is not None:
            _outcome(review, review.case)


def _presets(review: Review) -> None:
    with st.container(horizontal=True):
        for name, preset in PRESETS.items():
            if st.button(_(preset.label), key=f"preset-{name}", icon=":material/content_paste:"):
                _keep(review, preset)
        if review.assumptions is None and st.button(_("Empty fields"), key="preset-empty"):
            _keep(review, Assumptions(spans={}))


def _keep(review: Review, assumptions: Assumptions) -> None:
    for run in review.runs:
        keep_assumptions(ui.open_store().run_folder(run.run_id), assumptions)
    st.session_state["case-version"] = st.session_state.get("case-version", 0) + 1
    st.rerun()


def _form(review: Review, kept: Assumptions) -> None:
    version = f"{review.chosen.run_id}-{st.session_state.get('case-version', 0)}"
    with st.form(f"case-{version}", border=False):
        st.markdown(f"**{_('Assumptions')}**")
        if kept.label:
            st.caption(ui.plain(_(kept.label)))
        first, second = st.columns(2)
        currency = first.text_input(_("Currency"), kept.currency, LONGEST_CURRENCY, key=f"currency-{version}")
        months = second.number_input(_("Months ahead"), 1, MOST_MONTHS, kept.months, key=f"months-{version}")
        table = st.data_editor(
            _frame(kept), hide_index=True, placeholder="–", key=f"spans-{version}", disabled=["name"],
            height="content",
            column_config={
                "name": st.column_config.TextColumn(_("Assumption"), width=230),
                **{
                    name: st.column_config.NumberColumn(title, min_value=0.0, format="localized", width=70)
                    for name, title in zip(SPAN, (_("low"), _("likely"), _("high")), strict=True)
                },
            },
        )  # fmt: skip
        st.caption(_("Rows left empty count as nothing: nothing is saved and nothing is paid there."))
        st.markdown(f"**{_('Classes of devices')}**")
        devices = st.data_editor(
            pd.DataFrame(
                [(row.name, row.memory_bytes / 1e6, row.price) for row in kept.device_classes],
                columns=["name", "memory", "price"],
            ).astype({"name": "str", "memory": "float", "price": "float"}),
            hide_index=True, num_rows="dynamic", key=f"devices-{version}",
            column_config={
                "name": st.column_config.TextColumn(_("Device")),
                "memory": st.column_config.NumberColumn(_("Memory, MB"), min_value=0.0),
                "price": st.column_config.NumberColumn(_("Price of one"), min_value=0.0),
            },
        )  # fmt: skip
        st.caption(_("The cheapest device that holds the network is taken, before and after."))
        pressed = st.form_submit_button(_("Calculate and keep"), type="primary", icon=":material/calculate:")
    if pressed:
        _take(review, kept, {"currency": currency.strip(), "months": months}, table, devices)


def _frame(kept: Assumptions) -> pd.DataFrame:
    rows = []
    for name, (title, _most) in ASSUMPTIONS.items():
        span = kept.spans.get(name)
        values = [None] * 3 if span is None else [span.low, span.likely, span.high]
        rows.append((_(title), *values))
    return pd.DataFrame(rows, columns=["name", *SPAN]).astype(dict.fromkeys(SPAN, "float"))


def _take(
    review: Review, kept: Assumptions, fields: dict[str, Any], table: pd.DataFrame, devices: pd.DataFrame
) -> None:
    """Keep what was entered, or say at which field it cannot be."""
    spans, faults = {}, []
    for (name, (title, most)), row in zip(ASSUMPTIONS.items(), table[list(SPAN)].itertuples(), strict=True):
        values = [None if pd.isna(value) else float(value) for value in row[1:]]
        if all(value is None for value in values):
            continue
        fault = _fault(values, most)
        if fault:
            faults.append(f"{_(title)}: {fault}")
        spans[name] = dict(zip(SPAN, values, strict=True))
    if faults:
        for fault in faults:
            ui.say_error(fault)
        return
    classes = [
        {"name": str(name), "memory_bytes": 1e6 * float(memory), "price": float(price)}
        for name, memory, price in devices[["name", "memory", "price"]].dropna().to_numpy()
    ]
    try:
        assumptions = read_assumptions(
            {**fields, "spans": spans, "device_classes": classes, "label": kept.label}
        )
    except QafError as error:
        ui.say_error(error)
        return
    if spans != {name: vars(span) for name, span in kept.spans.items()}:
        assumptions = read_assumptions({**assumptions.to_dict(), "label": ""})  # no longer the example
    _keep(review, assumptions)


def _fault(values: list[float | None], most: float) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return _("low, likely and high are needed")
    if any(not 0 <= value <= most for value in numbers):
        return _("only numbers from 0 to {most}").format(most=f"{most:,.0f}")
    if numbers != sorted(numbers):
        return _("low must not be above likely, nor likely above high")
    return ""


def _cards(case: BusinessCase) -> None:
    """What it comes to in three numbers."""
    payback = MISSING if case.payback_months is None else decimal_text(case.payback_months, 1)
    cards = (
        (
            _("Saved a month, likely"),
            decision_sections.money(case.monthly_total, case.currency),
            _("with the likely values"),
        ),
        (_("Paid back after, months"), payback, _("with the likely values")),
        (
            _("Paid back in the simulation"),
            percent_text(case.draws["paid_back"], 0),
            _("within {months} months").format(months=case.months[-1]),
        ),
    )
    for column, (title, value, note) in zip(st.columns(3), cards, strict=True):
        with column:
            ui.metric_card(title, value, note, height="stretch")


def _outcome(review: Review, case: BusinessCase) -> None:
    section = decision_sections.economics_section(review, _)
    st.markdown(ui.plain(decision_sections.describe_case(case, _)))
    for block in section.blocks:
        if block.key != "assumptions":
            blocks.draw_block(block)
    st.caption(ui.plain(section.paragraphs[-1]))
