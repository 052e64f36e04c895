"""All that a report tells, gathered from the store and judged once: no words yet, no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from qaf_core.errors import QafError
from qaf_core.network.plan.energy_model import MODELLED
from qaf_core.review.decision.changes import Changes, compare_answers
from qaf_core.review.decision.criteria import ONE_SIDED, PACKED, CriteriaSet, Criterion
from qaf_core.review.decision.economics import (
    Assumptions,
    BusinessCase,
    NetworkCosts,
    compute_case,
    load_assumptions,
)
from qaf_core.review.decision.evidence import Evidence, collect_evidence, sha256_of
from qaf_core.review.decision.numbers import CLASSIFICATION
from qaf_core.review.decision.other_tasks import DETECTION, SEGMENTATION, TaskChanges, compare_task
from qaf_core.review.decision.risks import ReviewNotes, Risk, list_risks, read_notes
from qaf_core.review.decision.verdict import Recommendation, Verdict, recommend
from qaf_core.runs.evidence.predictions import PairedPredictions
from qaf_core.runs.listing import deployable_files
from qaf_core.runs.store.request import source_of
from qaf_core.runs.store.store import Store
from qaf_core.text.said import say

MOST_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Review:
    """A decision about one to five runs of one model on the same images.

    Attributes:
        runs: What is known of each, in the order asked for.
        criteria: What they are judged by: the last set of the first run that has any.
        criteria_sets: All sets of that run, oldest first.
        recommendation: With the verdict on each run.
        chosen: The run that the report is about: the recommended one, else the first.
        changes: Of the chosen run; None where its answers are no classes or not kept.
        task_changes: The same of masks and boxes.
        assumptions, case: The business case; None where nothing was assumed.
        risks, notes: Of the chosen run.
        sha256: Of weights, data and files, by what they are of.
        pictures: Of images whose answer changed, as data addresses by place; empty where none were asked for.
    """

    runs: tuple[Evidence, ...]
    criteria: tuple[Criterion, ...]
    criteria_sets: tuple[CriteriaSet, ...]
    recommendation: Recommendation
    chosen: Evidence
    changes: Changes | None
    assumptions: Assumptions | None
    case: BusinessCase | None
    risks: tuple[Risk, ...]
    notes: ReviewNotes
    task_changes: TaskChanges | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[int, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """On the chosen run."""
        return self.recommendation.verdicts[self.chosen.run_id]

    @property
    def ok_class(self) -> str | None:
        """The class that means "nothing found", where a criterion names it."""
        return find_ok_class(self.criteria)


def find_ok_class(criteria: Sequence[Criterion]) -> str | None:
    """The class that means "nothing found", where a criterion names it."""
    return next((row.ok_class for row in criteria if row.kind in ONE_SIDED), None)


def gather_review(
    store: Store,
    run_ids: Sequence[str],
    *,
    pictures: int = 0,
    answers: Mapping[str, PairedPredictions | None] | None = None,
) -> Review:
    """Read and judge runs.

    Args:
        store: The run store.
        run_ids: One to five.
        pictures: At most so many images whose answer changed are read; none where they are gone.
        answers: By run, where they are known already; those of others are read.

    Raises:
        QafError: If they are too many, of several models, or were measured on different images.
        WorkspaceError: If one has no result, or what is kept with it is damaged.
    """
    if not 1 <= len(run_ids) <= MOST_RUNS or len(set(run_ids)) < len(run_ids):
        raise QafError(
            "a report compares one to five runs, each once",
            got=", ".join(run_ids) or say("none"),
            remedy="leave some out",
        )
    runs = tuple(collect_evidence(store, run_id, (answers or {}).get(run_id)) for run_id in run_ids)
    check_comparable(runs)
    sets = next((run.criteria for run in runs if run.criteria), ())
    criteria = sets[-1].criteria if sets else ()
    recommendation = recommend(criteria, runs)
    chosen = next((run for run in runs if run.run_id == recommendation.run_id), runs[0])
    folder = store.run_folder(chosen.run_id)
    changes, task_changes, paired = None, None, chosen.predictions
    if paired is not None and paired.task == CLASSIFICATION:
        ok_class = find_ok_class(criteria)
        changes = compare_answers(paired, ok_class if ok_class in paired.classes else None)
    elif paired is not None and paired.task in (SEGMENTATION, DETECTION):
        task_changes = compare_task(paired)
    assumptions, notes = load_assumptions(folder), read_notes(folder)
    verdict = recommendation.verdicts[chosen.run_id]
    return Review(
        runs=runs,
        criteria=criteria,
        criteria_sets=sets,
        recommendation=recommendation,
        chosen=chosen,
        changes=changes,
        assumptions=assumptions,
        case=None if assumptions is None else compute_case(assumptions, network_costs(chosen)),
        risks=list_risks(chosen, verdict, changes, notes),
        notes=notes,
        task_changes=task_changes,
        sha256=_digests(store, runs),
        pictures=read_pictures(store, chosen, changed_places(changes, task_changes)[:pictures]),
    )


def changed_places(changes: Changes | None, task_changes: TaskChanges | None) -> tuple[int, ...]:
    """The images to look at: those whose answer changed, or that have more wrong than before, most first."""
    if changes is not None:
        return tuple(row.index for row in changes.changed)
    return tuple(place for place, more in task_changes.changed if more > 0) if task_changes else ()


def read_pictures(store: Store, run: Evidence, places: Sequence[int]) -> Mapping[int, str]:
    """Images of a run as data addresses by place, masks and boxes drawn; none where the images are gone."""
    if not places:
        return {}
    from qaf_core.runs.evidence.gallery import picture_addresses

    try:
        return picture_addresses(store, run.run_id, places, run.predictions)
    except (QafError, OSError):  # the images may be gone since; the counts are kept
        return {}


def check_comparable(runs: Sequence[Evidence]) -> None:
    """Refuse runs that cannot stand side by side.

    Raises:
        QafError: If they are of several models, or were measured on different images.
    """
    for first, run in combinations(runs, 2):
        if run.record.model != first.record.model:
            raise QafError(
                "runs of several models cannot stand side by side",
                got=say("{one} and {other}", one=first.record.model, other=run.record.model),
                remedy="make a report of each",
            )
        if not _same_images(run, first):
            raise QafError(
                "these runs were measured on different images",
                got=say("{one} and {other}", one=first.name, other=run.name),
                expected="runs on the same images",
                remedy="make a report of each, or run one of them again on the other's images",
            )


def _same_images(one: Evidence, other: Evidence) -> bool:
    """Whether two runs were measured on the same images: by their content where both kept the answers."""
    if one.predictions is not None and other.predictions is not None:
        return one.predictions.data_sha256 == other.predictions.data_sha256
    keys = [
        (run.record.request.data, run.record.request.images, run.after.n, run.after.metric)
        for run in (one, other)
    ]
    return keys[0] == keys[1]


def network_costs(run: Evidence) -> NetworkCosts:
    """What a run measured of both networks, for the business case; 0 where nothing was measured."""
    before, after = run.costs
    timing, nothing = run.timings[-1] if run.timings else None, (0.0, 0.0)
    names = ("original_fp32", "factorized_int8")

    def pair(rows: Mapping[str, Any], read: Any) -> tuple[float, float]:
        if not all(name in rows for name in names):
            return 0.0, 0.0
        return float(read(rows[names[0]])), float(read(rows[names[1]]))

    return NetworkCosts(
        size_bytes=(float(before.size_bytes), float(run.files.get(PACKED, after.size_bytes))),
        seconds=pair(timing.latencies, lambda row: row.median_ms / 1e3 / timing.batch) if timing else nothing,
        joules=(before.energy_joules, after.energy_joules),
        memory_bytes=pair(timing.peak_memory_bytes, float) if timing else nothing,
    )


#: Where the joules of a business case come from, in words.
JOULES_FROM = MODELLED


def _digests(store: Store, runs: Sequence[Evidence]) -> dict[str, str]:
    digests: dict[str, str] = {}
    with contextlib.suppress(QafError, OSError):  # the model may be gone since; its runs are not
        weights = source_of(runs[0].record.request, store.workspace).weights
        if weights is not None:
            digests[f"weights: {weights.name}"] = sha256_of(weights)
    if runs[0].predictions is not None:
        digests["data: images and targets"] = runs[0].predictions.data_sha256
    for run in runs:
        for name, path in deployable_files(store.run_folder(run.run_id)).items():
            digests[f"{run.run_id}: {name}"] = sha256_of(path)
    return digests
