"""What changed for whom: every count equals scikit-learn's, computed from the same answers."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import paired_answers
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from qaf_core.errors import QafError
from qaf_core.review.decision.changes import compare_answers
from qaf_core.review.decision.measured import PairedDifference
from qaf_core.review.decision.other_tasks import compare_task
from qaf_core.review.report.figures import confusion_figure, on_screen
from qaf_core.runs.evidence.predictions import PairedPredictions

PAIRED = paired_answers(997, 60, 40)
LABELS = PAIRED.targets["labels"]
BEFORE, AFTER = PAIRED.original["ranked"][:, 0], PAIRED.compressed["ranked"][:, 0]


def test_counts_are_those_of_scikit_learn() -> None:
    found = compare_answers(PAIRED, "ok")
    assert found.confusion_before.tolist() == confusion_matrix(LABELS, BEFORE, labels=[0, 1, 2]).tolist()
    assert found.confusion_after.tolist() == confusion_matrix(LABELS, AFTER, labels=[0, 1, 2]).tolist()
    recalls = recall_score(LABELS, AFTER, average=None)
    assert [row.after / row.n for row in found.per_class] == pytest.approx(recalls)
    assert sum(row.before for row in found.per_class) == accuracy_score(LABELS, BEFORE, normalize=False)
    for answers, missed, alarms in (
        (BEFORE, found.missed.before, found.false_alarms.before),  # type: ignore[union-attr]
        (AFTER, found.missed.after, found.false_alarms.after),  # type: ignore[union-attr]
    ):
        table = confusion_matrix(LABELS != 0, answers != 0, labels=[False, True])
        assert (missed, alarms) == (table[1, 0], table[0, 1])


def test_fewer_answers_have_a_true_minus_sign() -> None:
    figure = confusion_figure(compare_answers(PAIRED), str)
    assert figure is not None
    cells = "".join(cell for row in figure.data[-1].text for cell in row)
    assert "−" in cells
    assert "-" not in cells


def test_classes_have_paired_intervals_that_hold_together() -> None:
    row = compare_answers(PAIRED).per_class[1]
    expected = PairedDifference(lost=row.lost, gained=row.gained, n=row.n).interval(0.05 / 3)
    assert (row.low, row.high) == expected
    assert row.drop == pytest.approx((row.before - row.after) / row.n)


def test_changed_answers_come_surest_first() -> None:
    changed = compare_answers(PAIRED).changed
    assert sorted(row.index for row in changed) == np.flatnonzero(BEFORE != AFTER).tolist()
    sure = [row.after_confidence for row in changed]
    assert sure == sorted(sure, reverse=True)  # type: ignore[type-var]
    first = changed[0]
    assert (first.before, first.after) == (
        PAIRED.classes[BEFORE[first.index]],
        PAIRED.classes[AFTER[first.index]],
    )


def test_reliability_is_that_of_scikit_learn() -> None:
    found = compare_answers(PAIRED).reliability
    assert found is not None
    sure = PAIRED.compressed["confidence"][:, 0].astype(np.float64)
    accuracy, confidence = calibration_curve(AFTER == LABELS, sure, n_bins=10)
    filled = [index for index, count in enumerate(found[1].counts) if count]
    assert [found[1].accuracy[i] for i in filled] == pytest.approx(accuracy)
    assert [found[1].confidence[i] for i in filled] == pytest.approx(confidence)
    weights = np.array([found[1].counts[i] for i in filled]) / len(sure)
    assert found[1].ece == pytest.approx(float((weights * np.abs(accuracy - confidence)).sum()))


def test_an_absent_class_has_no_interval_and_an_unknown_one_is_refused() -> None:
    few = paired_answers(30, 2, 1, classes=("ok", "crack"))
    grown = PairedPredictions(**{**vars(few), "classes": ("ok", "crack", "dent")})
    assert compare_answers(grown).per_class[2].drop is None
    with pytest.raises(QafError, match="unknown class"):
        compare_answers(few, "dent")


def paired(task: str, **parts: dict[str, np.ndarray]) -> PairedPredictions:
    return PairedPredictions(task=task, classes=("ground", "scratch"), images="", data_sha256="", **parts)


def test_masks_are_compared_by_class_and_image() -> None:
    true = np.zeros((4, 8, 8), np.uint8)
    true[:, :4] = 1
    worse = true.copy()
    worse[2, :2] = 0  # 16 of 32 pixels of the scratch are lost in one image
    found = compare_task(
        paired("segmentation", original={"masks": true}, compressed={"masks": worse}, targets={"masks": true})
    )
    scratch = found.per_class[1]
    assert (scratch.name, scratch.n, scratch.before) == ("scratch", 4, 1.0)
    assert scratch.after == pytest.approx(112 / 128)
    assert scratch.low is not None
    assert scratch.low <= 16 / 128 <= scratch.high  # type: ignore[operator]
    assert found.changed == ((2, 0.25),)


def test_boxes_are_compared_by_objects_missed_and_boxes_invented() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [5, 5, 25, 25]], np.float32)
    true = {"boxes": boxes, "labels": np.array([1, 1, 1]), "counts": np.array([2, 1])}
    good = {**true, "scores": np.array([0.9, 0.8, 0.7], np.float32)}
    bad = {**good, "scores": np.array([0.9, 0.2, 0.7], np.float32)}
    found = compare_task(paired("detection", original=good, compressed=bad, targets=true))
    row = found.per_class[0]
    assert (row.missed_before, row.missed_after, row.false_before, row.false_after) == (0, 1, 0, 0)
    assert found.changed == ((0, 1.0),)
    with pytest.raises(QafError, match="no measure by class"):
        compare_task(paired("regression", original={}, compressed={}, targets={}))


@pytest.mark.parametrize("dark", [False, True])
def test_white_numbers_can_be_read_on_the_full_cells_of_a_confusion_matrix(dark: bool) -> None:
    figure = confusion_figure(compare_answers(PAIRED), str)
    assert figure is not None
    for trace in on_screen(figure, dark=dark).data:
        ends = [colour for place, colour in trace.colorscale if place == 1 or trace.zmin < 0 == place]
        for colour in ends:
            parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
            linear = [((part + 0.055) / 1.055) ** 2.4 for part in parts]
            luminance = sum(
                share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
            )
            assert 1.05 / (luminance + 0.05) > 4.2, colour
