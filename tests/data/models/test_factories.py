"""Models from the user's own code: built, described, and every way a factory can be wrong."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from qaf_core.data.models.catalogue import build_model, find_model, load_inventory
from qaf_core.data.models.factories import call_factory, describe_factory
from qaf_core.errors import ModelError

FACTORY = """
from torch import nn
CLASSES = ("good", "bad")
def make():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))
make.input_shape = (1, 8, 8)
def bare():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
bare.classes = ()
def broken():
    raise ValueError("no such\\nthing")
def number():
    return 7
number.classes = ("a",)
broken.classes = ("a",)
def crooked():
    return make()
crooked.input_shape = (8, 8)
def pixels():
    return make()
pixels.task = "segmentation"
def wrong_task():
    return make()
wrong_task.task = ("segmentation",)
value = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_factory_of_the_user_is_built_and_described(own_module: str) -> None:
    source = find_model(f"{own_module}:make")
    assert (source.input_shape, source.classes, source.preprocessing.mean) == (
        (1, 8, 8),
        ("good", "bad"),
        (0.5,),
    )
    assert source == describe_factory(f"{own_module}:make")
    assert build_model(source)(torch.zeros(1, 1, 8, 8)).shape == (1, 2)
    assert call_factory(f"{own_module}:make").training, "a factory's model comes as it is"
    assert [row.kind for row in load_inventory(source)] == ["conv2d", "linear"]
    assert len(find_model(f"{own_module}:bare").classes) == 7
    assert source.task == "classification"
    assert find_model(f"{own_module}:pixels").task == "segmentation"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", "failed; got ValueError: no such thing"),
        ("number", "returned no model; got int"),
        ("missing", "has no function missing"),
        ("value", "has no function value"),
        ("crooked", r"input_shape of .* is malformed; got \(8, 8\)"),
        ("wrong_task", "task of the model factory is malformed"),
        ("", "has no function"),
    ],
)
def test_a_bad_factory_is_told_in_one_line(own_module: str, factory: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(find_model(f"{own_module}:{factory}"))


@pytest.mark.parametrize("name", ["no_such_package.at_all:make", ":make"])
def test_a_module_that_cannot_be_imported_is_told(name: str) -> None:
    with pytest.raises(ModelError, match="cannot import"):
        find_model(name)


def test_a_factory_says_how_images_are_prepared(own_module: str, tmp_path: Path) -> None:
    file = tmp_path / f"{own_module}.py"
    file.write_text(file.read_text() + 'make.preprocessing = {"mean": [0.1], "std": [0.2], "scale": 1}\n')
    source = find_model(f"{own_module}:make")
    assert source.preprocessing.scale == 1
    steps = source.preprocessing
    assert (steps.mean, steps.std, source.input_shape) == ((0.1,), (0.2,), (1, 8, 8))
    file.write_text(file.read_text() + "make.preprocessing = 3\n")
    sys.modules.pop(own_module)
    importlib.invalidate_caches()
    with pytest.raises(ModelError, match="preprocessing of the model factory is malformed; got 3"):
        find_model(f"{own_module}:make")
