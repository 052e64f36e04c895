"""Measuring networks in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qaf_core.api.compress import Compressed
from qaf_core.api.evaluate import evaluate
from qaf_core.errors import DataError, QafError
from qaf_core.network.plan.cost import total_cost
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.intervals import wilson_interval

SCORES = torch.randn(90, 3, 1, 1, generator=torch.Generator().manual_seed(0))
LABELS = SCORES.flatten(1).argmax(1)
ZERO = total_cost([])


def compressed_of(network: nn.Module, original: nn.Module) -> Compressed:
    return Compressed(
        network=network, original=original, plan=Plan(model="x", layers=()), layers=(), cost=ZERO,
        baseline_cost=ZERO, notes=(), seconds={}, content=b"", calibration=SCORES,
    )  # fmt: skip


def test_a_classifier_is_measured_with_its_interval() -> None:
    network = nn.Flatten().train()
    wrong = LABELS.clone()
    wrong[:9] = (wrong[:9] + 1) % 3
    found = evaluate(network, SCORES, wrong, classes=("a", "b", "c"))
    assert (found.metric, found.value, found.n, found.ci95) == ("top1", 0.9, 90, wilson_interval(81, 90))
    assert set(found.per_class) == {"a", "b", "c"}
    assert found.agreement is None
    assert network.training, "a network in training is left so"
    assert str(found) == "top1 0.9000 (0.8208 to 0.9465) on 90 images"


def test_a_compressed_network_is_compared_with_its_original_on_the_same_images() -> None:
    class Turned(nn.Module):
        def forward(self, images: Any) -> Any:
            return images.flatten(1).roll(1, dims=1)

    pairs = [(SCORES[:50], LABELS[:50]), (SCORES[50:], LABELS[50:])]
    found = evaluate(compressed_of(Turned(), nn.Flatten()), iter(pairs))
    assert (found.value, found.agreement, found.extra["drop"]) == (0.0, 0.0, 1.0)
    assert found.extra["drop_low"] < 1.0 == found.extra["drop_high"]
    assert str(evaluate(compressed_of(nn.Flatten(), nn.Flatten()), pairs)).endswith(
        "on 90 images, agreement with the original 1.0000"
    )


def test_masks_are_measured_by_their_overlap() -> None:
    scores = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = scores.argmax(1).numpy()
    masks[0, 0] = 255
    found = evaluate(nn.Identity(), scores, masks)
    assert (found.metric, found.value, found.n) == ("miou", 1.0, 6)
    assert np.isclose(sum(found.per_class.values()), 3)


@pytest.mark.parametrize(
    ("network", "labels", "classes", "message"),
    [
        (nn.Flatten(), LABELS + 1, (), "a label is beyond the network's outputs; got 3; expected 0 to 2"),
        (nn.Flatten(), LABELS, ("a", "b"), "classes and outputs differ in number; got 2 names; expected 3"),
        (nn.Conv2d(9, 3, 1), LABELS, (), "the network does not run on these images"),
        (5, LABELS, (), "this is no network; got int"),
    ],
)
def test_what_does_not_go_together_is_refused(network: Any, labels: Any, classes: Any, message: str) -> None:
    with pytest.raises(QafError, match=message):
        evaluate(network, SCORES, labels, classes=classes)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="no images to evaluate on"):
        evaluate(nn.Flatten(), [])
