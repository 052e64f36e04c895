"""Which layers of a plan are slower inside the whole network than the dense layers they would replace.

A layer timed alone starts with cold caches and ends with a pause; inside a network what comes before and
after changes both. So a plan made from layers timed alone is looked at once more as a whole. Only time counts
here: codes are drawn at random, nothing is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from qaf_core.deploy.layer_profile import compare_layers, profile_layers
from qaf_core.deploy.onnx import export_onnx
from qaf_core.deploy.references import write_dense_int8, write_factorized_int8, write_original
from qaf_core.deploy.scratch import scratch_folder
from qaf_core.errors import ModelError
from qaf_core.factorization.factors import Factors
from qaf_core.network.folding import fold_batchnorm
from qaf_core.network.inventory import LayerInfo
from qaf_core.network.layers import FactorizedLayer, build_chain, swap_layer
from qaf_core.network.plan import LayerPlan, Plan
from qaf_core.network.structures import factor_shapes
from qaf_core.quantization.grids import code_range

if TYPE_CHECKING:
    from torch import Tensor, nn

CODE_BITS = 8  # codes of fewer bits run as those of 8
REACH = 4.0  # of the activations' ranges; which it is changes no time


def slower_in_place(
    model: nn.Module,
    inventory: Sequence[LayerInfo],
    plan: Plan,
    images: Tensor,
    *,
    threads: int,
    batch: int = 1,
) -> tuple[str, ...]:
    """Names of the factorized layers that take longer than dense INT8 ones where they stand.

    Args:
        model: The original; it is not changed.
        inventory: Its rows.
        plan: What becomes of each layer.
        images: Some normalised calibration images ``(N, C, H, W)``, for the ranges of additions.
        threads: Threads of one operation.
        batch: Images at a time.

    Raises:
        ModelError: If ONNX cannot express the network, or not for so many images at a time.
        WorkspaceError: If the temporary folder has no room for the models.
    """
    shape = tuple(images.shape[1:])
    network = stand_in(model, inventory, plan)
    with scratch_folder() as folder:
        names = ("original_fp32", "dense_int8", "factorized_fp32", "factorized_int8")
        original, dense, floating, integer = (folder / f"{name}.onnx" for name in names)
        any_batch = write_original(model, inventory, original, input_shape=shape)
        any_batch &= export_onnx(network, floating, input_shape=shape, integer=False).any_batch
        if batch != 1 and not any_batch:
            raise ModelError("this network takes one image at a time", got=f"a batch of {batch}")
        write_dense_int8(original, dense, [images], any_batch=any_batch)
        write_factorized_int8(network, floating, integer, [images], any_batch=any_batch)
        given = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        profiles = profile_layers(
            {"original_fp32": original, "dense_int8": dense, "factorized_int8": integer},
            given, [row.name for row in plan.layers], threads=threads,
        )  # fmt: skip
    rows = compare_layers(profiles, [row.to_dict() for row in plan.layers])
    return tuple(str(row["layer"]) for row in rows if row["slower_than_dense"])


def stand_in(model: nn.Module, inventory: Sequence[LayerInfo], plan: Plan) -> nn.Module:
    """The network the plan would give, BatchNorm folded, with random codes: as fast as the real one."""
    network = fold_batchnorm(model, inventory)
    infos, generator = {info.name: info for info in inventory}, torch.Generator().manual_seed(0)
    for row in plan.layers:
        if row.structure == "keep":
            continue
        layer = network.get_submodule(row.name)
        chain = build_chain(layer, _random_factors(infos[row.name], row, generator))
        for link in chain.chain:
            link.input_quantizer.set_range(-REACH, REACH)
        swap_layer(network, row.name, chain)
    for part in network.modules():
        if isinstance(part, FactorizedLayer):
            part.use_codes()
    return network.eval()


def _random_factors(info: LayerInfo, row: LayerPlan, generator: torch.Generator) -> Factors:
    shapes = factor_shapes(info, row.structure, row.rank)
    if row.structure == "dense":
        shapes = ((info.weight_shape[0], int(np.prod(info.weight_shape[1:]))),)
    low, high = code_range(CODE_BITS)
    codes = tuple(
        torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8) for shape in shapes
    )
    size = 1.0 / float(np.prod([len(code) for code in codes]) ** 0.5 * high)
    scales = [torch.full((1, code.shape[1], *[1] * (code.ndim - 2)), size) for code in codes]
    if row.structure == "dense":
        scales = [torch.full((len(codes[0]), 1), size)]
    return Factors(
        structure=row.structure,
        weight_shape=info.weight_shape,
        codes=codes,
        scales=tuple(scales),
        bits=(CODE_BITS,) * len(codes),
    )
