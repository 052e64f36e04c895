"""The table of the Trade-offs page: who passes first, in groups if wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard.state import address, rows
from dashboard.text import _, meaning, plural, translation
from dashboard.views.tradeoffs.judged import Judged
from dashboard.widgets import columns, run_tools, ui
from qaf_core.factorization.options import METHODS
from qaf_core.pipeline.events import RunStatus
from qaf_core.review import charts
from qaf_core.review.metrics import metric_help, metric_label
from qaf_core.review.tradeoffs.axes import BOPS, SIZE, VALUE
from qaf_core.review.tradeoffs.figure import front_of
from qaf_core.review.tradeoffs.pareto import knee
from qaf_core.review.tradeoffs.points import RunPoint
from qaf_core.runs.listing import RunRow
from qaf_core.text.units import decimal_text

UNITS = {"size": "B", "deployed": "B", "latency": "ms", "bops": "BOPs", "energy": "J", "memory": "B"}
WHENEVER_KNOWN = ("passes", "deployed", "latency", "slower", "memory", "tags")  # columns left out when empty


def show(runs: Sequence[RunRow], points: Sequence[RunPoint], judged: Judged) -> None:
    """The table, and what can be done with ticked runs."""
    ordered = sorted(runs, key=lambda run: _rank(judged.passes.get(run.id, True)))
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    left.subheader(plural("{count} run", "{count} runs", len(runs)), anchor=False)
    groups = {"": _("Not grouped"), "method": _("By method"), "tag": _("By tag")}
    with right:
        grouped = st.segmented_control(
            _("Groups"), list(groups), format_func=groups.__getitem__, required=True,
            key=address.choice("group", list(groups), ""), label_visibility="collapsed",
        )  # fmt: skip
    best, place = _marks(points), st.container()
    chosen: list[RunRow] = []
    for title, members in _groups(ordered, grouped or "").items():
        if title:
            st.markdown(f"**{ui.plain(title)}** · " + plural("{count} run", "{count} runs", len(members)))
        chosen += _table(members, judged, best, title)
    with place:
        run_tools.tools(chosen, key="tradeoffs")


def _rank(passing: bool | None) -> int:
    return (True, None, False).index(passing)


def _groups(runs: Sequence[RunRow], grouped: str) -> dict[str, list[RunRow]]:
    if not grouped:
        return {"": list(runs)}
    groups: dict[str, list[RunRow]] = {}
    for run in runs:
        tags = run.tags or (_("Without a tag"),)
        for name in (charts.method_label(run.method, _),) if grouped == "method" else tags:
            groups.setdefault(name, []).append(run)
    return dict(sorted(groups.items()))


def _table(runs: Sequence[RunRow], judged: Judged, best: Mapping[str, str], title: str) -> list[RunRow]:
    """One table; a click opens a run; the ticked ones."""
    say, statuses = translation(), {status: ui.status_label(status) for status in RunStatus}
    frame = pd.DataFrame([_row(run, judged, best, say) for run in runs])
    if any(run.status != RunStatus.COMPLETED for run in runs):
        frame["status"] = [statuses[run.status] for run in runs]
    forms = columns.in_units(frame, UNITS)
    empty = [name for name in WHENEVER_KNOWN if not frame[name].map(bool).any() or frame[name].isna().all()]
    chosen = columns.table(
        frame.drop(columns=empty),
        _columns(runs[0].metric or "", judged, forms),
        key=f"tradeoff-table-{title}-{hash(tuple(run.id for run in runs))}",
        on_select="rerun",
        selection_mode=["multi-row", "single-cell"],
    )
    for position, _column in chosen.selection.cells:
        ui.go_to("run", run=runs[position].id)
    return [runs[position] for position in chosen.selection.rows]


def _marks(points: Sequence[RunPoint]) -> dict[str, str]:
    """The signs of the runs on a front: of size, with its cheapest and its knee, or of bit-operations."""
    front = front_of(points, SIZE, VALUE)
    signs = {points[i].run_id: "★" for i in (*front, *front_of(points, BOPS, VALUE))}
    turn = knee([points[i].size_bytes or 0.0 for i in front], [points[i].value for i in front])
    if front:
        signs[points[front[0]].run_id] = _("★ smallest")
    if turn is not None:
        signs[points[front[turn]].run_id] = _("★ knee")
    return signs


def _row(run: RunRow, judged: Judged, best: Mapping[str, str], say: Callable[[str], str]) -> dict[str, Any]:
    size = run.size_bytes or 0.0
    difference = judged.differences.get(run.id)
    signs = {True: "✓", False: "✗", None: "?"}
    mark = {"worse": "▼ ", "better": "▲ ", "same": "≈ "}
    return {
        "best": best.get(run.id, ""),
        "passes": signs[judged.passes[run.id]] if judged.passes else "",
        "run": run.title,
        "method": charts.method_label(run.method, say),
        "accuracy": 100 * (run.value or 0.0),
        "drop": None
        if difference is None
        else columns.Written(100 * difference.value, mark.get(difference.verdict, "") + difference.text(say)),
        "size": run.size_bytes,
        "smaller": run.original_bytes / size if run.original_bytes and size else None,
        "deployed": run.deployed_bytes,
        "latency": run.latency_ms,
        "slower": None if run.slower is None else run.slower[0],
        "share": 100 * (run.bops or 0.0) / run.original_bops if run.original_bops else None,
        "plan": rows.plan_summary(run),
        "interval": f"{decimal_text(100 * (run.low or 0.0), 1)} – {decimal_text(100 * (run.high or 0.0), 1)}",
        "bops": run.bops,
        "energy": run.energy_joules,
        "memory": run.memory_bytes,
        "tags": list(run.tags),
    }


def _columns(metric: str, judged: Judged, forms: Mapping[str, str]) -> dict[str, Any]:
    name = _("the original") if judged.reference is None else judged.reference.title
    return {
        "best": columns.text(
            _("Best"),
            "front",
            _(
                "★ marks them for size or bit-operations; besides the smallest that passes the largest loss "
                "above, and the knee, after which more size buys little."
            ),
            width=85,
        ),
        "passes": columns.text(
            _("Target"), "target", _("✓ keeps to it, ✗ does not, ? not all of it is measured."), width=60
        ),
        "run": columns.text(_("Run"), width=150),
        "method": columns.text(_("Method"), help_text=method_help()),
        "plan": columns.text(
            _("Plan"),
            "plan",
            _("Layers per structure · R: lowest and highest rank · W: weight bits · A: activation bits"),
        ),
        "accuracy": columns.percent(metric_label(metric, _), help_text=metric_help(metric, _)),
        "interval": columns.text(_("95 % interval"), "interval"),
        "drop": columns.written(
            _("Against {name}").format(name=name),
            "paired",
            _(
                "Points against {name} on the same images, with the 95 % interval. ▼ worse, ▲ better: chance "
                "does not explain it; ≈ no difference shown."
            ).format(name=name),
        ),
        "size": columns.number(_("Size"), forms["size"], "packed_file"),
        "smaller": columns.factor(_("Smaller"), help_text=_("The original counts 4 bytes a parameter.")),
        "deployed": columns.number(
            _("Deployed"), forms["deployed"], "deployed_file", _("Empty until it is made or timed.")
        ),
        "latency": columns.number(_("Latency"), forms["latency"], "latency", _("Median for one image here.")),
        "slower": columns.factor(_("Time, 8-bit = 1"), "time_ratio", _("Empty if not measured."), digits=2),
        "bops": columns.number(_("BOPs"), forms["bops"], "bops"),
        "share": columns.percent(_("Of original BOPs"), "bops"),
        "energy": columns.number(_("Energy"), forms["energy"], "energy"),
        "memory": columns.number(_("Memory"), forms["memory"], "memory"),
        "tags": st.column_config.ListColumn(_("Tags"), width=130),
        "status": columns.text(_("Status")),
    }


def method_help() -> str:
    """One line for each method, for a tooltip."""
    return "\n".join(f"- **{charts.method_label(name, _)}**: {meaning(name)}" for name in METHODS)
