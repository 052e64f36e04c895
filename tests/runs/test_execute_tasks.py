"""Runs of networks that do not classify images: from images with targets to the stored result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import begun_run

from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.data.workspace.trust import trust
from qaf_core.errors import DataError, ModelError
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.worker.execute import execute_job

SHORT = {"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2}
PICTURES = 20  # few: a graph for each number of them is made of a network that loops over them
OWN_MODULE = '''
import numpy as np
import torch
from torch import nn
from qaf_core.pipeline.tasks import ScoredTask, register_task

INPUT_SHAPE, MEAN, STD = (3, 8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
CLASSES = ("dark", "bright", "brightest")


def stem():
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    return [first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.ReLU()]


class Named(nn.Module):
    """Scores by pixel in a mapping, as torchvision's networks put them out."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*stem(), nn.Conv2d(8, 3, 1))

    def forward(self, images):
        return {"out": self.body(images)}


class Boxes(nn.Module):
    """A box around the pixel of the highest score of each class."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*stem(), nn.Conv2d(8, 2, 3, padding=1))

    def forward(self, images):
        found = []
        for scores in self.body(images).flatten(2).sigmoid():
            value, place = scores.max(dim=1)
            x, y = place % 8, place // 8
            boxes = torch.stack([x - 2, y - 2, x + 3, y + 3], dim=1).float()
            found.append({"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": value})
        return found


class Brightness(ScoredTask):
    name, metric_name = "own brightness", "closeness"

    def forward(self, model, images):
        return {"value": model(images).reshape(len(images)).numpy()}

    def collate(self, images):
        return {"value": images.targets["y"]}

    def scores(self, predictions, targets):
        return 1 - np.abs(predictions["value"] - targets["value"])


def pixels():
    return nn.Sequential(*stem(), nn.Conv2d(8, 3, 1))


def named():
    return Named()


def boxes():
    return Boxes()


def brightness():
    return nn.Sequential(*stem(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


def unknown():
    return brightness()


pixels.task = named.task = "segmentation"
boxes.task = "detection"
brightness.task = "own brightness"
unknown.task = "colouring"
register_task(Brightness())
'''


@pytest.fixture(scope="module")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_tasks.py").write_text(OWN_MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for factory in ("pixels", "named", "boxes", "brightness", "unknown"):
            trust(f"own_tasks:{factory}", None)
        yield "own_tasks"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same pictures with masks, boxes and numbers."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (PICTURES, 8, 8, 3), dtype=np.uint8)
    corner = generator.integers(0, 4, (PICTURES, 2)).astype(np.float32)
    arrays: dict[str, dict[str, Any]] = {
        "masks": {"y": (x.mean(axis=3) // 86).astype(np.uint8)},
        "boxes": {
            "boxes": np.concatenate([corner, corner + 5], axis=1),
            "labels": 1 + np.arange(PICTURES) % 2,
            "counts": np.ones(PICTURES, int),
        },
        "numbers": {"y": x.reshape(PICTURES, -1).mean(axis=1) / 255},
    }
    for name, targets in arrays.items():
        np.savez(folder / f"{name}.npz", x=x, **targets)
    return {name: str(folder / f"{name}.npz") for name in arrays}


def run(store: Store, model: str, data: str, **fields: Any) -> dict[str, Any]:
    inventory = load_inventory(find_model(model))
    plan = plan_for_ratio(inventory, model=model, ratio=1.5, bits=4)
    request = RunRequest(model=model, plan={**plan.to_dict(), "options": SHORT}, data=data, **fields)
    return execute_job(store, begun_run(store, request))


@pytest.mark.parametrize(
    ("factory", "kind", "metric", "extra"),
    [
        ("pixels", "masks", "miou", "pixel_accuracy"),
        ("named", "masks", "miou", "pixel_accuracy"),
        ("boxes", "boxes", "map50", "map"),
        ("brightness", "numbers", "closeness", None),
    ],
)
def test_every_task_runs_from_images_to_the_stored_result(
    store: Store,
    own_module: str,
    data: dict[str, str],
    factory: str,
    kind: str,
    metric: str,
    extra: str | None,
) -> None:
    first = run(store, f"{own_module}:{factory}", data[kind])
    assert first["status"] == "completed"
    for which in ("baseline", "compressed"):
        evaluation = first[which]
        assert evaluation["metric"] == metric
        assert evaluation["n"] == 15  # a quarter of the pictures calibrates
        low, high = evaluation["ci95"]
        assert low <= evaluation["value"] <= high
        assert list(evaluation["extra"]) == ([extra] if extra else [])
    assert first["baseline"]["agreement"] is None
    assert 0 <= first["compressed"]["agreement"] <= 1
    assert first["drop"] == pytest.approx(first["baseline"]["value"] - first["compressed"]["value"])
    assert first["drop_ci95"][0] <= first["drop"] <= first["drop_ci95"][1]
    assert len(first["layers"]) == 3
    if factory == "pixels":  # as "named", whose predictions come back too
        return
    again = run(store, f"{own_module}:{factory}", data[kind])
    assert again["baseline"] == first["baseline"], "the original's predictions are kept and read back"
    assert again["compressed"] == first["compressed"]


@pytest.mark.parametrize(("factory", "kind"), [("named", "masks"), ("boxes", "boxes")])
def test_the_papers_batchnorm_choice_reads_every_kind_of_output(
    store: Store, own_module: str, data: dict[str, str], factory: str, kind: str
) -> None:
    result = run(store, f"{own_module}:{factory}", data[kind], method="paper")
    assert result["status"] == "completed"


@pytest.mark.parametrize(
    ("factory", "kind", "error", "message"),
    [
        ("unknown", "numbers", ModelError, "unknown task; got colouring"),
        ("boxes", "numbers", DataError, "lacks array boxes and labels and counts"),
        ("pixels", "numbers", DataError, "masks of numbers.npz have the wrong shape"),
        ("pixels", "builtin", DataError, "has no built-in images"),
    ],
)
def test_what_does_not_fit_the_task_is_told_before_solving(
    store: Store,
    own_module: str,
    data: dict[str, str],
    factory: str,
    kind: str,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run(store, f"{own_module}:{factory}", data.get(kind, kind))
    assert store.list_runs()[0].status == "failed"


def test_the_module_named_in_the_documentation_works(store: Store, own_module: str, tmp_path: Path) -> None:
    from qaf_core.pipeline import tasks

    assert tasks.__doc__ is not None
    example = tasks.__doc__.split("::\n", 1)[1].split("\nCall ", 1)[0]
    lines = [line[4:] for line in example.splitlines()]
    namespace: dict[str, Any] = {
        "np": np,
        "ScoredTask": tasks.ScoredTask,
        "register_task": tasks.register_task,
    }
    exec("\n".join(lines), namespace)
    task = tasks.find_task("brightness")
    evaluation = task.metric({"value": np.array([0.5, 0.25])}, {"value": np.array([0.5, 0.75])}, ())
    assert (evaluation.metric, evaluation.value) == ("closeness", 0.75)
