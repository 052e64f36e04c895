"""The number that each kind of criterion limits, read off a run's evidence; or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.deploy.runtime.speed_report import HERE, SpeedReport
from qaf_core.pipeline.intervals import Z95
from qaf_core.review.decision import criteria as kinds
from qaf_core.review.decision.criteria import Criterion
from qaf_core.review.decision.evidence import SPEED, Evidence
from qaf_core.review.decision.measured import Estimate, Exact, Measured, PairedDifference, Share
from qaf_core.runs.evidence.predictions import PairedPredictions
from qaf_core.text.said import Said, say

CLASSIFICATION = "classification"
_SPREAD_QUANTILES = 3.29  # standard deviations between the 5 % and the 95 % quantile of a normal distribution
_MEDIAN_FACTOR = 1.2533  # how much less a median is certain than a mean

BoolArray = NDArray[np.bool_]


def measure(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    """What a criterion limits, as it was measured; a sentence where it was not."""
    readers: dict[str, Callable[[Criterion, Evidence], Measured | Said]] = {
        kinds.ACCURACY_FLOOR: _accuracy,
        kinds.LARGEST_DROP: _drop,
        kinds.LATENCY: _latency,
        kinds.FILE_SIZE: _file_size,
        kinds.MEMORY: _memory,
        kinds.ENERGY: _energy,
    }
    return readers.get(criterion.kind, _one_sided)(criterion, evidence)


def class_index(paired: PairedPredictions, name: str) -> int | None:
    """The number of a class; None where there is none of this name."""
    return paired.classes.index(name) if name in paired.classes else None


def _of_class(criterion: Criterion, paired: PairedPredictions) -> BoolArray | Said:
    """Which images a criterion is of; why there are none."""
    labels = paired.targets["labels"]
    name = criterion.class_name
    if name is None:
        return np.ones(len(labels), bool)
    index = class_index(paired, name)
    if index is None:
        return say("there is no class {name}.", name=name)
    chosen: BoolArray = labels == index
    if not chosen.any():
        return say("none of the {n} images is of the class {name}.", n=f"{len(labels):,}", name=name)
    return chosen


def _accuracy(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    paired = evidence.predictions
    if paired is not None and paired.task == CLASSIFICATION:
        chosen = _of_class(criterion, paired)
        if isinstance(chosen, Said):
            return chosen
        right = paired.compressed["ranked"][chosen, 0] == paired.targets["labels"][chosen]
        return Share(count=int(right.sum()), n=len(right))
    if criterion.class_name is not None:
        return _no_predictions(evidence)
    return _estimate(evidence.after.value, evidence.after.ci95, evidence.after.n)


def _drop(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    paired, record = evidence.predictions, evidence.record
    if paired is not None and paired.task == CLASSIFICATION:
        chosen = _of_class(criterion, paired)
        if isinstance(chosen, Said):
            return chosen
        labels = paired.targets["labels"][chosen]
        before = paired.original["ranked"][chosen, 0] == labels
        after = paired.compressed["ranked"][chosen, 0] == labels
        return _difference(before, after)
    if criterion.class_name is not None:
        return _no_predictions(evidence)
    if record.drop is None or record.drop_ci95 is None:
        return say("the networks were not compared.")
    return _estimate(record.drop, record.drop_ci95, evidence.after.n)


def _one_sided(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    paired = evidence.predictions
    if paired is None or paired.task != CLASSIFICATION:
        return _no_predictions(evidence)
    ok = class_index(paired, criterion.ok_class or "")
    if ok is None:
        return say("there is no class {name}.", name=criterion.ok_class)
    missed = criterion.kind in (kinds.MISSED, kinds.MISSED_RISE)
    before, after = (one_sided_errors(paired, answers, ok, missed) for answers in ("original", "compressed"))
    if not len(after):
        return say("no image shows whether this happens: {n} images.", n=f"{len(paired.targets['labels']):,}")
    if criterion.kind in (kinds.MISSED, kinds.FALSE_ALARMS):
        return Share(count=int(after.sum()), n=len(after))
    return _difference(after, before)


def one_sided_errors(paired: PairedPredictions, network: str, ok: int, missed: bool) -> BoolArray:
    """Which images are answered wrong to one side.

    Args:
        paired: Of classifiers.
        network: ``original`` or ``compressed``.
        ok: The class that means "nothing found".
        missed: Defects answered ``ok``, of all defects; else ok images answered otherwise, of all ok images.
    """
    labels, answers = paired.targets["labels"], getattr(paired, network)["ranked"][:, 0]
    errors: BoolArray = (answers == ok)[labels != ok] if missed else (answers != ok)[labels == ok]
    return errors


def _difference(first: BoolArray, second: BoolArray) -> PairedDifference:
    return PairedDifference(
        lost=int((first & ~second).sum()), gained=int((~first & second).sum()), n=len(first)
    )


def _estimate(value: float, interval: Any, n: int) -> Measured:
    low, high = interval
    return Estimate(value=float(value), error=max(float(high) - float(low), 1e-12) / (2 * Z95), n=int(n))


def _no_predictions(evidence: Evidence) -> Said:
    if evidence.predictions is None:
        return say("the answers to each image are not kept with this run; let them be computed anew.")
    return say("cannot be told of this task.")


def _timing(criterion: Criterion, evidence: Evidence) -> SpeedReport | Said:
    """The measurement on the device a criterion names, the newest where there are several."""
    device = criterion.device.casefold()
    fitting = [
        timing
        for timing in evidence.timings
        if (device in timing.machine.processor.casefold() and device)
        or (not device and timing.source == HERE)
    ]
    if not fitting and SPEED in evidence.unreadable:
        return say("a measurement kept with this run cannot be read; measure again.")
    if not fitting:
        return say("not measured on this device.")
    return max(fitting, key=lambda timing: timing.measured_at)


def _file_of(criterion: Criterion) -> str:
    """The ONNX file that is run where the packed one is named: packed files are not run by ONNX Runtime."""
    return "factorized_int8" if criterion.file == kinds.PACKED else criterion.file


def _latency(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    timing = _timing(criterion, evidence)
    if isinstance(timing, Said):
        return timing
    row = timing.latencies.get(_file_of(criterion))
    if row is None:
        return say("this file was not measured there.")
    spread = (row.p95_ms - row.p5_ms) / _SPREAD_QUANTILES
    return Estimate(value=row.median_ms, error=max(_MEDIAN_FACTOR * spread / row.n**0.5, 1e-9), n=row.n)


def _file_size(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    if criterion.file not in evidence.files:
        return say("this file was not made yet.")
    return Exact(value=float(evidence.files[criterion.file]))


def _memory(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    timing = _timing(criterion, evidence)
    if isinstance(timing, Said):
        return timing
    peak = timing.peak_memory_bytes.get(_file_of(criterion))
    return say("not measured on this device.") if peak is None else Exact(value=float(peak))


def _energy(criterion: Criterion, evidence: Evidence) -> Measured | Said:
    """Joules as measured here where the processor tells them, else as the cost model has them."""
    for timing in evidence.timings:
        joules = timing.energy.joules.get(_file_of(criterion))
        if joules is not None:
            return Exact(value=joules / max(1, timing.energy.images))
    cost = evidence.record.cost
    modelled = None if cost is None else cost.energy_joules
    return say("not known.") if modelled is None else Exact(value=float(modelled))
