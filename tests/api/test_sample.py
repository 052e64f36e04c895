"""The shipped network that examples begin with."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest
import torch

import qaf_core
from qaf_core import QafError, evaluate
from qaf_core.api.sample import load_sample


def test_a_sample_is_trained_and_has_images_of_two_kinds() -> None:
    sample = load_sample("digits/cnn", limit=60)
    assert sample.calibration.shape == sample.images.shape == (60, 1, 8, 8)
    assert not torch.equal(sample.calibration, sample.images)
    assert not sample.model.training
    assert evaluate(sample.model, sample.images, sample.labels, classes=sample.classes).value > 0.9


@pytest.mark.parametrize("name", ["inspection/unet", "torchvision/resnet18"])
def test_what_is_no_sample_is_refused(name: str) -> None:
    with pytest.raises(QafError, match=f"no shipped classifier; got {name}"):
        load_sample(name)


def test_types_and_names_of_the_package_agree() -> None:
    """What a type checker is told is what is loaded on first use."""
    tree = ast.parse(Path(qaf_core.__file__).read_text(encoding="utf-8"))
    told = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == qaf_core._HOMES
    assert sorted(told) == sorted(qaf_core.__all__)
    assert set(told) <= set(dir(qaf_core))
    for name, module in told.items():
        assert getattr(qaf_core, name) is getattr(import_module(module or ""), name)
