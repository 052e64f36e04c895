"""Which of a network's outputs are its class scores, and what they say: one reading for every command.

A network may put out a tensor, or a dict, tuple or dataclass with the scores in it; a single logit, or a
single probability, for two classes; scores in another shape. What it is is found once, when the network is
built, by one image: from then on a hook on the network puts out plain scores, ``(N, classes)`` or ``(N,
classes, H, W)``. What can be meant in two ways is refused, with the way to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    from qaf_core.data.models.source import ModelSource

#: Keys under which networks put out class scores, and nothing else.
SCORE_KEYS = (
    "logits", "out", "scores", "class_scores", "class_logits", "output", "outputs", "pred", "preds",
    "prediction", "predictions",
)  # fmt: skip
READ_TASKS = ("classification", "segmentation")
DEEPEST = 3
_MOST_NAMED = 6
# A probability this near to 0 or 1 is taken for no nearer: its logarithm stays finite.
_SMALLEST_PROBABILITY = 1e-6
_KEEPS_VALUES = (
    "View", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Select", "Slice", "Clone", "Alias", "ToCopy",
    "Permute", "Transpose", "Expand", "Mean",
)  # fmt: skip
_PROBABILITIES = ("Sigmoid", "Hardsigmoid", "Softmax")

Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How scores are read from what a network puts out.

    Attributes:
        path: Keys and numbers that lead to the tensor; empty where it is put out by itself.
        outputs: Scores for each image or pixel.
        by_pixel: They are of pixels.
        shaped: The tensor has the shape of scores as it is, whatever the number of images.
        probability: A single output is a probability, not a logit.
    """

    path: Path = ()
    outputs: int
    by_pixel: bool = False
    shaped: bool = True
    probability: bool = False

    @property
    def changes(self) -> bool:
        """Whether scores are not what the network puts out as it is."""
        return bool(self.path) or not self.shaped or self.outputs == 1

    def read(self, output: Any, count: Any) -> Tensor:
        """The scores among the outputs for ``count`` images; of a single one the pair for both classes."""
        scores: Tensor = _follow(output, self.path)
        if not self.shaped:
            positions = scores.shape[-2:] if self.by_pixel else ()
            scores = scores.reshape(count, self.outputs, *positions)
        if self.outputs > 1:
            return scores
        if self.probability:
            share = scores.clamp(_SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
            scores = share.log() - (1 - share).log()
        return torch.cat([torch.zeros_like(scores), scores], dim=1)

    def __call__(self, _module: nn.Module, args: Any, named: Mapping[str, Any], output: Any) -> Tensor:
        """As a hook on the network."""
        images = next(value for value in (*args, *named.values()) if isinstance(value, Tensor))
        return self.read(output, images.shape[0])


def attach_reading(network: nn.Module, source: ModelSource) -> None:
    """Make a network put out plain class scores, one for each of its classes.

    Nothing is changed where it does already, where its task reads outputs of its own, or where it does not
    run on such an image: whoever runs it next says why.

    Args:
        network: In evaluation mode.
        source: Its input shape, task, classes, and where it says so, the output to read.

    Raises:
        DataError: If the scores are not there, could be several tensors, or are more or fewer than classes.
    """
    if source.task not in READ_TASKS and source.output is None:
        return
    try:
        output = _probe(network, source.input_shape)
    except Exception:  # a user's own code may raise anything; the first real run tells it in words
        return
    chosen = None if source.output is None else tuple(source.output.split("."))
    if source.task not in READ_TASKS:
        _follow_named(output, chosen or (), source.id)
        network.register_forward_hook(_Chosen(chosen or ()))
        return
    by_pixel, classes = source.task == "segmentation", len(source.classes)
    reading = find_reading(output, classes=classes, by_pixel=by_pixel, chosen=chosen, name=source.id)
    _check_count(reading.outputs, classes, source.id)
    if reading.outputs == 1:
        single = _follow(_probe(network, source.input_shape, gradients=True), reading.path)
        reading = replace(reading, probability=_is_probability(single))
    if reading.changes:
        network.register_forward_hook(reading, with_kwargs=True)


def count_classes(
    network: nn.Module, input_shape: Sequence[int], task: str, output: str | None
) -> int | None:
    """How many classes a network's outputs tell apart, or None where that does not show.

    Args:
        network: As it is built.
        input_shape: (C, H, W) of one image.
        task: What the outputs mean.
        output: Which of them to read, or None.
    """
    if task not in READ_TASKS:
        return None
    chosen = None if output is None else tuple(output.split("."))
    from qaf_core.network.graph.capture import weightless_copy

    try:
        outputs = _probe(weightless_copy(network).eval(), input_shape)  # shapes tell: nothing is computed
        reading = find_reading(outputs, classes=None, by_pixel=task == "segmentation", chosen=chosen)
    except Exception:  # told when the network is built
        return None
    return max(2, reading.outputs)


def find_reading(
    output: Any,
    *,
    classes: int | None,
    by_pixel: bool,
    chosen: Path | None = None,
    count: int = 1,
    name: str = "the network",
) -> Reading:
    """How class scores are read from what a network puts out for some images.

    Args:
        output: Anything.
        classes: Number of classes, or None where it is not known.
        by_pixel: The scores are of pixels.
        chosen: Keys to the tensor, where the user says which.
        count: Number of images.
        name: Of the network, for messages.

    Raises:
        DataError: If there are none, or several tensors could be the scores.
    """
    if chosen is not None:
        path, tensor = chosen, _follow_named(output, chosen, name)
    else:
        path, tensor = _find_scores(output, classes, by_pixel, count, name)
    outputs = _count_outputs(tensor, count, by_pixel)
    if outputs is None:
        raise _no_scores(tuple(tensor.shape), by_pixel, name)
    expected = (count, outputs, *(tensor.shape[-2:] if by_pixel else ()))
    return Reading(
        path=path,
        outputs=outputs,
        by_pixel=by_pixel,
        shaped=tuple(tensor.shape) == expected,
    )


def plain_scores(output: Any, count: int, *, by_pixel: bool) -> Tensor:
    """The class scores of a network of which nothing else is known, ``(N, K)`` or ``(N, K, H, W)``, K > 1.

    Args:
        output: What it puts out for ``count`` images.
        count: Number of images.
        by_pixel: The scores are of pixels.

    Raises:
        DataError: If there are none, or several tensors could be the scores.
    """
    reading = find_reading(output, classes=None, by_pixel=by_pixel, count=count)
    if reading.outputs < 2:
        raise _no_scores(tuple(_follow(output, reading.path).shape), by_pixel, "the network")
    return reading.read(output, count)


def scores_in(output: Any) -> Tensor | None:
    """The class scores among outputs where nothing is known of classes; None where there are none or several.

    The classes are in dimension 1; of a single output the pair for two classes.
    """
    try:
        path, scores = _find_scores(output, None, None, None, "the network")
    except DataError:
        return None
    if scores.ndim < 2:
        return None
    return Reading(path=path, outputs=int(scores.shape[1])).read(output, len(scores))


# --- looking


def _probe(network: nn.Module, input_shape: Sequence[int], *, gradients: bool = False) -> Any:
    """What a network puts out for one grey image; with gradients it tells where an output comes from."""
    first = next((value for value in network.parameters() if value.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, *input_shape, dtype=first.dtype, device=first.device, requires_grad=gradients)
    with torch.set_grad_enabled(gradients):
        return network(image.clone())


def _find_scores(
    output: Any, classes: int | None, by_pixel: bool | None, count: int | None, name: str
) -> tuple[Path, Tensor]:
    """The one tensor that can be meant: the only one, that of a known key, or the only one that fits."""
    every = list(_tensors(output))
    floats = [(path, value) for path, value in every if value.is_floating_point()]
    if not floats:
        description = (
            f"{every[0][1].dtype} {tuple(every[0][1].shape)}".removeprefix("torch.") if every else None
        )
        remedy = say("return the scores themselves, not the best class") if every else None
        raise _no_scores(description or type(output).__name__, bool(by_pixel), name, remedy)
    if len(floats) == 1:
        return floats[0]
    known = [(path, value) for path, value in floats if path and path[-1] in SCORE_KEYS and len(path) == 1]
    if len(known) == 1:
        return known[0]
    pool = known or floats
    if count is not None and by_pixel is not None:
        counts = {classes, 1} if classes == 2 else {classes}
        fitting = [pair for pair in pool if _count_outputs(pair[1], count, by_pixel) in counts]
        if len(fitting) == 1:
            return fitting[0]
    shown = ", ".join(f"{_spelled(path)} {tuple(value.shape)}" for path, value in pool[:_MOST_NAMED])
    example = _spelled(pool[0][0])
    raise DataError(
        say("{name} puts out several tensors that may be its class scores", name=name),
        got=shown + (" …" if len(pool) > _MOST_NAMED else ""),
        remedy=say(
            'say which: output = "{example}" on the model factory, or OUTPUT = "{example}" in its module',
            example=example,
        ),
    )


def _tensors(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in what a network puts out, with the keys that lead to it."""
    if isinstance(output, Tensor):
        yield path, output
    elif len(path) < DEEPEST:
        for key, value in _members(output).items():
            yield from _tensors(value, (*path, key))


def _members(output: Any) -> dict[str, Any]:
    """What is inside a container, by key; empty for anything else."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, tuple | list):
        return {str(number): value for number, value in enumerate(output)}
    if is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {key: value for key, value in getattr(output, "__dict__", {}).items() if not key.startswith("_")}


def _follow(output: Any, path: Path) -> Any:
    for key in path:
        output = _members(output)[key]
    return output


def _follow_named(output: Any, path: Path, name: str) -> Tensor:
    try:
        tensor = _follow(output, path)
    except KeyError:
        tensor = None
    if not isinstance(tensor, Tensor):
        there = ", ".join(_spelled(key) for key, _ in _tensors(output)) or type(output).__name__
        raise DataError(say("{name} has no such output", name=name), got=_spelled(path), expected=there)
    return tensor


def _spelled(path: Path) -> str:
    return ".".join(path) or "one tensor"


def _count_outputs(tensor: Tensor, count: int, by_pixel: bool) -> int | None:
    """How many scores each image or pixel has in a tensor; None where it cannot be scores."""
    shape = tuple(tensor.shape)
    if by_pixel:
        if len(shape) == 4 and shape[0] == count:
            return shape[1]
        if len(shape) != 3:
            return None
        return 1 if shape[0] == count else shape[0] if count == 1 else None
    if len(shape) >= 2:
        return shape[1] if shape[0] == count and all(size == 1 for size in shape[2:]) else None
    if len(shape) == 1 and shape[0] != count:
        return shape[0] if count == 1 else None
    return 1 if len(shape) == 1 or count == 1 else None


def _is_probability(tensor: Tensor) -> bool:
    """Whether a tensor comes out of a sigmoid or softmax: its gradient knows."""
    step = tensor.grad_fn
    while step is not None:
        kind = type(step).__name__
        if kind.startswith(_PROBABILITIES):
            return True
        if not kind.startswith(_KEEPS_VALUES) or not step.next_functions:
            return False
        step = step.next_functions[0][0]
    return False


# --- saying


def _check_count(outputs: int, classes: int, name: str) -> None:
    """One score for each class, or one for two classes.

    Raises:
        DataError: If there are more or fewer.
    """
    if outputs == classes > 1 or (outputs == 1 and classes == 2):
        return
    if outputs == classes:
        raise DataError(
            say("{name} tells no classes apart", name=name),
            got=say("one output and one class"),
            expected="two classes, or more",
            remedy="name both classes, first the one that an output below zero stands for",
        )
    if outputs > classes:
        remedy = say(
            "name every output with --classes, one that stands for no class, such as background, too"
        )
    else:
        remedy = say("name only the classes that have an output, with --classes")
    raise DataError(
        say("{name} has another number of outputs than of classes", name=name),
        got=say("{outputs} outputs and {classes} names", outputs=outputs, classes=classes),
        expected="one name for each output, or two for a single one",
        remedy=remedy,
    )


def _no_scores(got: object, by_pixel: bool, name: str, remedy: Said | None = None) -> DataError:
    what = say("class scores for every pixel") if by_pixel else say("one row of class scores per image")
    return DataError(
        say("{name} does not put out {what}", name=name, what=what),
        got=got,
        expected="(images, classes, height, width)" if by_pixel else "(images, classes)",
        remedy=remedy,
    )


class _Chosen:
    """A hook that puts out one of a network's outputs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        return _follow(output, self.path)
