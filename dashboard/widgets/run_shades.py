"""What the layers of a run can be coloured by in a drawing: what they lost, and how long they take."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dashboard.state import expectations
from dashboard.text import _
from dashboard.widgets import ui
from dashboard.widgets.network_graph import Shade
from qaf_core.deploy.runtime.layer_profile import OTHER
from qaf_core.review.network_graph import measures
from qaf_core.runs.jobs.latency import read_latency
from qaf_core.runs.store.record import RunRecord
from qaf_core.text.units import milliseconds_text, percent_text


def of_run(run: RunRecord) -> dict[str, Shade]:
    """Everything that is known of a run's layers, by short names."""
    store = ui.open_store()
    shades: dict[str, Shade] = {}
    errors = {row.name: row.relative_error for row in run.layers}
    outputs = {
        row.name: math.sqrt(max(0.0, row.output_error)) for row in run.layers if row.output_error is not None
    }
    if any(value is not None for value in errors.values()):
        shades["error"] = _harm(_("Error of its weights"), errors)
    if outputs:
        shades["output_error"] = _harm(_("Error of its output"), outputs)
    if shares := expectations.divergence_shares(store, run.id):
        shades["sensitivity"] = shares_shade(shares)
    report = read_latency(store.run_folder(run.id))
    timed = [row for row in (report.layers if report else ()) if row.layer != OTHER]
    if timed:
        before = {row.layer: row.original_fp32_ms for row in timed if row.original_fp32_ms is not None}
        after = {row.layer: row.factorized_int8_ms for row in timed if row.factorized_int8_ms is not None}
        shades["time"] = Shade(
            label=_("Time"),
            told=milliseconds_text,
            measure=lambda plan, drawn: measures.time_of(before if plan is None else after),
        )
    return shades


def shares_shade(shares: Mapping[str, float]) -> Shade:
    """Colours by the share of the network's divergence that each layer is expected to cause."""
    return Shade(
        label=_("Sensitivity: share of the expected harm"), told=percent_text,
        measure=lambda plan, drawn: measures.shares_of(shares),
    )  # fmt: skip


def _harm(label: str, values: Mapping[str, float | None]) -> Shade:
    return Shade(label=label, told=percent_text, measure=lambda plan, drawn: measures.harm_of(values))
