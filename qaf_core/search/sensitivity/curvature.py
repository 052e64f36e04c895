"""How strongly a network's answers react to changes of each layer's weight.

With ``p`` the network's own answers, the expected Kullback-Leibler divergence of a small change ``ΔW`` of one
layer's weight is ``½ ΔWᵀ F ΔW``, F the Fisher information. F is the second moment of the gradients of ``log
p(ŷ)`` with answers ŷ drawn from p itself, whose mean is zero; so with ``G_n`` the gradient summed over B such
draws, ``½ mean_n ⟨G_n, ΔW⟩² / B`` is an unbiased estimate of it, the coupling of output channels and
positions included, at the price of one scalar product per gradient and candidate. Outputs that are no class
scores are probed by normal numbers instead: then it is half their expected relative squared error.

Of images that a network was trained on, nearly all of F comes from the few that it is not sure of. So its
scores may be divided by a temperature first, at which it is as sure as it is right on other images. (Real
ResNet-20, 1,024 training images: a tenth of them makes 96 % of the mean variance of an answer, at the
temperature 3 it is 42 %; two halves of the probes then agree within a factor of 1.3, before 2.3.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qaf_core.network.graph.network import first_tensors, layer_of
from qaf_core.network.modules.quantized import Layer
from qaf_core.pipeline.compress.input_moments import InputStatistics
from qaf_core.pipeline.divergence import class_scores
from qaf_core.pipeline.events import Progress

PROBES = 128
PROBE_PIXELS = 4 * 224 * 224  # of one probe's images
LARGEST_PROBE, SMALLEST_PROBE = 8, 2  # images
LEAST_PROBES = 16
OUTPUT_PROBES = 16  # of which the gradients of outputs are looked at: each has many positions
GRADIENT_BYTES = 800_000_000  # of all layers' gradients together
HALF_BYTES = 2
ROWS_AT_ONCE = 16  # in single precision
SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class LayerCurvature:
    """Gradients of one layer's weight for answers drawn from the network.

    Attributes:
        gradients: ``(N, numel)`` by rows of the weight, half precision, each divided by its size.
        sizes: What they were divided by, ``(N,)``.
        images: Draws summed in each.
        outputs: Second moment of the gradients of the layer's outputs, summed over positions, an image:
            ``(C_out, C_out)``.
    """

    gradients: Tensor
    sizes: Tensor
    images: int
    outputs: Tensor

    def harms(self, changes: Tensor) -> Tensor:
        """Expected divergence an image for changes of the weight.

        Args:
            changes: ``(n, numel)``, by rows of the weight.

        Returns:
            ``(n,)``.
        """
        columns = changes.float().T
        products = torch.cat([rows.float() @ columns for rows in torch.split(self.gradients, ROWS_AT_ONCE)])
        products = products.double() * self.sizes[:, None]
        return products.square().mean(dim=0) * (0.5 / self.images)

    def harm_of_noise(self, spread: Tensor) -> float:
        """Expected divergence an image for noise on the outputs, from position to position independent.

        Args:
            spread: ``(C_out, n)``; the noise has the covariance ``spread spreadᵀ``.
        """
        spread = spread.to(self.outputs)
        return 0.5 * float((spread * (self.outputs @ spread)).sum())


def measure_curvature(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    statistics: Mapping[str, InputStatistics],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, LayerCurvature]:
    """The curvature of layers' weights.

    A bias that is fitted anew takes back what a change does on average: where the mean of a layer's inputs is
    known, only what is left counts.

    Args:
        model: Captured; a copy that may be changed.
        layers: Names of layers.
        images: Normalised ``(N, C, H, W)``, without labels.
        statistics: Of layers' inputs; those without keep their changes' means.
        temperature: What class scores are divided by.
        seed: Of the images and answers drawn.
        progress: Told how far it is, and asked whether to stop.

    Returns:
        By layer; those that no gradient reaches are left out.

    Raises:
        RuntimeError: Or another, if gradients do not pass the network.
    """
    progress = progress or Progress()
    modules = {name: layer_of(model, name) for name in layers}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    centred = [name for name, layer in modules.items() if name in statistics and _take_bias(layer)]
    parameters = [layer.weight.requires_grad_(True) for layer in modules.values()]
    parameters += [modules[name].bias.requires_grad_(True) for name in centred]  # type: ignore[union-attr]
    size = min(LARGEST_PROBE, max(SMALLEST_PROBE, PROBE_PIXELS // max(images[0, 0].numel(), 1)), len(images))
    counts = _counts(modules)
    outputs = {name: _Outputs.of(layer) for name, layer in modules.items()}
    generator = torch.Generator().manual_seed(seed)
    rounds = math.ceil(PROBES * size / len(images))
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    for number in progress.track(range(PROBES), PROBES, "sensitivity", "Probing the network's answers"):
        progress.check()
        chosen = images[order[number * size : (number + 1) * size]]
        if number == OUTPUT_PROBES:
            for seen in outputs.values():
                seen.handle.remove()
        with torch.enable_grad():
            score = _probe(model(chosen), temperature, generator)
        gradients = torch.autograd.grad(score, parameters, allow_unused=True)
        shifts = dict(zip(centred, gradients[len(layers) :], strict=True))
        for name, gradient in zip(layers, gradients[: len(layers)], strict=True):
            if gradient is not None and len(rows[name]) < counts[name]:
                rows[name].append(_in_half(modules[name], gradient, shifts.get(name), statistics.get(name)))
    return {
        name: LayerCurvature(
            gradients=torch.stack([row for row, _ in parts]),
            sizes=torch.stack([peak for _, peak in parts]),
            images=size,
            outputs=outputs[name].moment / (size * OUTPUT_PROBES),
        )
        for name, parts in rows.items()
        if parts
    }


@dataclass(kw_only=True)
class _Outputs:
    """Sums up the second moment of the gradients that reach a layer's outputs, while its hook is there."""

    layer: Layer
    moment: Tensor
    handle: RemovableHandle

    @classmethod
    def of(cls, layer: Layer) -> _Outputs:
        rows = len(layer.rows)

        def watch(_: nn.Module, __: Any, output: Tensor) -> None:
            if output.requires_grad:  # a network may run parts of itself without gradients
                output.register_hook(seen.add)  # type: ignore[no-untyped-call]

        moment = torch.zeros(rows, rows)
        seen = cls(layer=layer, moment=moment, handle=layer.register_forward_hook(watch))
        return seen

    def add(self, gradient: Tensor) -> None:
        rows = self.layer.operation.output_rows(gradient)
        self.moment += rows.T @ rows


def _in_half(
    layer: Layer, gradient: Tensor, shift: Tensor | None, statistics: InputStatistics | None
) -> tuple[Tensor, Tensor]:
    """A gradient by rows of the weight, less what a bias takes back, in half precision; and its size."""
    rows = layer.operation.by_rows(gradient).flatten(1)
    if shift is not None and statistics is not None:
        rows = rows - torch.outer(shift, statistics.of_patches(rows.shape[1]).mean)
    peak = rows.abs().max().clamp_min(SMALLEST)
    return (rows / peak).half().reshape(-1), peak.double()


def _take_bias(layer: Layer) -> bool:
    """Give a layer a bias to take a gradient of; whether it may have one."""
    if layer.operation.transposed or layer.operation.groups != 1:
        return False
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.rows)))
    return True


def _counts(layers: Mapping[str, Layer]) -> dict[str, int]:
    """Gradients kept of each layer: all, or of large ones as many as memory allows."""
    numbers = {name: layer.weight.numel() for name, layer in layers.items()}
    # What small layers leave of an even share goes to the large ones.
    left, allowed = GRADIENT_BYTES / HALF_BYTES, dict.fromkeys(numbers, PROBES)
    for index, name in enumerate(sorted(numbers, key=lambda name: numbers[name])):
        share = left / (len(numbers) - index)
        allowed[name] = max(LEAST_PROBES, min(PROBES, int(share / numbers[name])))
        left = max(left - allowed[name] * numbers[name], 0.0)
    return allowed


def _probe(output: Any, temperature: float, generator: torch.Generator) -> Tensor:
    """A number whose gradients' second moment is the curvature, summed over images."""
    scores = class_scores(output)
    if scores is not None:
        logarithms = (scores / temperature).movedim(1, -1).flatten(0, -2).log_softmax(dim=1)
        drawn = torch.multinomial(logarithms.detach().exp(), 1, generator=generator)
        return logarithms.gather(1, drawn).sum()
    tensors = [
        values for values in first_tensors(output) if values.is_floating_point() and values.requires_grad
    ]
    probes = []
    for values in tensors:
        energy = (
            values.detach().square().mean() * values[0].numel() if values.ndim else values.detach().square()
        )
        noise = torch.randn(values.shape, generator=generator)
        probes.append((values * noise).sum() * energy.clamp_min(SMALLEST).rsqrt())
    return torch.stack(probes).sum()
