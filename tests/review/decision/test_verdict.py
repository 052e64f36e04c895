"""Verdicts follow from intervals: against SciPy, by hand, and by simulation with a known true drop."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import paired_answers
from scipy.stats import binomtest

from benchmarks.verdicts import simulate_pair, summarise
from qaf_core.pipeline.events import RunStatus
from qaf_core.review.decision.criteria import Criterion
from qaf_core.review.decision.evidence import Evidence
from qaf_core.review.decision.measured import Estimate, Exact, PairedDifference, Share, more_needed
from qaf_core.review.decision.verdict import judge, recommend
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.request import RunRequest

CLASSES = ("ok", "crack", "pit")
COST = {
    **dict.fromkeys(("params", "size_bytes", "macs", "bops", "peak_activation_bytes"), 1),
    "energy_joules": 1e-3,
}


def evidence(name: str, lost: int, gained: int, *, n: int = 1000, size: int = 1000) -> Evidence:
    record = RunRecord(
        id=name, kind="compress", status=RunStatus.COMPLETED, created_at=0.0,
        request=RunRequest(model="inspection/resnet20", name=name), result={"cost": COST},
    )  # fmt: skip
    return Evidence(record=record, predictions=paired_answers(n, lost, gained), files={"packed": size})


def test_a_share_has_the_exact_interval() -> None:
    for count, n in ((0, 40), (3, 40), (40, 40)):
        expected = binomtest(count, n).proportion_ci(confidence_level=0.975)
        assert Share(count=count, n=n).interval(0.025) == pytest.approx((expected.low, expected.high))


def test_a_drop_passes_only_with_its_whole_interval() -> None:
    drop = Criterion(kind="largest_drop", limit=0.02)
    statuses = {
        (lost, gained): judge([drop], evidence("a", lost, gained)).status
        for lost, gained in ((5, 5), (25, 5), (60, 5))
    }
    assert statuses == {(5, 5): "pass", (25, 5): "open", (60, 5): "fail"}


def test_an_open_verdict_tells_how_many_images_more() -> None:
    row = judge([Criterion(kind="largest_drop", limit=0.02)], evidence("a", 25, 5)).rows[0]
    assert row.more is not None
    assert row.more > 100
    assert "not shown with 1,000 images" in row.reason.text()
    assert f"about {row.more:,} more" in row.reason.text()


def test_intervals_widen_with_criteria_and_runs() -> None:
    drop = Criterion(kind="largest_drop", limit=0.02)
    size = Criterion(kind="file_size", limit=2000)
    alone = judge([drop, size], evidence("a", 9, 5))
    both = judge([drop, Criterion(kind="accuracy_floor", limit=0.5)], evidence("a", 9, 5), runs=2)
    assert (alone.risk, both.risk) == (0.05, 0.05 / 4)
    assert both.rows[0].high > alone.rows[0].high  # type: ignore[operator]


def test_one_sided_errors_and_classes() -> None:
    told = evidence("a", 0, 0)
    missed = judge([Criterion(kind="missed_defects", limit=0.5, ok_class="ok")], told).rows[0]
    labels, answers = told.predictions.targets["labels"], told.predictions.compressed["ranked"][:, 0]  # type: ignore[union-attr]
    assert missed.value == ((answers == 0) & (labels != 0)).sum() / (labels != 0).sum()
    assert missed.n == (labels != 0).sum()
    of_class = judge([Criterion(kind="accuracy_floor", limit=0.5, class_name="crack")], told).rows[0]
    assert of_class.n == (labels == 1).sum()


@pytest.mark.parametrize(
    ("criterion", "why"),
    [
        (Criterion(kind="largest_drop", limit=0.1, class_name="dent"), "there is no class dent"),
        (Criterion(kind="latency", limit=3, device="Cortex"), "not measured on this device"),
        (Criterion(kind="file_size", limit=9, file="factorized_int8"), "not made yet"),
    ],
)
def test_what_was_not_measured_stays_open(criterion: Criterion, why: str) -> None:
    verdict = judge([criterion], evidence("a", 0, 0))
    assert verdict.status == "open"
    assert why in verdict.reasons[0].text()
    assert verdict.rows[0].value is None


def test_a_critical_class_without_images_is_not_shown() -> None:
    told = evidence("a", 0, 0)
    told.predictions.targets["labels"][:] = 0  # type: ignore[union-attr]
    verdict = judge([Criterion(kind="largest_drop", limit=0.1, class_name="pit")], told)
    assert verdict.status == "open"
    assert "none of the 1,000 images is of the class pit" in verdict.reasons[0].text()


def test_no_criteria_is_no_pass() -> None:
    assert judge([], evidence("a", 0, 0)).status == "open"
    assert recommend([], [evidence("a", 0, 0)]).run_id is None


def test_of_the_runs_that_pass_the_smallest_is_taken() -> None:
    runs = [
        evidence("large", 2, 2, size=900),
        evidence("small", 5, 5, size=500),
        evidence("tiny", 90, 5, size=100),
    ]
    found = recommend([Criterion(kind="largest_drop", limit=0.02)], runs)
    assert found.run_id == "small"
    assert {name: row.status for name, row in found.verdicts.items()} == {
        "large": "pass", "small": "pass", "tiny": "fail"
    }  # fmt: skip
    assert "Of 3 runs 2 pass" in found.reasons[0].text()
    none = recommend([Criterion(kind="largest_drop", limit=0.0001)], runs)
    assert none.run_id is None


def test_exact_numbers_need_no_more_images() -> None:
    assert Exact(value=3.0).interval(0.01) == (3.0, 3.0)
    assert more_needed(Exact(value=3.0), 4.0, 0.05) == 1
    assert more_needed(Exact(value=4.0), 4.0, 0.05) is None


def test_more_images_are_asked_for_nearer_to_the_limit() -> None:
    measured = PairedDifference(lost=30, gained=20, n=1000)
    near, far = (more_needed(measured, limit, 0.05) for limit in (0.012, 0.02))
    assert near is not None
    assert far is not None
    assert near > far > 0
    rounds = more_needed(Estimate(value=4.0, error=0.1, n=50), 4.15, 0.05)
    assert rounds is not None
    assert 10 < rounds < 2000


def test_verdicts_keep_their_word_on_simulated_pairs() -> None:
    """A hundred pairs each here; benchmarks/verdicts.py has a thousand."""
    generator = np.random.default_rng(4)
    spread = summarise([simulate_pair(generator, 2000, 0.01) for _ in range(100)], 0.01)
    assert spread["settled"] >= 0.8
    generator = np.random.default_rng(5)
    worst = summarise([simulate_pair(generator, 2000, 0.01, true=0.01001) for _ in range(100)], 0.01)
    assert worst["false_passes"] <= 0.05
    best = summarise([simulate_pair(generator, 2000, 0.01, true=0.00999) for _ in range(100)], 0.01)
    assert best["false_fails"] <= 0.05
