"""Trained weights: read from a checked file, matched with a network by name, and put into it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qaf_core.data.weights.checkpoints import pick_weights
from qaf_core.data.weights.entries import TensorEntry, WeightLimits, WeightsHeader
from qaf_core.data.weights.header import is_safetensors, read_header
from qaf_core.data.weights.tensor_names import COUNTERS, rename
from qaf_core.errors import WeightsError
from qaf_core.text.said import say

if TYPE_CHECKING:
    import torch
    from torch import nn

_CLASSIFIERS = ("fc.weight", "linear.weight", "head.weight", "heads.head.weight", "classifier.weight")
_TRAINED_FOR_ANOTHER = "choose the model these weights were trained for"


def count_outputs(header: WeightsHeader) -> int | None:
    """Rows of the last linear layer a header names, or None where no layer is known as such."""
    shapes = match_names(header.tensors, None)
    named = [name for name in _CLASSIFIERS if name in shapes]
    numbered = [name for name in shapes if name.startswith("classifier.") and name.endswith(".weight")]
    # The last module: classifier.10 comes after classifier.2; BatchNorm's single row of scales is none.
    numbered = [name for name in numbered if len(shapes[name].shape) >= 2]
    named += sorted(numbered, key=lambda name: (len(name), name))[-1:]
    return shapes[named[0]].shape[0] if named and shapes[named[0]].shape else None


def match_names(state: Mapping[str, TensorEntry], expected: Collection[str] | None) -> dict[str, TensorEntry]:
    """A header's tensors under the names a network uses; see ``rename``."""
    names = rename(state, expected)
    return {names[name]: entry for name, entry in state.items() if name in names}


def read_weights(
    path: Path, limits: WeightLimits | None = None, part: str | None = None
) -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file, on the CPU, without running anything in it.

    Args:
        path: safetensors, or a state dict of ``torch.save``, on its own or in a dict.
        limits: How much it may hold.
        part: Which of its weights, see `checkpoints`.

    Raises:
        WeightsError: If it is missing, damaged, too large, holds more than tensors, or not this part.
    """
    header = read_header(path, limits, part)
    with path.open("rb") as file:
        start = file.read(9)
    loaded = _load_safetensors(path) if is_safetensors(path.name, start) else _load_state_dict(path, part)
    if loaded.keys() != header.tensors.keys():
        raise WeightsError(
            say("weights file {path} changed while it was read", path=path.name),
            remedy="wait until it is complete",
        )
    return loaded


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            say("weights file {path} is no valid safetensors file", path=path.name),
            got=_first_line(error),
            remedy="download or export it again",
        ) from error


def _load_state_dict(path: Path, part: str | None) -> dict[str, torch.Tensor]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError,
        AttributeError,
    ) as error:  # fmt: skip
        raise WeightsError(
            say("weights file {path} cannot be read", path=path.name),
            got=type(error).__name__,
            expected="a safetensors file or a torch state dict that loads with weights_only=True",
        ) from error
    state: dict[str, torch.Tensor] = pick_weights(loaded, part, path.name).state
    return state


def load_weights(
    network: nn.Module, state: Mapping[str, torch.Tensor], file: str, model: str, part: str | None = None
) -> None:
    """Put weights into a network, after naming whatever does not fit.

    Args:
        network: Its state is overwritten. Tensors it ties together need to be there only once.
        state: As `read_weights` gives it; half precision is widened.
        file: Name of the file, for messages.
        model: Name of the model, for messages.
        part: Which of its weights, where prefixes tell several sets apart.

    Raises:
        WeightsError: If tensors are missing, unknown, of another shape or type, or not finite.
    """
    expected = network.state_dict()
    names = rename(state, expected, part, file)
    tensors = {names[name]: value for name, value in state.items() if name in names}
    for group in _tied_names(network):
        there = [name for name in group if name in tensors]
        tensors.update({name: tensors[there[0]] for name in group if there and name not in tensors})
    missing = [name for name in expected if name not in tensors and not name.endswith(COUNTERS)]
    unexpected = [name for name in tensors if name not in expected and not name.endswith(COUNTERS)]
    if missing or unexpected:
        raise WeightsError(
            say("weights file {file} is for another network than {model}", file=file, model=model),
            got=say("{count} unknown tensors ({names})", count=len(unexpected), names=_some(unexpected))
            if unexpected
            else None,
            expected=say("{count} more tensors ({names})", count=len(missing), names=_some(missing))
            if missing
            else None,
            remedy=_TRAINED_FOR_ANOTHER,
        )
    for name, value in expected.items():
        if name in tensors:
            _check_tensor(name, tensors[name], value, file, model)
    network.load_state_dict({name: tensors.get(name, value) for name, value in expected.items()})


def _check_tensor(name: str, value: torch.Tensor, expected: torch.Tensor, file: str, model: str) -> None:
    if value.shape != expected.shape:
        raise WeightsError(
            say("tensor {name} in {file} has the wrong shape", name=name, file=file),
            got=tuple(value.shape),
            expected=say("{value} for {model}", value=tuple(expected.shape), model=model),
            remedy=_TRAINED_FOR_ANOTHER,
        )
    kind = str(value.dtype).removeprefix("torch.")
    if expected.is_complex() or expected.is_floating_point():
        if not value.is_floating_point() and not (value.is_complex() and expected.is_complex()):
            raise WeightsError(
                say("tensor {name} in {file} has the wrong type", name=name, file=file),
                got=kind,
                expected="complex numbers" if expected.is_complex() else "floating-point numbers",
                remedy="give the original weights, not quantized ones",
            )
        if bool(value.to(expected.dtype).isfinite().all()):
            return
        if bool(value.isfinite().all()):
            dtype = str(expected.dtype).removeprefix("torch.")
            raise WeightsError(
                say(
                    "tensor {name} in {file} holds numbers beyond {wanted}",
                    name=name,
                    file=file,
                    wanted=dtype,
                ),
                got=kind,
            )
        raise WeightsError(
            say("tensor {name} in {file} holds NaN or infinite values", name=name, file=file),
            remedy="use an intact checkpoint",
        )
    # Whole numbers and truth values come over as they are, or not at all.
    if not value.is_complex() and bool((value.to(expected.dtype).to(value.dtype) == value).all()):
        return
    raise WeightsError(
        say("tensor {name} in {file} has the wrong type", name=name, file=file),
        got=say(
            "{kind} that {wanted} does not hold",
            kind=kind,
            wanted=str(expected.dtype).removeprefix("torch."),
        ),
        expected="whole numbers",
        remedy=_TRAINED_FOR_ANOTHER,
    )


def _tied_names(network: nn.Module) -> list[list[str]]:
    """Names that share one tensor, such as an embedding and the output layer of a language model."""
    groups: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (" …" if len(listed) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
