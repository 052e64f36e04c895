"""Chains whose codes have left their grids are set on them again.

Rounding each code by itself would lose what was learnt: the factors of a chain have to be rounded together.
So the joint solver writes the weight that a chain has learnt as codes again. That weight is of the chain's
rank, and the solver begins at its factors. (Where codes have hardly moved each by itself is nearer, and is
taken.) Then the chain is calibrated as in a compression: on what reaches it by now, towards what the original
puts out.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from qaf_core.errors import DataError, ModelError
from qaf_core.factorization.algebra import ALGEBRAS, Algebra
from qaf_core.factorization.algebra.base import LinkWeight
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.options import Method, SolveEvent, SolverOptions
from qaf_core.factorization.solve import solve_layer
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.graph.network import networks_in
from qaf_core.network.modules.quantized import FactorizedLayer, Link
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.pipeline.compress.calibrate import calibrate_layer
from qaf_core.pipeline.compress.compress import batches_needed
from qaf_core.pipeline.compress.samples import LayerSamples, walk_layers
from qaf_core.pipeline.compress.solve_layers import threads_for
from qaf_core.pipeline.events import Progress
from qaf_core.pipeline.finetune.trainable import TrainableLink, TrainableNetwork, trained_links
from qaf_core.quantization.grid import ACTIVATION_GRID, FLOAT
from qaf_core.quantization.spec import QuantSpec

GRANULARITY = "rank_row"  # of scales: a link has one for each of its output channels
FIT_SECONDS_PER_CUBE = 5e-10  # of the last link's inputs; measured with 4,608 and 5,120


@dataclass(frozen=True, kw_only=True)
class GridSetting:
    """How chains are set.

    Attributes:
        original: Its layers' outputs are aimed at.
        layers: Their rows, as far as they are known.
        progress: Asked whether to stop.
    """

    original: nn.Module
    layers: Mapping[str, LayerInfo] = field(default_factory=dict)
    progress: Progress

    def set(
        self,
        network: TrainableNetwork,
        names: Sequence[str],
        batches: Sequence[Tensor],
        seconds: float | None = None,
    ) -> None:
        """Set some chains of a network, front to back, all in one walk.

        Args:
            network: Goes on with the new links.
            names: Of chains whose codes are off the grid.
            batches: Images ``(B, C, H, W)`` to calibrate on. A chain that none of them reaches, or that lies
                where they take different ways, keeps its ranges.
            seconds: For the solves, and as much for fits of outputs: about, without the walk. None for no
                limit.

        Raises:
            RunCancelled: If the work is to stop.
        """
        each, began = None if seconds is None else seconds / len(names), time.monotonic()
        counts = {name: len(batches) for name in names}
        for name in names:
            if name in self.layers:
                counts[name] = min(batches_needed(self.layers[name], len(batches[0])), len(batches))

        def visit(name: str, samples: LayerSamples) -> None:
            self.progress.check()
            chain = network.chain(name)
            late = seconds is not None and time.monotonic() - began > 2 * seconds
            with torch.inference_mode(False), torch.no_grad():  # what is made here is trained later
                links = self._links(chain, each)
                fits = not late and _can_fit(links[-1], each)
                _calibrate(chain, links, replace(samples, ahead=None), fits)
                network.go_on_with(name, links)

        try:
            chosen = [name for name in names if name in self.layers and self.layers[name].after_choice]
            walk_layers(self.original, network.model, batches, counts, visit, after_choice=chosen)
        except (DataError, ModelError):  # these chains are set without images
            for name in set(names).intersection(network.off_grid()):
                with torch.no_grad():
                    network.go_on_with(name, self._links(network.chain(name), each))

    def _links(self, chain: FactorizedLayer, seconds: float | None) -> list[Link]:
        """Links with whole numbers in place of those that a chain has learnt, with their ranges."""
        learnt, links = trained_links(chain), []
        for link, (codes, scales) in zip(learnt, self._on_grid(chain, seconds), strict=True):
            before = link.link
            shape = (len(before.codes), *(1,) * (before.codes.ndim - 1))
            found = Link(
                codes.reshape(before.codes.shape),
                scales.reshape(shape),
                before.bits,
                link.bias(),
                before.operations,
            )
            found.input_quantizer = copy.deepcopy(before.input_quantizer)
            links.append(found)
        return links

    def _on_grid(self, chain: FactorizedLayer, seconds: float | None) -> list[LinkWeight]:
        """Codes and scales for the links of a chain, whose product is near to what they have learnt."""
        learnt = trained_links(chain)
        weights = [link.weight().detach() for link in learnt]
        kernel = tuple(map(max, zip(*(weight.shape[2:] for weight in weights), strict=True)))
        algebra = ALGEBRAS[chain.structure]((len(weights[-1]), weights[0].shape[1], *kernel))
        values = algebra.of_links(weights)
        start = Factors(
            structure=chain.structure, weight_shape=algebra.weight_shape, codes=tuple(values),
            scales=tuple(value.new_ones((1,) * value.ndim) for value in values),
            bits=(FLOAT.bits,) * len(values),
        )  # fmt: skip
        solved = self._solve(start, _spec(chain.structure, learnt), seconds)
        candidates = (
            algebra.link_weights(solved.codes, solved.scales),
            [(link.nearest_codes(), link.scales().detach()) for link in learnt],
        )
        target = algebra.reconstruct(values)
        return min(candidates, key=lambda found: float((_product(algebra, found) - target).norm()))

    def _solve(self, start: Factors, spec: QuantSpec, seconds: float | None) -> Factors:
        weight = start.reconstruct()
        factorizes = STRUCTURES[start.structure].factorizes
        with threads_for(weight, start.rank):
            result = solve_layer(
                weight,
                structure=start.structure,
                rank=start.rank,
                spec=spec,
                options=SolverOptions(time_limit_seconds=seconds),
                method=Method.JOINT if factorizes else Method.DENSE,
                on_event=self._check,
                start=start if factorizes else None,
            )
        self.progress.check()
        return result.factors

    def _check(self, _event: SolveEvent) -> None:
        self.progress.check()


def run_order(model: nn.Module) -> Iterator[str]:
    """Names of a captured model's layers in the order in which they run first."""
    for path, network in networks_in(model).items():
        for name in network.main_program.calls:
            yield f"{path}.{name}" if path else name


def _rounds_inputs(links: Sequence[Link | TrainableLink]) -> bool:
    return any(link.input_quantizer.qparams is not None for link in links)


def _spec(structure: str, learnt: Sequence[TrainableLink]) -> QuantSpec:
    form = STRUCTURES[structure]
    bits = {part.factor: link.link.bits for part, link in zip(form.links, learnt, strict=True)}
    rounds = form.factorizes and _rounds_inputs(learnt)
    return QuantSpec(
        bits=tuple(bits[factor] for factor in range(len(learnt))), granularity=GRANULARITY,
        activation_bits=ACTIVATION_GRID.bits if rounds else FLOAT.bits,
    )  # fmt: skip


def _product(algebra: Algebra, found: Sequence[LinkWeight]) -> Tensor:
    """The weight that codes and scales of links stand for."""
    weights = [codes * scales.reshape(-1, *(1,) * (codes.ndim - 1)) for codes, scales in found]
    return algebra.reconstruct(algebra.of_links(weights))


def _can_fit(last: Link, seconds: float | None) -> bool:
    inputs = last.codes[0].numel()
    return seconds is None or FIT_SECONDS_PER_CUBE * inputs**3 <= seconds


def _calibrate(chain: FactorizedLayer, links: list[Link], samples: LayerSamples, fits: bool) -> None:
    calibrate_layer(
        FactorizedLayer(links, chain.structure, chain.operations),
        samples,
        activation_bits=ACTIVATION_GRID.bits if _rounds_inputs(links) else FLOAT.bits,
        fit=fits,
    )
