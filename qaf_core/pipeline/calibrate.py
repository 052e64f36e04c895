"""Activation ranges and output fitting, layer by layer from front to back.

Each layer sees the compressed network's own inputs (errors of the layers before it included) and aims at the original
network's outputs. With ``Z (n, P)`` the input of the chain's last link and ``Y (n, I)`` the original outputs, the last link
solves ``min ‖Y - Z Aᵀ - bias‖²`` on its integer grid: the Gram ``ZᵀZ`` takes the place of the weight-space Gram in the
error-feedback rounding (per-layer reconstruction as in arXiv 2006.10518 and 2208.11580). No labels are used, and a fit stays
only if held-back images agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.factorization.rounding import round_rows, solve_gram
from qaf_core.network.layers import ActivationQuantizer, ConvLink, FactorizedLayer, Link

HELD_BACK_SHARE = 8  # one image batch in eight judges the fits
RANGE_SAMPLES = 50_000
ROW_SAMPLES = 400_000
RANGE_FRACTIONS = torch.linspace(0.35, 1.0, 27).tolist()
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(kw_only=True)
class OutputMoments:
    """Second moments of a link's inputs ``Z`` and targets ``Y``, summed over samples, in float64.

    Attributes:
        gram: ``ZᵀZ (P, P)``. cross: ``YᵀZ (I, P)``. z_sum, y_sum: sums ``(P,)``, ``(I,)``. y_square: ``Σ Y² (I,)``. n: samples.
    """

    gram: Tensor
    cross: Tensor
    z_sum: Tensor
    y_sum: Tensor
    y_square: Tensor
    n: int

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device) -> OutputMoments:
        """No samples yet."""
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)  # noqa: E731
        return cls(gram=zeros(inputs, inputs), cross=zeros(outputs, inputs), z_sum=zeros(inputs), y_sum=zeros(outputs), y_square=zeros(outputs), n=0)  # fmt: skip

    def add(self, z: Tensor, y: Tensor) -> None:
        """Count samples ``z (n, P)`` with targets ``y (n, I)``."""
        self.gram += (z.mT @ z).double()
        self.cross += (y.mT @ z).double()
        self.z_sum += z.sum(dim=0, dtype=torch.float64)
        self.y_sum += y.sum(dim=0, dtype=torch.float64)
        self.y_square += y.double().square().sum(dim=0)
        self.n += len(z)

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariance ``(P, P)`` of Z and cross-covariance ``(I, P)`` with Y."""
        mean_z, mean_y = self.z_sum / self.n, self.y_sum / self.n
        return self.gram / self.n - torch.outer(mean_z, mean_z), self.cross / self.n - torch.outer(mean_y, mean_z)

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of ``Z·weightᵀ + bias``, relative to the variance of Y."""
        weight, bias = weight.double(), bias.double()
        quadratic = (weight @ self.gram * weight).sum(dim=1) - 2 * (self.cross * weight).sum(dim=1) + self.y_square
        linear = 2 * bias * (weight @ self.z_sum) - 2 * bias * self.y_sum + self.n * bias * bias
        variance = (self.y_square - self.y_sum.square() / self.n).sum().clamp_min(1e-30)
        return float((quadratic + linear).sum() / variance)


def fit_range(quantizer: ActivationQuantizer, values: Sequence[Tensor]) -> None:
    """Give the quantizer the clipping range of least squared rounding error on the values."""
    flat = torch.cat([v.reshape(-1)[:: max(1, v.numel() * len(values) // RANGE_SAMPLES)] for v in values])
    low, high = min(float(flat.min()), 0.0), max(float(flat.max()), 0.0)
    best, best_fraction = torch.inf, 1.0
    for fraction in RANGE_FRACTIONS:
        quantizer.set_range(low * fraction, high * fraction)
        error = float((quantizer(flat) - flat).square().sum())
        if error < best:
            best, best_fraction = error, fraction
    quantizer.set_range(low * best_fraction, high * best_fraction)


def equalise_channels(first: Link, middle: Link, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Give the channels between a 1×1 and a depthwise link like ranges, by moving scale from one to the other.

    Args:
        first: The link that makes the channels. middle: The depthwise link that takes them.
        outputs: What ``first`` puts out, ``(B, R, H, W)`` per batch.

    Returns:
        The outputs after the change. The product of the two scales, and so the function, stays.
    """
    squares = torch.stack([v.square().mean(dim=(0, 2, 3)) for v in outputs]).mean(dim=0).sqrt()
    factor = torch.where(squares > 1e-12 * squares.max(), squares.max() / squares.clamp_min(1e-30), torch.ones_like(squares))
    first.scales.mul_(factor.reshape(-1, 1, 1, 1))
    middle.scales.div_(factor.reshape(-1, 1, 1, 1))
    return [v * factor.reshape(1, -1, 1, 1) for v in outputs]


def link_samples(link: Link, values: Tensor) -> Tensor:
    """The link's input as rows ``(n, P)``, one per output position, ``P`` in the order of its flattened weight."""
    if not isinstance(link, ConvLink):
        return values.reshape(-1, values.shape[-1])
    geometry = link.geometry
    if tuple(geometry.kernel_size) == (1, 1) and tuple(geometry.stride) == (1, 1):
        return values.movedim(1, -1).reshape(-1, values.shape[1])
    padded = functional.pad(values, geometry._reversed_padding_repeated_twice, mode=_PAD_MODES[geometry.padding_mode])
    rows = functional.unfold(padded, link.codes.shape[2:], dilation=geometry.dilation, stride=geometry.stride)
    return rows.movedim(1, -1).reshape(-1, rows.shape[1])


_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def output_rows(values: Tensor, is_convolution: bool) -> Tensor:
    """A layer's output as rows ``(n, I)``, in the order of :func:`link_samples`."""
    return values.movedim(1, -1).reshape(-1, values.shape[1]) if is_convolution else values.reshape(-1, values.shape[-1])


@torch.inference_mode()
def calibrate_layer(
    layer: FactorizedLayer, inputs: Sequence[Tensor], targets: Sequence[Tensor], *, activation_bits: int, fit: bool
) -> float:
    """Set a chain's activation ranges and, if ``fit``, its last link and bias, in place.

    Args:
        layer: The chain; its links are changed.
        inputs: What reaches it in the compressed network, one tensor per batch.
        targets: What the original layer puts out, likewise.
        activation_bits: 8, or 32 for floating point.
        fit: Fit the last link to the targets; otherwise only ranges and scales between links change.

    Returns:
        The relative squared error of the outputs on the held-back batches.
    """
    values = list(inputs)
    chain = layer.chain
    for position, link in enumerate(chain):
        if activation_bits < 32:
            fit_range(link.input_quantizer, values)
        if position == len(chain) - 1:
            break
        values = [link(v) for v in values]
        following = chain[position + 1]
        if isinstance(following, ConvLink) and following.geometry.groups == len(link.codes) > 1:
            values = equalise_channels(link, following, values)
    moments = _collect(chain[-1], values, targets)
    if moments is None:
        return float("nan")
    fitting, judging = moments
    return fit_last_link(chain[-1], fitting, judging) if fit else judging.error(*_weight_and_bias(chain[-1]))


def _collect(link: Link, values: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[OutputMoments, OutputMoments] | None:
    """Moments of the fitting and of the held-back batches; None for a grouped last link, which is not fitted."""
    if isinstance(link, ConvLink) and link.geometry.groups != 1:
        return None
    outputs, inputs = link.codes.shape[0], link.codes[0].numel()
    parts = [OutputMoments.empty(inputs, outputs, link.codes.device) for _ in range(2)]
    positions = sum(t.numel() // outputs for t in targets)
    generator = torch.Generator().manual_seed(0)
    for index, (value, target) in enumerate(zip(values, targets, strict=True)):
        rows = link_samples(link, link.input_quantizer(value))
        aims = output_rows(target, isinstance(link, ConvLink))
        if positions > ROW_SAMPLES:
            chosen = torch.randperm(len(rows), generator=generator)[: int(len(rows) * ROW_SAMPLES / positions)].to(rows.device)
            rows, aims = rows[chosen], aims[chosen]
        held_back = len(values) > 1 and index % HELD_BACK_SHARE == HELD_BACK_SHARE - 1
        parts[int(held_back)].add(rows, aims)
    return (parts[0], parts[1] if parts[1].n else parts[0])


def _weight_and_bias(link: Link) -> tuple[Tensor, Tensor]:
    weight = link.weight.reshape(link.codes.shape[0], -1)
    return weight, link.bias if link.bias is not None else weight.new_zeros(len(weight))


def fit_last_link(link: Link, fitting: OutputMoments, judging: OutputMoments) -> float:
    """Fit a link's codes, row scales and bias to outputs; kept only if the held-back samples agree.

    Args:
        link: Changed in place. fitting: Moments to fit on. judging: Moments of the held-back samples.

    Returns:
        The relative squared output error on the held-back samples, after.
    """
    old_weight, old_bias = _weight_and_bias(link)
    gram, cross = fitting.centred()
    mean_z, mean_y = fitting.z_sum / fitting.n, fitting.y_sum / fitting.n
    prior = gram.diagonal().clamp_min(float(gram.diagonal().mean()) * 1e-4)
    best_error, best = judging.error(old_weight, old_bias), None
    shrunk = None
    for ridge in RIDGES:
        raised = gram + torch.diag(ridge * prior)
        target = solve_gram(raised, cross + ridge * prior * old_weight.double())
        error = judging.error(target, mean_y - target @ mean_z)
        if shrunk is None or error < shrunk[0]:
            shrunk = (error, target, raised)
    assert shrunk is not None
    _, target, raised = shrunk
    dtype = link.scales.dtype
    codes, scales = round_rows(target.to(dtype), raised.to(dtype), link.bits)
    weight = (codes * scales).double()
    for candidate, bias in ((weight, mean_y - weight @ mean_z), (old_weight.double(), mean_y - old_weight.double() @ mean_z)):
        error = judging.error(candidate, bias)
        if error < best_error:
            best_error, best = error, (candidate is weight, bias)
    if best is not None:
        changed, bias = best
        if changed:
            link.codes.copy_(codes.reshape(link.codes.shape))
            link.scales = scales.reshape(len(codes), *[1] * (link.codes.ndim - 1)).contiguous()
        link.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return best_error
