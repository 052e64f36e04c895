"""The real checkpoints and images the benchmarks measure on, found through the environment variable
QAF_REAL_DATA.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from qaf_core.data.load import ImageSet, load_images, to_batches
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.layer_info import LayerInfo


def real_data_folder() -> Path:
    """The folder, or an exit with one line that says what is missing."""
    folder = os.environ.get("QAF_REAL_DATA")
    if not folder or not Path(folder, "cifar10_eval_2000.npz").exists():
        sys.exit(
            "Set QAF_REAL_DATA to the folder that holds cifar10_eval_2000.npz, "
            "cifar10_calibration_1024.npz and the checkpoints."
        )
    return Path(folder)


def load_network(depth: int) -> tuple[ModelSource, torch.nn.Module, tuple[LayerInfo, ...]]:
    """ResNet-20 or ResNet-32 with its CIFAR-10 weights, and its inventory."""
    source = find_model(
        f"cifar/resnet{depth}", weights=str(real_data_folder() / f"cifar10_resnet{depth}.safetensors")
    )
    model = build_model(source)
    return source, model, take_inventory(model, source.input_shape)


def load_sets(source: ModelSource) -> tuple[torch.Tensor, ImageSet]:
    """Normalised calibration images ``(1024, 3, 32, 32)`` and the 2,000 evaluation images with labels."""
    folder = real_data_folder()
    calibration = load_images(str(folder / "cifar10_calibration_1024.npz"), source, split="calibration")
    evaluation = load_images(str(folder / "cifar10_eval_2000.npz"), source, split="evaluation")
    return torch.cat([images for images, _ in to_batches(calibration, source)]), evaluation
