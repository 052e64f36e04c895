"""Models from the user's own code, named `package.module:factory` on the command line.

The factory takes no arguments and returns an `nn.Module`. What must be known to feed it may stand on the
factory as `input_shape` (C, H, W), `classes`, `mean`, `std`, `preprocessing` (fields of `Preprocessing`),
`task`, and `output` (the key of the class scores where it puts out several tensors, as `logits` or `0`), or
in its module under the same names in capitals; without them it is fed like an ImageNet classifier.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qaf_core.data.models.overrides import choose_preprocessing
from qaf_core.data.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import ModelError
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import nn


def call_factory(name: str, code_path: str | None = None) -> nn.Module:
    """Build the model of `package.module:factory`.

    Args:
        name: Package, module and factory.
        code_path: Where the package can be imported from; None for the working directory.

    Raises:
        ModelError: When the module or the factory is missing, fails, or returns something else.
    """
    from torch import nn

    factory = _find_factory(name, code_path)
    try:
        network = factory()
    except Exception as error:  # the user's code may raise anything; it is told in one line
        raise ModelError(
            say("model factory {name} failed", name=name), got=f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            say("model factory {name} returned no model", name=name),
            got=type(network).__name__,
            expected="nn.Module",
        )
    return network


def describe_factory(name: str) -> ModelSource:
    """The source of `package.module:factory`; where it names no classes, its outputs tell their number.

    Raises:
        ModelError: As `call_factory`, or when a declared input shape or normalisation is malformed.
    """
    factory = _find_factory(name)
    shape = _declared(factory, "input_shape", (3, 224, 224))
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ModelError(
            say("input_shape of {name} is malformed", name=name),
            got=shape,
            expected="(channels, height, width)",
        )
    imagenet = shape[0] == 3
    mean = _declared(factory, "mean", IMAGENET_MEAN if imagenet else (0.5,) * shape[0])
    std = _declared(factory, "std", IMAGENET_STD if imagenet else (0.5,) * shape[0])
    if len(mean) != shape[0] or len(std) != shape[0] or not all(value > 0 for value in std):
        raise ModelError(
            say("mean or std of {name} is malformed", name=name),
            got=(mean, std),
            expected=say("{shape} numbers each", shape=shape[0]),
        )
    steps = Preprocessing(crop=shape[1:], mean=tuple(map(float, mean)), std=tuple(map(float, std)))
    task, output = _declared_task(factory), _declared_output(factory)
    classes = _declared(factory, "classes", ())
    if not classes:
        count = _count_classes(name, shape, task, output)
        classes = tuple(f"class {index}" for index in range(count))
    source = ModelSource(
        id=name,
        title=name,
        architecture=name,
        preprocessing=steps,
        classes=tuple(str(label) for label in classes),
        task=task,
        output=output,
    )
    own = _declared_value(factory, "preprocessing", None)
    if own is not None and not isinstance(own, Mapping):
        raise ModelError("preprocessing of the model factory is malformed", got=own, expected="a dict")
    return source if own is None else choose_preprocessing(source, own)


def _declared_task(factory: Callable[[], Any]) -> str:
    """`classification` unless the factory or its module says otherwise; what there is, a run knows."""
    task = _declared_value(factory, "task", "classification")
    if not isinstance(task, str):
        raise ModelError("task of the model factory is malformed", got=task, expected="the name of a task")
    return task


def _declared_output(factory: Callable[[], Any]) -> str | None:
    """The key of the class scores, or None; a number counts in a tuple."""
    output = _declared_value(factory, "output", None)
    if isinstance(output, int) and not isinstance(output, bool):
        return str(output)
    if output is not None and (not isinstance(output, str) or not output):
        raise ModelError(
            "output of the model factory is malformed", got=output, expected="a key, as logits, or a number"
        )
    return output


def _find_factory(name: str, code_path: str | None = None) -> Callable[[], Any]:
    module_name, _, attribute = name.partition(":")
    folder = code_path or os.getcwd()  # the user's own code lies where the command is given
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ModelError(
            say("cannot import {module_name}", module_name=module_name or "an empty module name"),
            got=f"{type(error).__name__}: {error}",
            expected="package.module:factory",
            remedy="run the command where the package can be imported",
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ModelError(
            say(
                "{module_name} has no function {attribute}",
                module_name=module_name,
                attribute=attribute or "(empty name)",
            ),
            expected="package.module:factory",
        )
    builder: Callable[[], Any] = factory
    return builder


def _declared(factory: Callable[[], Any], field: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
    value = _declared_value(factory, field, default)
    if not isinstance(value, tuple | list):
        raise ModelError(
            say("{field} of the model factory is malformed", field=field), got=value, expected="a tuple"
        )
    return tuple(value)


def _declared_value(factory: Callable[[], Any], field: str, default: Any) -> Any:
    """A setting on the factory, else in its module, else the default."""
    module = sys.modules.get(getattr(factory, "__module__", ""), None)
    return getattr(factory, field, getattr(module, field.upper(), default))


def _count_classes(name: str, shape: tuple[Any, ...], task: str, output: str | None) -> int:
    """By what the network puts out; else by its last linear layer."""
    from torch import nn

    from qaf_core.data.models.outputs import count_classes

    network = call_factory(name)
    count = count_classes(network, shape, task, output)
    if count is not None:
        return count
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else 1000
