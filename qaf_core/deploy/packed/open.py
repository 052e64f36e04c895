"""Packed files on their own: the network is built from what the file tells, no weights file is needed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.data.models.catalogue import build_model
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.models.source import ModelSource
from qaf_core.deploy.packed.read import load_packed, read_index
from qaf_core.errors import ModelError, WeightsError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inference import on_cpu

if TYPE_CHECKING:
    from torch import nn


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """The compressed network a packed file holds, ready for inference.

    Args:
        path: The file.
        model: The original network, whatever its weights; it is not changed. Networks of a user's own code
            need it: the file only names their code, and what a file names is never imported.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        WeightsError: If the file is incomplete, altered, of another version or for another network, or its
            architecture cannot be built here, or is a user's own and no model is given.
        ModelError: If the model given cannot be captured.
    """
    path = Path(path).expanduser()
    index = read_index(path)
    if model is None:
        return load_packed(path, _build(path, index))
    shape = index.get("input_shape")
    model = on_cpu(model)
    return load_packed(path, copy.deepcopy(model if shape is None else capture(model, shape)).float())


def describe_packed(path: Path | str) -> ModelSource:
    """What a packed file says about its network: architecture, classes, input shape and normalisation.

    Raises:
        WeightsError: If it is no packed file, or lacks one of these.
    """
    return _source_of(Path(path), read_index(Path(path)))


def _build(path: Path, index: dict[str, Any]) -> nn.Module:
    architecture = str(index.get("architecture", ""))
    if ":" in architecture:
        raise WeightsError(
            "the packed model is of a user's own code, which is not imported because a file names it",
            got=architecture,
            remedy="if you trust it, import it and pass the network: load(path, model)",
        )
    source = _source_of(path, index)
    try:
        return build_model(source, with_weights=False)
    except (ModelError, KeyError, ValueError) as error:
        raise WeightsError(
            "the network of the packed model cannot be built here",
            got=f"{source.architecture} ({' '.join(str(error).split())[:120]})",
            remedy="update qaf and torchvision",
        ) from error


def _source_of(path: Path, index: dict[str, Any]) -> ModelSource:
    try:
        classes = index["classes"]
        names = [f"class {number}" for number in range(classes)] if isinstance(classes, int) else classes
        channels, height, width = index["input_shape"]
        steps = Preprocessing.from_dict(
            {"crop": [height, width], "mean": index["mean"], "std": index["std"]}
            | (index.get("preprocessing") or {})
        )
        if steps.shape != (height, width, channels):
            raise ValueError(f"preprocessing for {steps.shape}, input_shape {(channels, height, width)}")
        return ModelSource(
            id=index["model"],
            title=index["model"],
            architecture=index["architecture"],
            preprocessing=steps,
            classes=tuple(names),
            task=index.get("task", "classification"),
        )
    except (KeyError, TypeError, ValueError, ModelError) as error:
        raise WeightsError(
            "the packed model does not tell which network it is of",
            got=f"{path} ({type(error).__name__}: {error})",
            remedy="compress it again, or give the network: load(path, model)",
        ) from error
