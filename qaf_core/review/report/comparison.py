"""Up to five runs beside each other: what they came to, plan, errors and time by layer, accuracy by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.deploy.runtime.speed_report import HERE, LayerTime, SpeedReport
from qaf_core.network.plan.layer_info import KEEP
from qaf_core.network.plan.types import LayerPlan
from qaf_core.review.decision.evidence import Evidence
from qaf_core.review.decision.measured import Share
from qaf_core.review.decision.numbers import CLASSIFICATION
from qaf_core.review.decision.verdict import RISK
from qaf_core.review.metrics import metric_label
from qaf_core.review.report.blocks import Table
from qaf_core.review.report.sections import run_rows
from qaf_core.review.speed import model_labels, times_as_long
from qaf_core.text.said import Translate
from qaf_core.text.units import (
    MISSING,
    decimal_text,
    energy_text,
    milliseconds_text,
    percent_text,
    size_text,
    times_text,
)

PLAN, ERRORS, DIVERGENCE, TIME = "plan", "errors", "divergence", "time"
IN_ORDER, BY_OUTPUT, BY_WEIGHTS, BY_SHARE, BY_TIME = "order", "output", "weights", "share", "time"


@dataclass(frozen=True, kw_only=True)
class LayerOfRun:
    """One layer in one run; what is not known is None.

    Attributes:
        plan: What became of it.
        output_error, weight_error: Relative errors, as fractions of norms.
        share: Of what the whole network is expected to diverge.
        milliseconds: In the fastest integer file, measured here.
    """

    plan: LayerPlan | None = None
    output_error: float | None = None
    weight_error: float | None = None
    share: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Runs with their layers.

    Attributes:
        runs: One to five.
        layers: By layer, in the order of the network: each run's.
        dense_ms: Time of a layer in the original in 8 bits, where it was measured.
    """

    runs: tuple[Evidence, ...]
    layers: Mapping[str, tuple[LayerOfRun, ...]]
    dense_ms: Mapping[str, float] = field(default_factory=dict)


def compare_runs(runs: Sequence[Evidence], shares: Sequence[Mapping[str, float]]) -> Compared:
    """Set runs beside each other.

    Args:
        runs: One to five of one model.
        shares: Of each run, by layer, what share of the network's divergence it is expected to cause; empty
            where that is not known.
    """
    timings = [_layer_times(run) for run in runs]
    by_layer: dict[str, list[LayerOfRun]] = {}
    for place, (run, share, times) in enumerate(zip(runs, shares, timings, strict=True)):
        rows = {row.name: row for row in run.record.layers}
        for plan in run.record.plan_done.layers:
            row = rows.get(plan.name)
            error = None if row is None or row.output_error is None else max(0.0, row.output_error) ** 0.5
            own = LayerOfRun(
                plan=plan, output_error=error,
                weight_error=None if row is None else row.relative_error, share=share.get(plan.name),
                milliseconds=None if (time := times.get(plan.name)) is None else time.factorized_int8_ms,
            )  # fmt: skip
            by_layer.setdefault(plan.name, [LayerOfRun()] * len(runs))[place] = own
    dense: dict[str, float] = {}
    for times in reversed(timings):
        dense |= {name: row.dense_int8_ms for name, row in times.items() if row.dense_int8_ms}
    layers = {name: tuple(each) for name, each in by_layer.items()}
    return Compared(runs=tuple(runs), layers=layers, dense_ms=dense)


def _timed_here(run: Evidence) -> SpeedReport | None:
    return next((timing for timing in run.timings if timing.source == HERE), None)


def _layer_times(run: Evidence) -> dict[str, LayerTime]:
    here = _timed_here(run)
    return {} if here is None else {row.layer: row for row in here.layers}


def titles(runs: Sequence[Evidence]) -> list[str]:
    """The names of runs, with the end of the id where two are alike."""
    names = [run.name for run in runs]
    return [
        f"{name} ({run.run_id[-6:]})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def overview(runs: Sequence[Evidence], _: Translate) -> Table:
    """What the runs came to, all in one table; what differs from the first run is marked."""
    rows = run_rows(runs, _)
    cost = runs[0].costs[0]

    def add(title: str, original: str, read: Callable[[Evidence], str]) -> None:
        rows.append([title, original, *map(read, runs)])

    original = f"{ModelFile.ORIGINAL}"
    labels = model_labels(_)
    add(_("Smaller"), "", lambda run: times_text(cost.size_bytes, run.size_bytes))
    for name in dict.fromkeys(name for run in runs for name in run.files):
        if name in labels and name != original:
            add(labels[name], "", lambda run, name=name: _file_text(run, name, cost.size_bytes))  # type: ignore[misc]
    add(_("Time against the original in 8 bits"), "", lambda run: _ratio_text(run, _))
    add(
        _("Energy of an image (modelled)"), energy_text(cost.energy_joules),
        lambda run: energy_text(run.costs[1].energy_joules),
    )  # fmt: skip
    add(_("Weights and activations"), "", _bits_text)
    add(_("Seed"), "", lambda run: str(run.record.request.seed))
    return Table(
        key="overview", title="", header=["", _("Original"), *titles(runs)],
        rows=rows, numeric=1, changed=_changed(rows, first=2),
    )  # fmt: skip


def _file_text(run: Evidence, name: str, before: float) -> str:
    size = run.files.get(name)
    return MISSING if not size else f"{size_text(size)} ({times_text(before, size)})"


def _ratio_text(run: Evidence, _: Translate) -> str:
    here = _timed_here(run)
    ratio = None if here is None else here.ratio()
    return _("not measured yet") if not ratio else times_as_long(ratio, _)


def _bits_text(run: Evidence) -> str:
    plan = run.record.plan
    bits = {bit for row in plan.layers for bit in _numbers(row.bits)}
    return "W" + "/".join(map(str, sorted(bits))) + f" · A{plan.activation_bits}"


def _numbers(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _changed(rows: Sequence[Sequence[str]], first: int) -> frozenset[tuple[int, int]]:
    """The cells that differ from those of the first run in the same row."""
    return frozenset(
        (place, column)
        for place, row in enumerate(rows)
        for column in range(first + 1, len(row))
        if row[column] != row[first]
    )


def layer_table(
    compared: Compared,
    what: str,
    order: str,
    labels: Mapping[str, str],
    *,
    only_different: bool,
    _: Translate,
) -> Table:
    """One thing of every layer, a column or two a run.

    Args:
        compared: The runs.
        what: ``PLAN``, ``ERRORS``, ``DIVERGENCE`` or ``TIME``.
        order: How layers are sorted, the worst of all runs first; or as in the network.
        labels: Names of the structures.
        only_different: Leave out layers that are alike in all runs.
        _: Translation of texts.
    """
    names = [name for name, own in compared.layers.items() if any(row.plan for row in own)]
    if order != IN_ORDER:
        names.sort(key=lambda name: -max(_key(row, order) for row in compared.layers[name]))
    names_of_runs, header, rows = titles(compared.runs), [_("Layer")], []
    if what == ERRORS:
        texts = (_("{run}: outputs"), _("{run}: weights"))
        header += [text.format(run=run) for run in names_of_runs for text in texts]
    else:
        header += ([_("Original, 8-bit")] if what == TIME else []) + names_of_runs
    for name in names:
        own = compared.layers[name]
        if only_different and len({row.plan for row in own}) == 1:
            continue
        rows.append([name, *_layer_cells(own, what, compared.dense_ms.get(name), labels)])
    first = 2 if what == TIME else 1
    changed = _changed(rows, first) if what == PLAN else frozenset()
    return Table(key="layers", title="", header=header, rows=rows, numeric=1 if what != PLAN else 99,
                 changed=changed)  # fmt: skip


def _layer_cells(
    own: Sequence[LayerOfRun], what: str, dense: float | None, labels: Mapping[str, str]
) -> list[str]:
    if what == PLAN:
        return [plan_cell(row.plan, labels) for row in own]
    if what == ERRORS:
        return [_percent(value) for row in own for value in (row.output_error, row.weight_error)]
    if what == DIVERGENCE:
        return [_percent(row.share) for row in own]
    return [_time(dense), *(_time(row.milliseconds) for row in own)]


def _key(row: LayerOfRun, order: str) -> float:
    keys = {
        BY_OUTPUT: row.output_error, BY_WEIGHTS: row.weight_error, BY_SHARE: row.share,
        BY_TIME: row.milliseconds,
    }  # fmt: skip
    value = keys[order]
    return -1.0 if value is None else value


def _percent(value: float | None) -> str:
    return MISSING if value is None else percent_text(value)


def _time(value: float | None) -> str:
    return MISSING if value is None else milliseconds_text(value)


def plan_cell(row: LayerPlan | None, labels: Mapping[str, str]) -> str:
    """What a layer becomes, as ``CP 12 · W4``."""
    if row is None:
        return MISSING
    name = labels.get(row.structure, row.structure)
    if row.structure == KEEP:
        return name
    rank = " × ".join(map(str, _numbers(row.rank)))
    bits = _numbers(row.bits)
    widths = "/".join(map(str, bits if len(set(bits)) > 1 else bits[:1]))
    return f"{name} {rank} · W{widths}" if rank else f"{name} · W{widths}"


def class_table(runs: Sequence[Evidence], _: Translate) -> Table | None:
    """The metric of each class in every run; of classifiers with counts and exact 95 % intervals."""
    paired = [run.predictions for run in runs]
    counted = [each for each in paired if each is not None and each.task == CLASSIFICATION]
    header = [_("Class"), _("Images"), _("Original"), *titles(runs)]
    if len(counted) < len(runs):
        names = list(dict.fromkeys(name for run in runs for name in run.after.per_class))
        rows = [
            [name, MISSING, _percent(runs[0].before.per_class.get(name)),
             *(_percent(run.after.per_class.get(name)) for run in runs)]
            for name in names
        ]  # fmt: skip
        note = _("The answers to each image are not kept with every run: counts and intervals are missing.")
    else:
        labels = counted[0].targets["labels"]
        rows = []
        for index, name in enumerate(counted[0].classes):
            chosen = labels == index
            if not chosen.any():
                continue
            answers = [counted[0].original, *(each.compressed for each in counted)]
            right = [int((answer["ranked"][chosen, 0] == index).sum()) for answer in answers]
            n = int(np.count_nonzero(chosen))
            rows.append([name, f"{n:,}", *(_share_text(count, n, _) for count in right)])
        note = _("Right of all images of a class, with the exact 95 % interval (Clopper and Pearson).")
    if not rows:
        return None
    return Table(
        key="classes", title=metric_label(runs[0].after.metric, _), header=header, rows=rows, numeric=1,
        note=note, changed=_changed(rows, first=3),
    )  # fmt: skip


def _share_text(count: int, n: int, _: Translate) -> str:
    share = Share(count=count, n=n)
    low, high = share.interval(RISK)
    interval = "–".join(decimal_text(100 * end, 1) for end in (low, high))
    return f"{percent_text(share.value)} ({interval})\n{count:,} / {n:,}"
