"""Activation ranges and output fitting, layer by layer from front to back.

Each layer sees the compressed network's own inputs (errors of the layers before it included) and aims at the
original network's outputs. With ``Z (n, P)`` the input of the chain's last link and ``Y (n, I)`` the original
outputs, the last link solves ``min ‖Y - Z Aᵀ - bias‖²`` on its integer grid: the Gram ``ZᵀZ`` takes the place
of the weight-space Gram in the error-feedback rounding (per-layer reconstruction as in arXiv 2006.10518 and
2208.11580). No labels are used, and a fit stays only if held-back images agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qaf_core.factorization.rounding import round_rows, solve_gram
from qaf_core.network.modules.quantized import ActivationQuantizer, FactorizedLayer, Link
from qaf_core.quantization.grid import Grid

VALIDATION_SHARE = 8  # one batch in eight judges the fits, the last of them if there are fewer
RANGE_SAMPLES = 50_000
PIECE = 1024  # values searched for outliers at a time
ROW_SAMPLES = 400_000  # output positions a fit looks at; more do not change it
ERROR_ROWS = 20_000  # output positions held in double precision at once
LEAST_IMAGES = 128
RANGE_FRACTIONS = torch.linspace(0.35, 1.0, 27).tolist()
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
# Share of a mean square below which a variance is rounding noise: products are summed in single precision.
NOISE_SHARE = 1e-6
SMALLEST = 1e-30
LARGEST_GAIN = 1e4  # between channels; more would leave the range of half-precision scales


@dataclass(kw_only=True)
class OutputMoments:
    """Second moments of a link's inputs ``Z`` and targets ``Y``, summed over samples, in float64.

    Attributes:
        gram: ``ZᵀZ (P, P)``.
        cross: ``YᵀZ (I, P)``.
        z_sum: ``Σ Z (P,)``.
        y_sum: ``Σ Y (I,)``.
        y_square: ``Σ Y² (I,)``.
        n: Samples.
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
        return cls(
            gram=torch.zeros(inputs, inputs, dtype=torch.float64, device=device),
            cross=torch.zeros(outputs, inputs, dtype=torch.float64, device=device),
            z_sum=torch.zeros(inputs, dtype=torch.float64, device=device),
            y_sum=torch.zeros(outputs, dtype=torch.float64, device=device),
            y_square=torch.zeros(outputs, dtype=torch.float64, device=device),
            n=0,
        )

    def add(self, z: Tensor, y: Tensor) -> None:
        """Count samples ``z (n, P)`` with targets ``y (n, I)``."""
        self.gram += (z.mT @ z).double()
        self.cross += (y.mT @ z).double()
        self.z_sum += z.sum(dim=0, dtype=torch.float64)
        self.y_sum += y.sum(dim=0, dtype=torch.float64)
        self.y_square += y.double().square().sum(dim=0)
        self.n += len(z)

    def joined(self, other: OutputMoments) -> OutputMoments:
        """The moments of both sets of samples."""
        return OutputMoments(
            gram=self.gram + other.gram,
            cross=self.cross + other.cross,
            z_sum=self.z_sum + other.z_sum,
            y_sum=self.y_sum + other.y_sum,
            y_square=self.y_square + other.y_square,
            n=self.n + other.n,
        )

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariance ``(P, P)`` of Z and cross-covariance ``(I, P)`` with Y."""
        mean_z, mean_y = self.z_sum / self.n, self.y_sum / self.n
        covariance = self.gram / self.n - torch.outer(mean_z, mean_z)
        return covariance, self.cross / self.n - torch.outer(mean_y, mean_z)

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of ``Z·weightᵀ + bias``, relative to the variance of Y, 0 or above.

        Outputs that hardly vary count as varying by ``NOISE_SHARE`` of their mean square.
        """
        weight, bias = weight.double(), bias.double()
        quadratic = (
            (weight @ self.gram * weight).sum(dim=1) - 2 * (self.cross * weight).sum(dim=1) + self.y_square
        )
        linear = 2 * bias * (weight @ self.z_sum) - 2 * bias * self.y_sum + self.n * bias * bias
        variance = (self.y_square - self.y_sum.square() / self.n).sum()
        return max(float((quadratic + linear).sum() / floored(variance, self.y_square.sum())), 0.0)

    def noise(self) -> Tensor:
        """Variances of Z ``(P,)`` that cannot be told from rounding errors."""
        return NOISE_SHARE * self.gram.diagonal() / self.n


def floored(variance: Tensor, square: Tensor) -> Tensor:
    """A variance sum that is fit to divide by: at least ``NOISE_SHARE`` of the mean square beside it."""
    return torch.maximum(variance, NOISE_SHARE * square).clamp_min(SMALLEST)


def fit_range(quantizer: ActivationQuantizer, values: Sequence[Tensor]) -> None:
    """Give the quantizer the clipping range of least squared rounding error on the values.

    A sample stands for the values within its own range. Those beyond it, few but far away, all count.
    """
    # An odd step does not fall on the same columns of every image, whose sizes are mostly even.
    # Cloned one by one: a view would keep the copy that `reshape` makes of channels-last values.
    parts = [v.reshape(-1)[:: v.numel() * len(values) // RANGE_SAMPLES | 1].clone() for v in values]
    sample = torch.cat(parts)
    low, high = min(float(sample.min()), 0.0), max(float(sample.max()), 0.0)
    tails = torch.cat([_beyond(v, low, high) for v in values])
    weight = (sum(v.numel() for v in values) - len(tails)) / len(sample)
    ends = [(low, high)]
    if len(tails):
        ends.append((min(low, float(tails.min())), max(high, float(tails.max()))))

    def error(ends: tuple[float, float]) -> float:
        quantizer.set_range(*ends)
        within, beyond = (float((quantizer(v) - v).square().sum()) for v in (sample, tails))
        return weight * within + beyond

    ranges = [(first * fraction, last * fraction) for first, last in ends for fraction in RANGE_FRACTIONS]
    quantizer.set_range(*min(ranges, key=error))


def _beyond(values: Tensor, low: float, high: float) -> Tensor:
    """The values outside ``low … high``: looked for in the pieces whose ends are."""
    flat = values.flatten()
    pieces = flat[: len(flat) // PIECE * PIECE].view(-1, PIECE)
    far = (pieces.amin(dim=1) < low) | (pieces.amax(dim=1) > high)
    few = torch.cat([pieces[far].flatten(), flat[pieces.numel() :]])
    return few[(few < low) | (few > high)]


def equalize_across_layers(first: Link, middle: Link, outputs: Sequence[Tensor]) -> None:
    """Give the channels between a 1×1 and a depthwise link like ranges by moving scale between the two.

    The product of the two scales, and so the function, stays.

    Args:
        first: The link that makes the channels.
        middle: The depthwise link that takes them.
        outputs: What ``first`` puts out, ``(B, R, H, W)`` per batch; changed with it, in place, as there may
            be gigabytes of them.
    """
    axis = first.operation.channel_axis
    means = [v.movedim(axis, -1).flatten(0, -2).square().mean(dim=0) for v in outputs]
    squares = torch.stack(means).mean(dim=0).sqrt()
    alive = squares > 1e-12 * squares.max()
    gain = (squares.max() / squares.clamp_min(1e-30)).clamp_max(LARGEST_GAIN)
    factor = torch.where(alive, gain, torch.ones_like(squares))
    ones = (1,) * (first.codes.ndim - 1)
    first.scales.mul_(factor.reshape(-1, *ones))
    middle.scales.div_(factor.reshape(-1, *ones))
    for values in outputs:
        values.mul_(first.per_channel(factor))


@torch.inference_mode()
def calibrate_layer(
    layer: FactorizedLayer,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    activation_bits: int,
    fit: bool,
    calls: int = 1,
    sites: Sequence[int] = (0,),
) -> float:
    """Set a chain's activation ranges and, if ``fit``, its last link and bias, in place.

    Args:
        layer: The chain; its links are changed.
        inputs: What reaches it in the compressed network, one tensor per batch (and call, see below).
        targets: What the original layer puts out, likewise.
        activation_bits: 8, or 32 for floating point.
        fit: Fit the last link to the targets; otherwise only ranges and scales between links change.
        calls: Tensors of one batch, where the layer runs several times: they stand next to each other.
        sites: Which of the layer's operations each of these calls is.

    Returns:
        The relative squared error of the outputs on the held-back batches.
    """
    values = list(inputs)
    chain = layer.chain
    places = [sites[index % len(sites)] for index in range(len(values))]
    for position, link in enumerate(chain):
        if not Grid.of(activation_bits).is_float:
            fit_range(link.input_quantizer, values)
        if position == len(chain) - 1:
            break
        for index, place in enumerate(places):  # one by one: what a link has taken is freed
            values[index] = link(values[index], place)
        following = chain[position + 1]
        if following.operation.dims and following.operation.groups == len(link.codes) > 1:
            equalize_across_layers(link, following, values)
    last = chain[-1]
    fixed = last.operation.groups != 1 or last.operation.transposed
    if fixed or not fit or not _validation_indices(len(values), calls):  # none of a single batch
        return output_error(last, values, targets, calls, places)
    return fit_last_link(last, *_collect(last, values, targets, calls, places))


def output_error(
    link: Link,
    values: Sequence[Tensor],
    targets: Sequence[Tensor],
    calls: int = 1,
    places: Sequence[int] | None = None,
) -> float:
    """Mean squared error of a link's outputs on the held-back batches, relative to the targets' variance."""
    validation = sorted(_validation_indices(len(values), calls) or set(range(len(values))))
    rows, sites = link.operation.output_rows, places or [0] * len(values)
    n, error, total, square = 0, torch.zeros(()).double(), torch.zeros(()).double(), torch.zeros(()).double()
    for index in validation:
        actual, expected = rows(link(values[index], sites[index])), rows(targets[index])
        for some, aims in zip(
            torch.split(actual, ERROR_ROWS), torch.split(expected, ERROR_ROWS), strict=True
        ):
            aims = aims.double()
            error = error + (some.double() - aims).square().sum()
            total, square = total + aims.sum(dim=0), square + aims.square().sum(dim=0)
            n += len(aims)
    variance = (square - total.square() / max(n, 1)).sum()
    return float(error / floored(variance, square.sum()))


def _validation_indices(count: int, calls: int) -> set[int]:
    """The tensors that judge the fits, whole batches of ``calls`` tensors; none of a single batch."""
    batches = count // calls
    chosen = set(range(VALIDATION_SHARE - 1, batches, VALIDATION_SHARE))
    if 1 < batches < VALIDATION_SHARE:
        chosen = {batches - 1}
    return {index for index in range(count) if index // calls in chosen}


def _collect(
    link: Link, values: Sequence[Tensor], targets: Sequence[Tensor], calls: int, places: Sequence[int]
) -> tuple[OutputMoments, OutputMoments]:
    """Moments of the fitting and of the held-back batches, of which there are some."""
    outputs, inputs = link.codes.shape[0], link.codes[0].numel()
    parts = [OutputMoments.empty(inputs, outputs, link.codes.device) for _ in range(2)]
    positions = sum(t.numel() // outputs for t in targets)
    generator = torch.Generator().manual_seed(0)
    held_back = _validation_indices(len(values), calls)
    for index, (value, target) in enumerate(zip(values, targets, strict=True)):
        operation = link.operations[places[index]]
        aims = operation.output_rows(target)
        chosen = None
        if positions > ROW_SAMPLES:
            count = int(len(aims) * ROW_SAMPLES / positions)
            chosen = torch.randperm(len(aims), generator=generator)[:count].to(aims.device)
            aims = aims[chosen]
        rows = operation.patch_rows(link.input_quantizer(value), link.kernel, chosen)
        parts[int(index in held_back)].add(rows, aims)
    return parts[0], parts[1]


def _weight_and_bias(link: Link) -> tuple[Tensor, Tensor]:
    weight = link.weight.reshape(link.codes.shape[0], -1)
    return weight, link.bias if link.bias is not None else weight.new_zeros(len(weight))


def fit_last_link(link: Link, fitting: OutputMoments, validation: OutputMoments) -> float:
    """Fit a link's codes, row scales and bias to outputs; kept only if the held-back samples agree.

    The held-back samples choose how strongly the fit is drawn to the old weight, and whether codes, or only
    the bias, or nothing at all is changed; what was chosen is then fitted once more on all samples.

    Args:
        link: Changed in place.
        fitting: Moments to fit on.
        validation: Moments of the held-back samples.

    Returns:
        The relative squared output error on the held-back samples, of what was chosen there.
    """
    old_weight, old_bias = _weight_and_bias(link)
    trials: list[tuple[float, float]] = []
    for ridge in RIDGES:
        target, _ = _ridge_target(fitting, old_weight, ridge)
        trials.append((validation.error(target, _fitted_bias(fitting, target)), ridge))
    ridge = min(trials)[1]
    codes, scales = _rounded(fitting, old_weight, ridge, link)
    weight = codes * scales
    errors = {
        "nothing": validation.error(old_weight, old_bias),
        "bias": validation.error(old_weight, _fitted_bias(fitting, old_weight)),
        "codes": validation.error(weight, _fitted_bias(fitting, weight)),
    }
    chosen = min(errors, key=lambda name: errors[name])
    everything = fitting.joined(validation)
    if chosen == "codes":
        codes, scales = _rounded(everything, old_weight, ridge, link)
        link.codes.copy_(codes.reshape(link.codes.shape))
        link.scales = scales.reshape(len(codes), *[1] * (link.codes.ndim - 1)).contiguous()
    if chosen != "nothing":
        bias = _fitted_bias(everything, _weight_and_bias(link)[0])
        link.bias = nn.Parameter(bias.to(link.scales.dtype), requires_grad=False)
    return errors[chosen]


def _ridge_target(moments: OutputMoments, old_weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The least-squares weight ``(I, P)``, drawn to the old one by ``ridge``, and the Gram it solves.

    Inputs that hardly vary say nothing about their weight: it stays.
    """
    gram, cross = moments.centred()
    prior = ridge * gram.diagonal().clamp_min(float(gram.diagonal().mean()) * 1e-4) + moments.noise()
    raised = gram + torch.diag(prior)
    return solve_gram(raised, cross + prior * old_weight.double()), raised


def _rounded(moments: OutputMoments, old_weight: Tensor, ridge: float, link: Link) -> tuple[Tensor, Tensor]:
    target, gram = _ridge_target(moments, old_weight, ridge)
    return round_rows(target.to(link.scales.dtype), gram.to(link.scales.dtype), link.bits)


def _fitted_bias(moments: OutputMoments, weight: Tensor) -> Tensor:
    """The bias that makes the mean outputs agree, ``(I,)``."""
    return (moments.y_sum - weight.double() @ moments.z_sum) / moments.n
