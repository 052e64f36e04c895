"""Names and explanations of what was measured."""

from __future__ import annotations

import pytest

from qaf_core.pipeline.tasks import find_task
from qaf_core.review.metrics import metric_help, metric_label


@pytest.mark.parametrize("name", ["top1", "top5", "miou", "pixel_accuracy", "map50", "map"])
def test_every_metric_here_has_a_name_for_people(name: str) -> None:
    assert metric_label(name) not in ("", name)
    assert metric_label(name, lambda text: f"<{text}>") == f"<{metric_label(name)}>"


@pytest.mark.parametrize(
    ("task", "metric"), [("classification", "top1"), ("segmentation", "miou"), ("detection", "map50")]
)
def test_the_metric_of_every_task_is_explained(task: str, metric: str) -> None:
    assert find_task(task).name == task
    assert metric_help(metric).endswith(".")


def test_a_metric_of_ones_own_keeps_its_name() -> None:
    assert (metric_label("closeness"), metric_help("closeness")) == ("closeness", "")
    assert metric_label(None) == "Accuracy"
