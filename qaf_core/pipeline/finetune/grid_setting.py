"""Chains whose codes have left their grids are set on them again.

Rounding each code by itself would lose what was learnt: the factors of a chain have to be rounded together.
So the joint solver writes the weight that a chain has learnt as codes again. That weight is of the chain's
rank, and the solver begins at its factors, so that nothing but rounding is lost. Then the chain is calibrated
as in a compression: on what reaches it by now, towards what the original puts out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qaf_core.factorization.algebra import ALGEBRAS
from qaf_core.factorization.algebra.base import LinkWeight
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.options import Method, SolveEvent, SolverOptions
from qaf_core.factorization.solve import solve_layer
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.modules.quantized import FactorizedLayer, Link
from qaf_core.pipeline.compress.calibrate import calibrate_layer
from qaf_core.pipeline.compress.samples import LayerSamples, walk_layers
from qaf_core.pipeline.compress.solve_layers import threads_for
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune.trainable import TrainableLink, TrainableNetwork, trained_links
from qaf_core.quantization.grid import ACTIVATION_GRID, FLOAT
from qaf_core.quantization.spec import QuantSpec

GRANULARITY = "rank_row"  # of scales: a link has one for each of its output channels


@dataclass(frozen=True, kw_only=True)
class GridSetting:
    """How chains are set.

    Attributes:
        original: Its layers' outputs are aimed at.
        after_choice: Layers behind a choice by value.
        seconds: For the solve of each chain; None for no limit.
        progress: Asked whether to stop.
    """

    original: nn.Module
    after_choice: Collection[str] = ()
    seconds: float | None = None
    progress: Progress

    def set(self, network: TrainableNetwork, names: Sequence[str], batches: Sequence[Tensor]) -> None:
        """Set some chains of a network, front to back, all in one walk.

        Args:
            network: Goes on with the new links.
            names: Of chains whose codes are off the grid.
            batches: Images ``(B, C, H, W)`` to calibrate on.

        Raises:
            RunCancelled: If the work is to stop.
        """

        def visit(name: str, samples: LayerSamples) -> None:
            # What is made here is trained later.
            with torch.inference_mode(False), torch.no_grad():
                network.go_on_with(name, self._links(network.chain(name), samples))

        walk_layers(
            self.original, network.model, batches, dict.fromkeys(names, len(batches)), visit,
            after_choice=[name for name in names if name in self.after_choice],
        )  # fmt: skip

    def _links(self, chain: FactorizedLayer, samples: LayerSamples) -> list[Link]:
        """Links with whole numbers in place of those that a chain has learnt."""
        learnt = trained_links(chain)
        weights = _on_grid(chain.structure, learnt, self._solve)
        links = []
        for link, (codes, scales) in zip(learnt, weights, strict=True):
            before, bias = link.link, link.bias()
            shape = (len(before.codes), *(1,) * (before.codes.ndim - 1))
            links.append(
                Link(
                    codes.reshape(before.codes.shape),
                    scales.reshape(shape),
                    before.bits,
                    bias,
                    before.operations,
                )
            )
        rounds = any(link.input_quantizer.qparams is not None for link in learnt)
        calibrate_layer(
            FactorizedLayer(links, chain.structure, chain.operations),
            samples,
            activation_bits=ACTIVATION_GRID.bits if rounds else FLOAT.bits,
            fit=True,
        )
        return links

    def _solve(self, start: Factors, spec: QuantSpec) -> Factors:
        weight = start.reconstruct()
        factorizes = STRUCTURES[start.structure].factorizes
        with threads_for(weight, start.rank):
            result = solve_layer(
                weight,
                structure=start.structure,
                rank=start.rank,
                spec=spec,
                options=SolverOptions(time_limit_seconds=self.seconds),
                method=Method.JOINT if factorizes else Method.DENSE,
                on_event=self._check,
                start=start if factorizes else None,
            )
        self.progress.check()
        return result.factors

    def _check(self, _event: SolveEvent) -> None:
        self.progress.check()


def _on_grid(
    structure: str, learnt: Sequence[TrainableLink], solve: Callable[[Factors, QuantSpec], Factors]
) -> list[LinkWeight]:
    """Codes and scales for the links of a chain, whose product is near to what they have learnt."""
    form = STRUCTURES[structure]
    weights = [link.weight().detach() for link in learnt]
    kernel = tuple(map(max, zip(*(weight.shape[2:] for weight in weights), strict=True)))
    shape = (len(weights[-1]), weights[0].shape[1], *kernel)
    values = ALGEBRAS[structure](shape).of_links(weights)
    bits = {part.factor: link.link.bits for part, link in zip(form.links, learnt, strict=True)}
    rounds = any(link.input_quantizer.qparams is not None for link in learnt)
    start = Factors(
        structure=structure, weight_shape=shape, codes=tuple(values), bits=(FLOAT.bits,) * len(values),
        scales=tuple(value.new_ones((1,) * value.ndim) for value in values),
    )  # fmt: skip
    spec = QuantSpec(
        bits=tuple(bits[factor] for factor in range(len(values))), granularity=GRANULARITY,
        activation_bits=ACTIVATION_GRID.bits if rounds and form.factorizes else FLOAT.bits,
    )  # fmt: skip
    found = solve(start, spec)
    return found.algebra.link_weights(found.codes, found.scales)
