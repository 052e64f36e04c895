"""The safety net: a network computes what it should before anything is solved, and what was expected after.

Before: the planned layers are exchanged for chains that hold their weights exactly, and BatchNorm is folded;
the outputs must stay. After: the network's disagreement is held against what its layers' errors lead to
expect, and the file against the network it was written from.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from qaf_core.errors import ModelError, SolverError
from qaf_core.factorization.factors import exact_factors
from qaf_core.network.graph.network import layer_of
from qaf_core.network.graph.proof import TOLERANCE, Answers
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.quantized import FactorizedLayer, Layer, swap_layer
from qaf_core.network.passes.batchnorm_folding import fold_batchnorm
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan
from qaf_core.text.said import Said, say

_log = logging.getLogger("qaf_core")

_Difference = Callable[[Sequence[LayerPlan]], float]
LARGEST_FILE_DIFFERENCE = 0.1  # of the scores: half precision of scales moves some values to the next code
COMPARED_BATCHES = (3, 2)  # images
UNEXPECTED = 10.0  # times the sum of the layers' squared output errors
LEAST_TOLD = 0.25  # relative squared error of the scores below which nothing is said


@torch.no_grad()
def layers_to_blame(
    model: nn.Module,
    inventory: Sequence[LayerInfo],
    rows: Sequence[LayerPlan],
    images: Tensor | None,
    input_shape: Sequence[int],
) -> dict[str, float]:
    """The planned layers whose exchange, though exact, changes what the network computes.

    Args:
        model: Captured; not changed.
        inventory: Its rows.
        rows: The layers to be exchanged.
        images: Some images ``(N, C, H, W)``, or None: noise is taken.
        input_shape: (C, H, W).

    Returns:
        Relative difference of the outputs by layer; empty where all is well.
    """
    if images is None:
        count, generator = max(COMPARED_BATCHES), torch.Generator().manual_seed(0)
        images = torch.rand(count, *input_shape, generator=generator)
    batches = [images[:count] for count in COMPARED_BATCHES]
    answers = Answers(model, batches)

    def difference(chosen: Sequence[LayerPlan], fold: bool) -> float:
        changed = fold_batchnorm(model, inventory) if fold else copy.deepcopy(model)
        for row in chosen:
            swap_layer(changed, row.name, exact_chain(layer_of(changed, row.name), row.structure))
        try:
            return answers.difference(changed)
        except MemoryError:
            raise
        except Exception as error:  # Python beside the captured parts needs the layer as it was
            _log.info("with %d layers exchanged the network ends in an error: %s", len(chosen), error)
            return math.inf

    if difference(rows, fold=True) <= TOLERANCE:
        return {}
    differences = _bisect(list(rows), lambda part: difference(part, fold=False))
    if (folded := difference([], fold=True)) > TOLERANCE:
        raise ModelError(
            "joining BatchNorm with the layers before it changes what the network computes",
            got=_how_far(folded),
            expected=say("a relative difference of at most {tolerance:g}", tolerance=TOLERANCE),
        )
    return differences


def _bisect(rows: list[LayerPlan], difference: _Difference) -> dict[str, float]:
    total = difference(rows) if rows else 0.0
    if total <= TOLERANCE:
        return {}
    if len(rows) == 1:
        return {rows[0].name: total}
    half = len(rows) // 2
    halves = {**_bisect(rows[:half], difference), **_bisect(rows[half:], difference)}
    return halves or {row.name: total for row in rows}  # only all together do they make a difference


def exact_chain(layer: Layer, structure: str) -> FactorizedLayer:
    """A chain of a structure, in floating point, that computes exactly what the layer does."""
    weight = layer.rows.detach()
    try:
        return build_chain(layer, exact_factors(weight, structure))
    except SolverError:  # no exact form is constructed for such a weight
        factors = exact_factors(weight.flatten(1), "dense")
        return build_chain(layer, replace(factors, weight_shape=tuple(weight.shape)))


def explain(differences: Mapping[str, float]) -> list[Said]:
    """What is to be said of layers that stay as they were."""
    return [
        say(
            "{name} is kept: replacing it changes what the network computes ({how_far}).",
            name=name,
            how_far=_how_far(value),
        )
        for name, value in differences.items()
    ]


def _how_far(difference: float) -> Said:
    if math.isinf(difference):
        return say("it ends in an error, or puts out something of another kind")
    return say("relative difference {difference:.2g}", difference=difference)


@torch.inference_mode()
def unexpected_disagreement(
    original: nn.Module, compressed: nn.Module, batch: Tensor, output_errors: Mapping[str, float]
) -> Said | None:
    """A sentence where the whole network is further off than its layers' errors explain, else None.

    Args:
        original, compressed: The networks.
        batch: Some images.
        output_errors: Relative squared errors of the layers' outputs.
    """
    error = Answers(original, [batch]).difference(compressed) ** 2
    expected = sum(output_errors.values())
    if error <= max(LEAST_TOLD, UNEXPECTED * expected):
        return None
    if math.isinf(error):
        return say(
            "The compressed network's outputs are not finite, or of another form, where the original's are."
        )
    return say(
        "The network's outputs are further off (relative squared error {error:.2g}) than the errors of its "
        "layers explain ({expected:.2g} in all): look at the first layers that differ before you use it.",
        error=error,
        expected=expected,
    )


@torch.inference_mode()
def file_differs(compressed: nn.Module, opened: nn.Module, batch: Tensor) -> Said | None:
    """A sentence where a file, read back, puts out something else than the network it holds, else None."""
    difference = Answers(compressed, [batch]).difference(opened)
    if difference <= LARGEST_FILE_DIFFERENCE:
        return None
    if math.isinf(difference):
        return say("The packed file's outputs are not finite, or of another form, where the network's are.")
    return say(
        "The packed file puts out other numbers than the network it was written from (relative difference "
        "{difference:.2g}): half precision does not hold its scales or kept tensors.",
        difference=difference,
    )
