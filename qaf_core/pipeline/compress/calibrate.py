"""Activation ranges and output fitting, layer by layer from front to back.

Each layer sees the compressed network's own inputs (errors of the layers before it included) and aims at the
original network's outputs. With ``Z (n, P)`` the input of the chain's last link and ``Y (n, I)`` the original
outputs, the last link solves ``min ‖Y - Z Aᵀ - bias‖²`` on its integer grid: the Gram ``ZᵀZ`` takes the place
of the weight-space Gram in the error-feedback rounding (per-layer reconstruction as in arXiv 2006.10518 and
2208.11580), around a target that noise in Z does not draw to zero (:mod:`.output_moments`). No labels are
used, and a fit stays only if held-back images agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qaf_core.factorization.rounding import round_rows, solve_gram
from qaf_core.network.modules.quantized import ActivationQuantizer, FactorizedLayer, Link
from qaf_core.pipeline.compress.output_moments import OutputMoments, floored
from qaf_core.pipeline.compress.samples import LayerSamples
from qaf_core.quantization.grid import Grid

VALIDATION_SHARE = 8  # one batch in eight judges the fits, the last of them if there are fewer
RANGE_SAMPLES = 50_000
PIECE = 1024  # values searched for outliers at a time
ROW_SAMPLES = 400_000  # output positions a fit looks at; more do not change it
ERROR_ROWS = 20_000  # output positions held in double precision at once
LEAST_IMAGES = 128
RANGE_FRACTIONS = torch.linspace(0.35, 1.0, 27).tolist()
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
NEAR = 1.25  # times the least error, within which the network's answers decide
LARGEST_GAIN = 1e4  # between channels; more would leave the range of half-precision scales


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
    layer: FactorizedLayer, samples: LayerSamples, *, activation_bits: int, fit: bool
) -> float:
    """Set a chain's activation ranges and, if ``fit``, its last link and bias, in place.

    Args:
        layer: The chain; its links are changed.
        samples: What reaches it, and what it should put out.
        activation_bits: 8, or 32 for floating point.
        fit: Fit the last link to the targets; otherwise only ranges and scales between links change.

    Returns:
        The relative squared error of the outputs on the held-back batches.
    """
    values, targets, calls, chain = list(samples.inputs), samples.targets, samples.calls, layer.chain
    places = [samples.sites[index % len(samples.sites)] for index in range(len(values))]
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
    held_back = sorted(_validation_indices(len(values), calls))
    if fixed or not fit or not held_back:  # none of a single batch
        return output_error(last, values, targets, calls, places)
    ahead = samples.ahead

    def harm() -> float:
        assert ahead is not None
        return ahead.divergence({index: last(values[index], places[index]) for index in held_back})

    moments = _collect(layer, values, samples, places)
    return fit_last_link(last, *moments, harm=None if ahead is None else harm)


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
    layer: FactorizedLayer, values: Sequence[Tensor], samples: LayerSamples, places: Sequence[int]
) -> tuple[OutputMoments, OutputMoments]:
    """Moments of the last link's inputs and targets, on the fitting and on the held-back batches, of which
    there are some. What the original network's inputs become on their way there is made one by one.
    """
    *before, link = layer.chain
    targets = samples.targets
    outputs, inputs = link.codes.shape[0], link.codes[0].numel()
    parts = [OutputMoments.empty(inputs, outputs, link.codes.device) for _ in range(2)]
    positions = sum(t.numel() // outputs for t in targets)
    generator = torch.Generator().manual_seed(0)
    held_back = _validation_indices(len(values), samples.calls)
    for index, (value, target) in enumerate(zip(values, targets, strict=True)):
        operation = link.operations[places[index]]
        aims = operation.output_rows(target)
        chosen = None
        if positions > ROW_SAMPLES:
            count = int(len(aims) * ROW_SAMPLES / positions)
            chosen = torch.randperm(len(aims), generator=generator)[:count].to(aims.device)
            aims = aims[chosen]
        rows = operation.patch_rows(link.input_quantizer(value), link.kernel, chosen)
        errorless = None
        if samples.originals:
            original = samples.originals[index]
            for earlier in before:
                original = earlier(original, places[index])
            errorless = operation.patch_rows(original, link.kernel, chosen)
        parts[int(index in held_back)].add(rows, aims, errorless)
    return parts[0], parts[1]


@dataclass(frozen=True)
class _Fit:
    """What a link may become.

    Attributes:
        codes: ``(I, P)``.
        scales: ``(I, 1)``.
        bias: ``(I,)``, or None.
        ridge: How strongly the codes were drawn to the old weight; None: they are the old ones.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None
    ridge: float | None

    def put_into(self, link: Link) -> None:
        """Change the link."""
        link.codes.copy_(self.codes.reshape(link.codes.shape))
        link.scales = self.scales.reshape(link.scales.shape).contiguous()
        bias = None if self.bias is None else self.bias.to(link.scales.dtype)
        link.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def fit_last_link(
    link: Link,
    fitting: OutputMoments,
    validation: OutputMoments,
    harm: Callable[[], float] | None = None,
) -> float:
    """Fit a link's codes, row scales and bias to outputs; kept only if the held-back samples agree.

    The held-back samples choose how strongly the fit is drawn to the old weight, and whether codes, or only
    the bias, or nothing at all is changed; what was chosen is then fitted once more on all samples. A little
    smaller error of the layer may harm the network all the same: between errors that are near to each other
    the network's answers decide, where they are known.

    Args:
        link: Changed in place.
        fitting: Moments to fit on.
        validation: Moments of the held-back samples.
        harm: How far the network's answers on the held-back samples move with the link as it is; None where
            that is not known: then the error of the link's outputs decides.

    Returns:
        The relative squared output error on the held-back samples, of what was chosen there.
    """
    fits = _fits(link, fitting, validation)
    errors = [_error(fit, validation) for fit in fits]
    best = min(range(len(fits)), key=lambda index: errors[index])
    near = [index for index, error in enumerate(errors) if error <= NEAR * errors[best]]
    if harm is not None and len(near) > 1:
        harms = {index: _harm(fits[index], link, harm) for index in near}
        if all(map(math.isfinite, harms.values())):  # else the outputs cannot be compared
            best = min(near, key=lambda index: harms[index])
    chosen, everything = fits[best], fitting.joined(validation)
    codes, scales = chosen.codes, chosen.scales
    if chosen.ridge is not None:
        problem = _Problem.of(everything, fits[0].codes * fits[0].scales)
        codes, scales = problem.rounded(chosen.ridge, link)
    bias = chosen.bias
    if best > 0:
        bias = _fitted_bias(everything, codes * scales)
    _Fit(codes, scales, bias, chosen.ridge).put_into(link)
    return errors[best]


def _fits(link: Link, fitting: OutputMoments, validation: OutputMoments) -> list[_Fit]:
    """The link as it is, with another bias, and with other codes: ridge of least error, and the largest."""
    codes = link.codes.reshape(len(link.codes), -1).clone()
    scales = link.scales.reshape(len(codes), -1)
    weight = codes * scales
    problem = _Problem.of(fitting, weight)
    targets = {ridge: problem.target(ridge) for ridge in RIDGES}
    errors = {
        ridge: validation.error(target, _fitted_bias(fitting, target)) for ridge, target in targets.items()
    }
    fits = [
        _Fit(codes, scales, link.bias, None),
        _Fit(codes, scales, _fitted_bias(fitting, weight), None),
    ]
    for ridge in sorted({min(RIDGES, key=lambda ridge: errors[ridge]), max(RIDGES)}):
        moved, steps = problem.rounded(ridge, link)
        fits.append(_Fit(moved, steps, _fitted_bias(fitting, moved * steps), ridge))
    return fits


def _error(fit: _Fit, validation: OutputMoments) -> float:
    weight = fit.codes * fit.scales
    return validation.error(weight, weight.new_zeros(len(weight)) if fit.bias is None else fit.bias)


def _harm(fit: _Fit, link: Link, harm: Callable[[], float]) -> float:
    fit.put_into(link)
    return harm()


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """Integer least squares for a weight that is drawn to an old one.

    Inputs that hardly vary say nothing about their weight: it stays.

    Attributes:
        old_weight: ``(I, P)``.
        gram, cross: Of the least squares, as ``OutputMoments.explained``: ``(P, P)`` and ``(I, P)``.
        covariance: Of the inputs as they are, under which a weight is rounded.
        noise: Variances that cannot be told from rounding errors.
    """

    old_weight: Tensor
    gram: Tensor
    cross: Tensor
    covariance: Tensor
    noise: Tensor

    @classmethod
    def of(cls, moments: OutputMoments, old_weight: Tensor) -> _Problem:
        """The problem that samples pose."""
        gram, cross = moments.explained()
        covariance, _ = moments.centred()
        return cls(
            old_weight=old_weight.double(), gram=gram, cross=cross, covariance=covariance,
            noise=moments.noise(),
        )  # fmt: skip

    def _prior(self, ridge: float) -> Tensor:
        """How strongly each input's weight is drawn to the old one, ``(P,)``."""
        diagonal = self.covariance.diagonal()
        return ridge * diagonal.clamp_min(float(diagonal.mean()) * 1e-4) + self.noise

    def target(self, ridge: float) -> Tensor:
        """The weight ``(I, P)`` that is aimed at.

        Args:
            ridge: Relative to the inputs' variances.
        """
        prior = self._prior(ridge)
        return solve_gram(self.gram + torch.diag(prior), self.cross + prior * self.old_weight)

    def rounded(self, ridge: float, link: Link) -> tuple[Tensor, Tensor]:
        """Codes and row scales of that weight on a link's grid."""
        gram = self.covariance + torch.diag(self._prior(ridge))
        kind = link.scales.dtype
        return round_rows(self.target(ridge).to(kind), gram.to(kind), link.bits)


def _fitted_bias(moments: OutputMoments, weight: Tensor) -> Tensor:
    """The bias that makes the mean outputs agree, ``(I,)``."""
    return (moments.y_sum - weight.double() @ moments.z_sum) / moments.n
