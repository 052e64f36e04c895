"""What a user chooses for a model: a weights file or published weights, and the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qaf_core.data.models.class_names import class_names_in, read_class_names
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.models.timm_names import TIMM_ARCHITECTURE
from qaf_core.data.weights.checkpoints import split_part
from qaf_core.data.weights.entries import WeightsHeader
from qaf_core.data.weights.header import read_header
from qaf_core.data.weights.load import count_outputs
from qaf_core.errors import DataError, ModelError, WeightsError
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.data.models.source import ModelSource

_TORCHVISION = "torchvision."


def choose_weights(
    source: ModelSource, weights: str | Path, classes: str | Path | None, workspace: Path | None
) -> ModelSource:
    """A model with other weights, and the classes they bring.

    Args:
        source: The model as it is listed.
        weights: A file, with `#raw`, `#ema` or a name where it holds several sets of weights, or for the
            networks of torchvision and timm a name of published weights.
        classes: File with the names of the classes, or None.
        workspace: Where published weights are kept, or None for torch's own cache.

    Raises:
        WeightsError: If the file does not exist or its header is not to be trusted.
        DataError: If the classes do not fit the weights.
    """
    own = replace(source, shipped=False, card={}, accuracy=None)
    if _names_published(source, weights):
        return _with_published(own, str(weights), classes, workspace)
    path, part = _existing(weights)
    header = read_header(path, source.limits, part)
    outputs = _count_outputs(source, header)
    if classes is None:
        names = class_names_in(header, path.name)
        names = names or (source.classes if outputs in (None, len(source.classes)) else None)
        names = names or tuple(f"class {index}" for index in range(_classes_for(outputs or 0)))
    else:
        names = read_class_names(classes)
    if outputs is None and ":" in source.architecture:
        outputs = len(source.classes)
    _check_count(names, outputs, path.name if ":" not in source.architecture else source.id)
    data = source.default_data if len(names) == len(source.classes) else None
    # A single output tells two classes apart: the network is then built with fewer outputs than classes.
    single = 1 if outputs == 1 and ":" not in source.architecture else None
    return replace(
        own,
        weights=path,
        weights_part=part,
        weights_note=header.note,
        classes=names,
        default_data=data,
        outputs=single,
    )


def choose_classes(source: ModelSource, classes: str | Path) -> ModelSource:
    """A model with its classes named by a file; without weights their number decides the outputs.

    Raises:
        DataError: If there are more or fewer than the network's outputs.
    """
    names = read_class_names(classes)
    if source.weights is not None or ":" in source.architecture:
        _check_count(names, len(source.classes), source.id)
    data = source.default_data if len(names) == len(source.classes) else None
    return replace(source, classes=names, default_data=data)


def choose_preprocessing(source: ModelSource, changes: Mapping[str, Any]) -> ModelSource:
    """A model fed in another way.

    Args:
        source: The model.
        changes: Fields of `Preprocessing` by name; the others stay as they are.

    Raises:
        ModelError: If a field is unknown or out of range, or has another number of channels.
    """
    steps = Preprocessing.from_dict({**source.preprocessing.to_dict(), **changes})
    channels = source.input_shape[0]
    if len(steps.mean) != channels:
        raise ModelError(
            "preprocessing of the model is malformed",
            got=say("{count} channels", count=len(steps.mean)),
            expected=say("{value} for {model}", value=channels, model=source.id),
        )
    return replace(source, preprocessing=steps)


def read_preprocessing(path: Path) -> dict[str, Any]:
    """Fields of `Preprocessing` from a JSON file.

    Raises:
        ModelError: If it cannot be read or is no object.
    """
    try:
        values = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, RuntimeError) as error:
        raise ModelError(
            say("preprocessing cannot be read: {path}", path=path),
            got=getattr(error, "strerror", None) or say("no JSON"),
            expected='a JSON file, as {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}',
        ) from error
    if not isinstance(values, dict):
        raise ModelError(
            say("preprocessing in {path} is malformed", path=path),
            got=type(values).__name__,
            expected="an object",
        )
    return values


def _names_published(source: ModelSource, weights: str | Path) -> bool:
    """Whether weights is a name of published weights of this network, and not a path."""
    if source.architecture.startswith(TIMM_ARCHITECTURE):
        from qaf_core.data.models.timm_networks import is_timm_weights

        return is_timm_weights(source.architecture.removeprefix(TIMM_ARCHITECTURE), weights)
    from qaf_core.data.models.published import is_published_name

    return is_published_name(weights) and source.architecture.startswith(_TORCHVISION)


def _count_outputs(source: ModelSource, header: WeightsHeader) -> int | None:
    """What the weights say of the outputs: those of a factory are up to its code."""
    if source.architecture.startswith(TIMM_ARCHITECTURE):
        from qaf_core.data.models.timm_networks import count_timm_outputs

        return count_timm_outputs(source.architecture.removeprefix(TIMM_ARCHITECTURE), header)
    return None if ":" in source.architecture else count_outputs(header)


def _with_published(
    source: ModelSource, name: str, classes: str | Path | None, workspace: Path | None
) -> ModelSource:
    from qaf_core.data.models.published import describe_published, published_path

    architecture = source.architecture
    if architecture.startswith(TIMM_ARCHITECTURE):
        from qaf_core.data.models.timm_networks import describe_timm_weights

        published = describe_timm_weights(architecture.removeprefix(TIMM_ARCHITECTURE), name)
        architecture = TIMM_ARCHITECTURE + published.name  # other weights may be for images of another size
    else:
        network = architecture.removeprefix(_TORCHVISION)
        published = describe_published(network, name, source.input_shape[1:])
    own = replace(
        source,
        architecture=architecture,
        weights=published_path(published, workspace),
        weights_url=published.url,
        classes=published.classes,
        preprocessing=published.preprocessing,
        accuracy=published.accuracy,
    )
    return own if classes is None else choose_classes(own, classes)


def _existing(weights: str | Path) -> tuple[Path, str | None]:
    try:
        path, part = split_part(weights)
        exists = path.is_file()
    except (OSError, RuntimeError):  # no permission, a name too long, an unknown ~user
        exists = False
    if not exists:
        raise WeightsError(
            say("weights file not found: {path}", path=weights),
            remedy="check the path given with --weights",
        )
    return path, part


def _classes_for(outputs: int) -> int:
    """Classes that so many outputs tell apart: a single one tells two."""
    return 2 if outputs == 1 else outputs


def _check_count(names: tuple[str, ...], outputs: int | None, what: str) -> None:
    if outputs is not None and len(names) != _classes_for(outputs):
        single = say("2, for its single output")
        expected = say("{outputs}, one for each output", outputs=outputs) if outputs != 1 else single
        raise DataError(
            say("the classes do not fit {what}", what=what),
            got=say("{count} names", count=len(names)),
            expected=expected,
            remedy="name them in a file, one a line, with --classes",
        )
