"""Accuracy and its intervals, against SciPy, by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn

from qaf_core.errors import DataError
from qaf_core.pipeline.evaluate import evaluate, paired_drop, predict, wilson_interval


class Rows(nn.Module):
    """Puts out its input, or whatever it is given."""

    def __init__(self, output: object = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> object:
        return images if self.output is None else self.output


@given(st.integers(1, 3000), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson_interval(successes, n)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found[0] <= successes / n <= found[1] <= 1


def test_no_image_tells_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_predictions_are_the_largest_scores_in_order() -> None:
    scores = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    done: list[int] = []
    found = predict(Rows(), [(scores[:7], None), (scores[7:], "unread")], on_batch=done.append)
    assert found.dtype == np.int64
    assert found.tolist() == scores.argmax(dim=1).tolist()
    assert done == [7, 10]


def test_networks_are_evaluated_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Dropout(0.99)).train()
    scores = torch.eye(5)
    assert predict(network, [(scores, None)]).tolist() == [0, 1, 2, 3, 4]
    assert not network.training


@pytest.mark.parametrize("output", [torch.zeros(2, 3, 4, 4), torch.zeros(2), {"scores": 1}, None])
def test_outputs_that_are_no_class_scores_are_told(output: object) -> None:
    images = torch.zeros(2, 3, 4, 4)
    with pytest.raises(DataError, match="one row of class scores per image"):
        predict(Rows(output), [(images, None)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_told(value: float) -> None:
    scores = torch.zeros(4, 3)
    scores[2, 1] = value
    with pytest.raises(DataError, match="not finite.*images 5 to 8"):
        predict(Rows(), [(torch.zeros(5, 3), None), (scores, None)])


def test_no_images_are_told() -> None:
    with pytest.raises(DataError, match="no images"):
        predict(Rows(), [])


def test_accuracy_by_class_and_agreement() -> None:
    labels = np.array([0, 0, 0, 2, 2, 5])
    predictions = np.array([0, 0, 1, 2, 1, 5])
    original = np.array([0, 1, 1, 2, 2, 5])
    found = evaluate(predictions, labels, ("ok", "crack", "pit"), original_predictions=original)
    assert found.metric == "top1"
    assert found.value == pytest.approx(4 / 6)
    assert found.n == 6
    assert found.ci95 == wilson_interval(4, 6)
    assert found.per_class == pytest.approx({"ok": 2 / 3, "pit": 0.5, "5": 1.0})
    assert found.agreement == pytest.approx(4 / 6)
    assert evaluate(predictions, labels, ()).agreement is None


def test_an_evaluation_is_ready_for_json() -> None:
    found = evaluate(np.array([0, 1]), np.array([0, 0]), ("a", "b")).to_dict()
    low, high = found.pop("ci95")
    assert found == {"metric": "top1", "value": 0.5, "n": 2, "per_class": {"a": 0.5}, "agreement": None}
    assert low < 0.5 < high
    assert all(isinstance(value, float) for value in (low, high))


def rights(lost: int, gained: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    original = np.array([True] * lost + [False] * gained + [True] * both + [False] * neither)
    compressed = np.array([False] * lost + [True] * gained + [True] * both + [False] * neither)
    return original, compressed


def test_paired_drop_by_hand() -> None:
    drop, (low, high) = paired_drop(*rights(lost=30, gained=10, both=950, neither=10))
    assert drop == pytest.approx(0.02)
    # Agresti & Min: 30.5 and 10.5 of 1,002; variance (41 - 20² / 1002) / 1002².
    centre, half = 20 / 1002, 1.959963984540054 * math.sqrt(41 - 400 / 1002) / 1002
    assert (low, high) == pytest.approx((centre - half, centre + half))


def test_paired_drop_of_equal_networks_is_zero_with_a_narrow_interval() -> None:
    drop, (low, high) = paired_drop(*rights(lost=0, gained=0, both=1900, neither=100))
    assert drop == 0
    assert low == pytest.approx(-high)
    assert 0 < high < 0.001


@given(*(st.integers(0, 60) for _ in range(4)))
def test_paired_drop_turns_round_with_its_arguments(lost: int, gained: int, both: int, neither: int) -> None:
    if lost + gained + both + neither == 0:
        return
    original, compressed = rights(lost, gained, both, neither)
    drop, (low, high) = paired_drop(original, compressed)
    back, (back_low, back_high) = paired_drop(compressed, original)
    assert (back, back_low, back_high) == pytest.approx((-drop, -high, -low))
    assert drop == pytest.approx(original.mean() - compressed.mean())
    assert -1 <= low <= high <= 1


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.04, 0.02, 300), (0.01, 0.01, 500), (0.1, 0.0, 200)])
def test_the_paired_interval_holds_the_truth_about_95_times_in_100(
    lost: float, gained: float, n: int
) -> None:
    generator = np.random.default_rng(0)
    rounds, held = 2000, 0
    for draw in generator.multinomial(n, [lost, gained, 0.8, 0.2 - lost - gained], size=rounds):
        _, (low, high) = paired_drop(*rights(*draw))
        held += low <= lost - gained <= high
    assert 0.93 <= held / rounds <= 0.995
