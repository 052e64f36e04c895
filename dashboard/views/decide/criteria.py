"""The form of criteria: one row each, with its unit, its class or file, its source and who answers for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard.state import address
from dashboard.text import _
from dashboard.views.decide import draft
from dashboard.widgets import ui
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.errors import QafError
from qaf_core.review.decision import criteria as kinds
from qaf_core.review.decision.criteria import CriteriaSet, Criterion, keep_criteria
from qaf_core.runs.store.record import RunRecord

OF_FILES = (kinds.LATENCY, kinds.FILE_SIZE, kinds.MEMORY)
OF_CLASSES = (kinds.ACCURACY_FLOOR, kinds.LARGEST_DROP)
OK_NAMES = ("ok", "good", "normal")
#: To begin with: a limit in the unit people read.
FIRST = {
    kinds.ACCURACY_FLOOR: 90.0, kinds.LARGEST_DROP: 1.0, kinds.MISSED: 1.0, kinds.FALSE_ALARMS: 5.0,
    kinds.MISSED_RISE: 0.5, kinds.FALSE_ALARMS_RISE: 2.0, kinds.LATENCY: 10.0, kinds.FILE_SIZE: 500.0,
    kinds.MEMORY: 64.0, kinds.ENERGY: 10.0,
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """How a limit is read and written: its sign, how much one of it is, and the most of it."""

    sign: str
    worth: float
    most: float


def _units() -> dict[str, Unit]:
    points = Unit(_("points"), 0.01, 100.0)
    share = Unit("%", 0.01, 100.0)
    return {
        kinds.ACCURACY_FLOOR: share, kinds.LARGEST_DROP: points, kinds.MISSED: share,
        kinds.FALSE_ALARMS: share, kinds.MISSED_RISE: points, kinds.FALSE_ALARMS_RISE: points,
        kinds.LATENCY: Unit("ms", 1.0, 1e7), kinds.FILE_SIZE: Unit("kB", 1e3, 1e9),
        kinds.MEMORY: Unit("MB", 1e6, 1e6), kinds.ENERGY: Unit("mJ", 1e-3, 1e6),
    }  # fmt: skip


def _labels() -> dict[str, str]:
    return {
        kinds.LARGEST_DROP: _("Accuracy lost, at most"),
        kinds.ACCURACY_FLOOR: _("Accuracy, at least"),
        kinds.MISSED_RISE: _("More missed defects, at most"),
        kinds.FALSE_ALARMS_RISE: _("More false alarms, at most"),
        kinds.MISSED: _("Missed defects, at most"),
        kinds.FALSE_ALARMS: _("False alarms, at most"),
        kinds.LATENCY: _("Time of one inference, at most"),
        kinds.FILE_SIZE: _("Size of the file, at most"),
        kinds.MEMORY: _("Peak memory, at most"),
        kinds.ENERGY: _("Energy of one inference, at most"),
    }


def place_of(runs: Sequence[RunRecord]) -> str:
    """Where the session holds the form of some runs."""
    return f"criteria-{runs[0].id}"


def form(runs: Sequence[RunRecord], *, sets: Sequence[CriteriaSet], classes: Sequence[str] = ()) -> None:
    """Criteria of runs, to be changed and kept with each of them."""
    kept = sets[-1].criteria if sets else ()
    place = place_of(runs)
    rows = draft.rows(place, runs[0].id, kept)
    st.subheader(_("What the network must hold"), anchor=False)
    st.caption(
        _(
            "Each criterion is judged by the whole interval of its number, not by the number alone. "
            "Every set that was kept stays readable, with its time."
        )
    )
    values = [_draw_row(place, row, classes) for row in rows]
    draft.hold(place, runs[0].id, values, kept)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(
            _("Add a criterion"), icon=":material/add:", key=f"{place}-add", on_click=_add, args=(place,)
        )
        by = st.text_input(
            _("Set by"), max_chars=kinds.LONGEST_TEXT, width=260,
            key=address.text("by", sets[-1].by if sets else "", key=f"{place}-by"),
        )  # fmt: skip
        pressed = st.button(
            _("Keep these criteria"), icon=":material/check:", type="primary", key=f"{place}-keep"
        )
    if pressed:
        _keep(runs, values, by)


def _keep(runs: Sequence[RunRecord], values: Sequence[dict[str, Any]], by: str) -> None:
    try:
        chosen = [Criterion(**row) for row in values]
        for run in runs:
            folder = ui.open_store().run_folder(run.id)
            folder.mkdir(parents=True, exist_ok=True)
            keep_criteria(folder, chosen, by=by)
    except QafError as error:
        ui.say_error(error)
        return
    st.toast(_("The criteria are kept with the run."), icon=":material/check:")
    st.rerun()


def _add(place: str) -> None:
    rows = st.session_state[place]
    used = {row["kind"] for row in rows}
    kind = next(
        (kind for kind in (kinds.LARGEST_DROP, kinds.FILE_SIZE, kinds.LATENCY) if kind not in used), None
    )
    rows.append({"number": time.time_ns(), "kind": kind or kinds.LARGEST_DROP, "limit": None})


def _remove(place: str, number: int) -> None:
    st.session_state[place] = [row for row in st.session_state[place] if row["number"] != number]


def _draw_row(place: str, row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """The widgets of one criterion; what they say."""
    key, labels = f"{place}-{row['number']}", _labels()
    with st.container(border=True, key=f"criterion-{key}"):
        what, limit, of, source, owner, remove_column = st.columns(
            [3, 1.6, 2.4, 2.2, 1.6, 0.7], vertical_alignment="bottom"
        )
        kind = what.selectbox(
            _("Criterion"), list(labels), list(labels).index(row["kind"]), format_func=labels.__getitem__,
            key=f"{key}-kind",
        )  # fmt: skip
        unit = _units()[kind]
        first = FIRST[kind] if row["limit"] is None or kind != row["kind"] else row["limit"] / unit.worth
        value = limit.number_input(
            _("Limit, {unit}").format(unit=unit.sign), 0.0, unit.most, min(round(first, 6), unit.most),
            step=0.1 if unit.worth == 0.01 else 1.0, format="%.6g", key=f"{key}-limit-{kind}",
        )  # fmt: skip
        with of:
            about = _draw_of(key, kind, row, classes)
        source_text = source.text_input(
            _("Where the limit comes from"), row.get("source", ""), kinds.LONGEST_TEXT, key=f"{key}-source"
        )
        who = owner.text_input(_("Owner"), row.get("owner", ""), kinds.LONGEST_TEXT, key=f"{key}-owner")
        remove_column.button(
            "", icon=":material/delete:", key=f"{key}-gone", on_click=_remove, args=(place, row["number"]),
            help=_("Remove this criterion"),
        )  # fmt: skip
    return {
        "kind": kind,
        "limit": round(value * unit.worth, 12),
        "source": source_text,
        "owner": who,
        **about,
    }


def _draw_of(key: str, kind: str, row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """What the criterion is of: a class, the class that means ok, a file, a device."""
    if kind in OF_FILES:
        files = {kinds.PACKED: _("Packed file"), **{str(file): _(file.label) for file in ModelFile}}
        if kind != kinds.FILE_SIZE:
            del files[kinds.PACKED]
        first = row.get("file", kinds.PACKED)
        name = st.selectbox(
            _("File"), list(files), list(files).index(first) if first in files else len(files) - 1,
            format_func=files.__getitem__, key=f"{key}-file-{kind}",
        )  # fmt: skip
        if kind == kinds.FILE_SIZE:
            return {"file": name}
        device = st.text_input(
            _("Device"), row.get("device", ""), kinds.LONGEST_TEXT, key=f"{key}-device",
            placeholder=_("this machine"), help=_("Words of its processor's name, as a device kit tells it."),
        )  # fmt: skip
        return {"file": name, "device": device}
    if kind in OF_CLASSES:
        if not classes:
            name = st.text_input(
                _("Class (empty: all images)"), row.get("class_name") or "", key=f"{key}-class"
            )
            return {"class_name": name or None}
        first = row.get("class_name")
        options = [None, *classes, *([first] if first and first not in classes else [])]
        return {
            "class_name": st.selectbox(
                _("Class"), options, options.index(first) if first in options else 0,
                format_func=lambda name: _("All images") if name is None else name, key=f"{key}-class",
            )
        }  # fmt: skip
    if kind == kinds.ENERGY:
        return {}
    first = row.get("ok_class")
    if not classes:
        return {"ok_class": st.text_input(_("Class that means ok"), first or "", key=f"{key}-ok")}
    names: list[str] = [*classes, *([first] if first and first not in classes else [])]
    default = first or next((name for name in classes if name.lower() in OK_NAMES), classes[0])
    return {
        "ok_class": st.selectbox(_("Class that means ok"), names, names.index(str(default)), key=f"{key}-ok")
    }
