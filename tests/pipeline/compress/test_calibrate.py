"""Activation ranges and output fits, against least squares and outputs computed directly."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import draw
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qaf_core import QuantSpec, SolverOptions, solve_layer
from qaf_core.factorization.rounding import round_rows
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.operation import convolution
from qaf_core.network.modules.quantized import ActivationQuantizer, FactorizedLayer, Layer, Link
from qaf_core.pipeline.compress import calibrate
from qaf_core.pipeline.compress.calibrate import (
    calibrate_layer,
    equalize_across_layers,
    fit_last_link,
    fit_range,
    output_error,
)
from qaf_core.pipeline.compress.output_moments import OutputMoments
from qaf_core.pipeline.compress.samples import LayerSamples

QUICK = SolverOptions(starts=1, start_iterations=20, iterations=2, rounding_rounds=3)


def captured(layer: nn.Module, *shape: int) -> Layer:
    """A PyTorch layer as the layer of a captured network, for inputs of a shape."""
    return layer_of(capture(nn.Sequential(layer), shape), "0")


def chain_of(layer: Layer, structure: str, rank: Any = None, bits: int = 4) -> FactorizedLayer:
    spec = QuantSpec(bits=bits, granularity="rank_row")
    return build_chain(layer, solve_layer(layer.rows, structure, rank, spec, QUICK).factors)


def moments_of(z: Tensor, y: Tensor, parts: int = 3) -> OutputMoments:
    moments = OutputMoments.empty(z.shape[1], y.shape[1], z.device)
    for rows, aims in zip(torch.tensor_split(z, parts), torch.tensor_split(y, parts), strict=True):
        moments.add(rows, aims)
    return moments


# Moments


def test_the_error_from_moments_is_that_of_the_outputs() -> None:
    z, y, weight, bias = draw(300, 7), draw(300, 4, seed=1) + 2.0, draw(4, 7, seed=2), draw(4, seed=3)
    difference = (z @ weight.mT + bias - y).double()
    variance = (y - y.mean(dim=0)).double().square().sum()
    expected = float(difference.square().sum() / variance)
    assert moments_of(z, y).error(weight, bias) == pytest.approx(expected, rel=1e-5)


def test_centred_moments_are_covariances() -> None:
    z, y = draw(200, 5) + 3.0, draw(200, 3, seed=1) - 1.0
    covariance, cross = moments_of(z, y).centred()
    both = np.cov(np.concatenate([z, y], axis=1), rowvar=False, bias=True)
    np.testing.assert_allclose(covariance.numpy(), both[:5, :5], atol=1e-4)
    np.testing.assert_allclose(cross.numpy(), both[5:, :5], atol=1e-4)


def test_joined_moments_are_those_of_all_samples() -> None:
    z, y = draw(100, 5), draw(100, 3, seed=1)
    joined = moments_of(z[:30], y[:30]).joined(moments_of(z[30:], y[30:]))
    whole = moments_of(z, y)
    assert joined.n == whole.n == 100
    for name in ("gram", "cross", "z_sum", "y_sum", "y_square"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), rtol=1e-5, atol=1e-4)


# Ranges


@given(st.integers(0, 500), st.floats(0.0, 6.0))
def test_a_range_rounds_no_worse_than_the_whole_range(seed: int, shift: float) -> None:
    values = draw(3000, seed=seed) + shift
    fitted, whole = ActivationQuantizer(), ActivationQuantizer()
    fit_range(fitted, [values])
    whole.set_range(float(values.min()), float(values.max()))

    def error(quantizer: ActivationQuantizer) -> float:
        return float((quantizer(values) - values).square().sum())

    assert error(fitted) <= error(whole) * (1 + 1e-6)


def test_values_spread_evenly_are_covered() -> None:
    quantizer = ActivationQuantizer()
    fit_range(quantizer, [torch.linspace(-2.0, 6.0, 10_001)])
    step, zero = float(quantizer.scale), int(quantizer.zero_point)
    assert -zero * step == pytest.approx(-2.0, rel=0.05)
    assert (255 - zero) * step == pytest.approx(6.0, rel=0.05)


def test_a_far_outlier_is_clipped() -> None:
    values = torch.cat([torch.rand(40_000, generator=torch.Generator().manual_seed(0)), torch.tensor([2.5])])
    quantizer = ActivationQuantizer()
    fit_range(quantizer, [values])
    assert 255 * float(quantizer.scale) < 2.45


@pytest.mark.parametrize(("outlier", "end"), [(-300.0, -300.0), (300.0, 300.0), (1e4, 1e4)])
def test_outliers_that_no_sample_holds_count(outlier: float, end: float) -> None:
    """As in RepVGG: few values, so far away that they are most of the energy."""
    values = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0))
    values[::5, 2] = outlier
    quantizer = ActivationQuantizer()
    fit_range(quantizer, [values])
    assert float(quantizer(torch.tensor(outlier))) == pytest.approx(end, rel=0.05)


def test_few_outliers_are_clipped_where_the_others_matter_more() -> None:
    values = torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0))
    values[3, 2] = 30.0
    quantizer = ActivationQuantizer()
    fit_range(quantizer, [values])
    squares = (quantizer(values) - values).square().sum()
    for end in (0.5, 0.9, 1.0, 3.0, 10.0, 20.0, 30.0):
        quantizer.set_range(0.0, end)
        assert squares <= 1.02 * (quantizer(values) - values).square().sum()


def test_all_batches_count() -> None:
    quantizer = ActivationQuantizer()
    fit_range(quantizer, [torch.zeros(1000), torch.linspace(0, 8.0, 1000)])
    assert 255 * float(quantizer.scale) == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_constant_activations_have_a_range(value: float) -> None:
    quantizer = ActivationQuantizer()
    fit_range(quantizer, [torch.full((50,), value)])
    assert torch.allclose(quantizer(torch.full((2,), value)), torch.full((2,), value), rtol=0.01)


def test_a_sample_of_large_activations_sees_every_column() -> None:
    # One column in 32 is large: a step that divides by 32 would see all of it or nothing.
    values = torch.zeros(64, 32, 16, 32)
    values[..., 5] = 4.0
    quantizer = ActivationQuantizer()
    fit_range(quantizer, [values] * 2)
    assert 255 * float(quantizer.scale) == pytest.approx(4.0, rel=0.02)


# Channels between links


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e8])
def test_equal_channels_keep_the_function(spread: float) -> None:
    layer = captured(nn.Conv2d(5, 6, 3, padding=1), 5, 8, 8)
    chain = chain_of(layer, "cp", 12).double()
    first, middle, _ = chain.chain
    first.scales.mul_(
        torch.logspace(0, float(np.log10(spread)), 12, dtype=torch.float64).reshape(-1, 1, 1, 1)
    )
    values = draw(4, 5, 8, 8).double()
    with torch.no_grad():
        before, changed = chain(values), [first(values)]
        equalize_across_layers(first, middle, changed)
        torch.testing.assert_close(chain(values), before)
        torch.testing.assert_close(first(values), changed[0])
        sizes = changed[0].square().mean(dim=(0, 2, 3)).sqrt()
    if spread <= 1e3:
        torch.testing.assert_close(sizes, sizes[:1].expand_as(sizes))
    assert float(first.scales.max() / first.scales.min()) < 1e13


def test_dead_channels_keep_their_scale() -> None:
    chain = chain_of(captured(nn.Conv2d(5, 6, 3), 5, 8, 8), "cp", 8)
    first, middle, _ = chain.chain
    first.codes[3] = 0
    scale = float(first.scales[3])
    with torch.no_grad():
        equalize_across_layers(first, middle, [first(draw(2, 5, 8, 8))])
    assert float(first.scales[3]) == scale
    assert bool(torch.isfinite(middle.scales).all())


# Samples


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "padding": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": (1, 7), "padding": (0, 3)},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_samples_times_the_weight_are_the_outputs(geometry: dict[str, Any]) -> None:
    (link,) = chain_of(captured(nn.Conv2d(4, 5, **geometry), 4, 9, 9), "dense").chain
    assert_samples_give_outputs(link, draw(3, 4, 9, 9))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 5, 3, stride=2, padding=2, dilation=2), (4, 17)),
        (nn.Conv1d(4, 5, 1), (4, 9)),
        (nn.Conv3d(4, 5, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)), (4, 4, 5, 6)),
        (nn.Conv3d(4, 5, 1), (4, 2, 3, 2)),
    ],
    ids=str,
)
def test_samples_of_one_and_three_dimensions(layer: nn.Module, shape: tuple[int, ...]) -> None:
    (link,) = chain_of(captured(layer, *shape), "dense").chain
    assert_samples_give_outputs(link, draw(3, *shape))


@pytest.mark.parametrize("shape", [(6, 4), (2, 6, 4)])
def test_samples_of_linear_layers(shape: tuple[int, ...]) -> None:
    (link,) = chain_of(captured(nn.Linear(4, 3), *shape[1:]), "dense").chain
    assert_samples_give_outputs(link, draw(*shape))


def assert_samples_give_outputs(link: Link, values: Tensor) -> None:
    """What the link multiplies with its rows, as a product of matrices, is what it puts out."""
    operation = link.operation
    with torch.no_grad():
        expected = operation.output_rows(link(values))
        samples = operation.patch_rows(values, link.kernel)
        found = samples @ link.weight.reshape(len(link.weight), -1).mT + link.bias
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# The fit of the last link


def random_link(bits: int, outputs: int = 4, inputs: int = 9) -> Link:
    high = 2 ** (min(bits, 8) - 1) - 1
    codes = (draw(outputs, inputs, seed=5) * high / 3).round().clamp(-high - 1, high)
    stored = codes if bits == 32 else codes.to(torch.int8)
    return Link(stored, torch.full((outputs, 1), 1.0 / high), bits, draw(outputs, seed=6))


def test_in_floating_point_the_fit_is_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "RIDGES", (1e-9,))
    z, y = draw(500, 9) + 1.0, draw(500, 4, seed=1) + draw(500, 9) @ draw(9, 4, seed=2) - 2.0
    link = random_link(32)
    fit_last_link(link, moments_of(z, y), moments_of(z, y))
    with_ones = np.concatenate([z, np.ones((500, 1))], axis=1)
    expected, *_ = np.linalg.lstsq(with_ones.astype(float), y.numpy().astype(float))
    np.testing.assert_allclose(link.weight.numpy(), expected[:9].T, atol=2e-3)
    assert link.bias is not None
    np.testing.assert_allclose(link.bias.numpy(), expected[9], atol=5e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 32])
@pytest.mark.parametrize("seed", range(4))
def test_a_fit_is_never_worse_on_held_back_samples(bits: int, seed: int) -> None:
    z = draw(80, 9, seed=seed) @ draw(9, 9, seed=seed + 10)
    y = z @ random_link(8).weight.mT + draw(80, 4, seed=seed + 1) * (1 + seed)
    validation = moments_of(z[60:], y[60:])
    link = random_link(bits)
    assert link.bias is not None
    before = validation.error(link.weight, link.bias)
    assert fit_last_link(link, moments_of(z[:60], y[:60]), validation) <= before


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_fit_lowers_the_error_and_stays_on_its_grid(bits: int) -> None:
    z = draw(600, 9) + 2 * draw(600, 1, seed=3)
    y = z @ draw(9, 4, seed=2) + 1.0
    link = random_link(bits)
    moments = moments_of(z, y)
    assert link.bias is not None
    before = moments.error(link.weight, link.bias)
    told = fit_last_link(link, moments, moments)
    assert told < 0.5 * before
    assert moments.error(link.weight, link.bias) == pytest.approx(told, rel=1e-3, abs=1e-6)
    assert link.codes.dtype == torch.int8
    assert -(2 ** (bits - 1)) <= int(link.codes.min())
    assert int(link.codes.max()) < 2 ** (bits - 1)
    assert link.scales.shape == (4, 1)
    assert float(link.scales.min()) > 0


def test_a_fit_that_held_back_samples_do_not_confirm_changes_nothing() -> None:
    link = random_link(4)
    before = copy.deepcopy(link)
    z = draw(200, 9)
    assert link.bias is not None
    exact = z @ link.weight.mT + link.bias
    told = fit_last_link(link, moments_of(z[:100], draw(100, 4, seed=8)), moments_of(z[100:], exact[100:]))
    assert told == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(link.codes, before.codes)
    assert torch.equal(link.scales, before.scales)
    assert torch.equal(link.bias, before.bias)  # type: ignore[arg-type]


def test_a_link_without_a_bias_gets_one() -> None:
    link = Link(random_link(4).codes, random_link(4).scales, 4)
    z = draw(300, 9)
    y = z @ link.weight.mT + torch.tensor([5.0, -3.0, 0.0, 1.0])
    fit_last_link(link, moments_of(z, y), moments_of(z, y))
    assert link.bias is not None
    torch.testing.assert_close(link.bias.data, torch.tensor([5.0, -3.0, 0.0, 1.0]), rtol=0.05, atol=0.2)


def test_dead_and_constant_inputs_are_survived() -> None:
    z = draw(100, 9)
    z[:, 3], z[:, 4] = 0.0, 7.0
    link = random_link(4)
    moments = moments_of(z, z @ draw(9, 4, seed=1))
    assert np.isfinite(fit_last_link(link, moments, moments))
    assert bool(torch.isfinite(link.weight).all())


# A whole layer


def layer_and_batches(count: int = 9, noise: float = 0.0) -> tuple[Layer, list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    layer = captured(nn.Conv2d(5, 6, 3, padding=1), 5, 8, 8)
    inputs = [torch.relu(draw(8, 5, 8, 8, seed=seed)) for seed in range(count)]
    with torch.no_grad():
        targets = [layer(batch) for batch in inputs]
    return layer, [batch + noise * draw(*batch.shape, seed=99) for batch in inputs], targets


def output_error_of(chain: FactorizedLayer, inputs: list[Tensor], targets: list[Tensor]) -> float:
    with torch.no_grad():
        found, wanted = torch.cat([chain(batch) for batch in inputs]), torch.cat(targets)
    variance = (wanted - wanted.mean(dim=(0, 2, 3), keepdim=True)).square().sum()
    return float((found - wanted).square().sum() / variance)


@pytest.mark.parametrize(("structure", "rank"), [("cp", 14), ("tucker2", (5, 4)), ("dense", None)])
@pytest.mark.parametrize("activation_bits", [8, 32])
def test_calibration_fits_outputs_and_tells_their_error(
    structure: str, rank: Any, activation_bits: int
) -> None:
    layer, inputs, targets = layer_and_batches()
    chain = chain_of(layer, structure, rank, bits=3)
    plain = copy.deepcopy(chain)
    told_plain = calibrate_layer(
        plain, LayerSamples(inputs=inputs, targets=targets), activation_bits=activation_bits, fit=False
    )
    told = calibrate_layer(
        chain, LayerSamples(inputs=inputs, targets=targets), activation_bits=activation_bits, fit=True
    )
    held_back = [inputs[7]], [targets[7]]
    assert told_plain == pytest.approx(output_error_of(plain, *held_back), rel=0.02)
    assert output_error_of(chain, *held_back) <= 1.02 * told
    assert told < 0.95 * told_plain
    assert all(bool(link.input_quantizer.enabled) == (activation_bits == 8) for link in chain.chain)


def test_eight_bit_activations_cost_little() -> None:
    layer, inputs, targets = layer_and_batches()
    chain = chain_of(layer, "cp", 30, bits=8)
    floating = copy.deepcopy(chain)
    errors = [
        calibrate_layer(each, LayerSamples(inputs=inputs, targets=targets), activation_bits=bits, fit=True)
        for each, bits in ((floating, 32), (chain, 8))
    ]
    assert errors[1] < errors[0] + 1e-3


def test_errors_of_the_layers_before_are_made_up_for() -> None:
    layer, inputs, targets = layer_and_batches()
    shifted = [1.3 * batch + 0.2 for batch in inputs]
    chain = chain_of(layer, "dense", bits=8)
    plain = copy.deepcopy(chain)
    calibrate_layer(plain, LayerSamples(inputs=shifted, targets=targets), activation_bits=32, fit=False)
    calibrate_layer(chain, LayerSamples(inputs=shifted, targets=targets), activation_bits=32, fit=True)
    assert output_error_of(chain, shifted, targets) < 0.1 * output_error_of(plain, shifted, targets)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_batches_are_enough(count: int) -> None:
    layer, inputs, targets = layer_and_batches(count)
    chain = chain_of(layer, "cp", 14)
    told = calibrate_layer(chain, LayerSamples(inputs=inputs, targets=targets), activation_bits=8, fit=True)
    assert told == pytest.approx(output_error_of(chain, inputs[-1:], targets[-1:]), rel=0.3)


def test_a_single_image_is_survived() -> None:
    layer, inputs, targets = layer_and_batches(1)
    chain = chain_of(layer, "cp", 14)
    told = calibrate_layer(
        chain, LayerSamples(inputs=[inputs[0][:1]], targets=[targets[0][:1]]), activation_bits=8, fit=True
    )
    assert 0 <= told < 1


def test_a_sample_of_the_positions_gives_about_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs, targets = layer_and_batches()
    whole, sampled = (chain_of(layer, "cp", 14) for _ in range(2))
    calibrate_layer(whole, LayerSamples(inputs=inputs, targets=targets), activation_bits=32, fit=True)
    monkeypatch.setattr(calibrate, "ROW_SAMPLES", 1500)
    calibrate_layer(sampled, LayerSamples(inputs=inputs, targets=targets), activation_bits=32, fit=True)
    assert output_error_of(sampled, inputs, targets) < 1.1 * output_error_of(whole, inputs, targets)


def test_grouped_layers_get_ranges_and_an_error_but_no_fit() -> None:
    torch.manual_seed(0)
    layer = captured(nn.Conv2d(6, 6, 3, padding=1, groups=6), 6, 8, 8)
    inputs = [draw(4, 6, 8, 8, seed=seed) for seed in range(9)]
    with torch.no_grad():
        targets = [layer(batch) for batch in inputs]
    chain = chain_of(layer, "dense", bits=4)
    codes = chain.last.codes.clone()
    told = calibrate_layer(chain, LayerSamples(inputs=inputs, targets=targets), activation_bits=8, fit=True)
    assert torch.equal(chain.last.codes, codes)
    assert bool(chain.last.input_quantizer.enabled)
    assert told == pytest.approx(output_error_of(chain, [inputs[7]], [targets[7]]), rel=1e-3)
    assert told == pytest.approx(output_error(chain.last, inputs, targets), rel=1e-6)


def test_linear_layers_are_fitted_too() -> None:
    torch.manual_seed(0)
    layer = captured(nn.Linear(12, 8), 5, 12)
    inputs = [torch.relu(draw(16, 5, 12, seed=seed)) for seed in range(9)]
    with torch.no_grad():
        targets = [layer(batch) for batch in inputs]
    chain = chain_of(layer, "svd", 4, bits=3)
    plain = copy.deepcopy(chain)
    before = calibrate_layer(
        plain, LayerSamples(inputs=inputs, targets=targets), activation_bits=8, fit=False
    )
    assert (
        calibrate_layer(chain, LayerSamples(inputs=inputs, targets=targets), activation_bits=8, fit=True)
        < 0.95 * before
    )


def test_transposed_layers_get_ranges_and_an_error_but_no_fit_of_the_kernel() -> None:
    torch.manual_seed(0)
    layer = captured(nn.ConvTranspose2d(5, 6, 3, stride=2, padding=1), 5, 6, 6)
    inputs = [torch.relu(draw(4, 5, 6, 6, seed=seed)) for seed in range(9)]
    with torch.no_grad():
        targets = [layer(batch) for batch in inputs]
    dense, factorized = chain_of(layer, "dense", bits=4), chain_of(layer, "tucker2", (4, 4), bits=3)
    codes, plain = dense.last.codes.clone(), copy.deepcopy(factorized)
    told = calibrate_layer(dense, LayerSamples(inputs=inputs, targets=targets), activation_bits=8, fit=True)
    assert torch.equal(dense.last.codes, codes)
    assert told == pytest.approx(output_error_of(dense, [inputs[7]], [targets[7]]), rel=1e-3)
    before = calibrate_layer(
        plain, LayerSamples(inputs=inputs, targets=targets), activation_bits=8, fit=False
    )
    assert (
        calibrate_layer(factorized, LayerSamples(inputs=inputs, targets=targets), activation_bits=8, fit=True)
        < 0.95 * before
    )


def test_a_layer_at_two_strides_is_fitted_to_the_outputs_of_both() -> None:
    torch.manual_seed(0)
    weight, bias = draw(6, 5, 3, 3), draw(6, seed=1)
    layer = Layer(weight, bias, [convolution(2, padding=1), convolution(2, padding=1, stride=2)])
    inputs = [torch.relu(draw(8, 5, 8, 8, seed=seed)) for seed in range(18)]
    sites = (0, 1)
    with torch.no_grad():
        targets = [layer(batch, sites[index % 2]) for index, batch in enumerate(inputs)]
    assert targets[1].shape[-1] == 4
    chain = chain_of(layer, "cp", 14, bits=3)
    plain = copy.deepcopy(chain)
    before, after = (
        calibrate_layer(
            each,
            LayerSamples(inputs=inputs, targets=targets, calls=2, sites=sites),
            activation_bits=8,
            fit=fit,
        )
        for each, fit in ((plain, False), (chain, True))
    )
    assert after < 0.95 * before
    with torch.no_grad():
        found = torch.cat([chain(inputs[14 + site], site).movedim(1, -1).reshape(-1, 6) for site in sites])
        wanted = torch.cat([targets[14 + site].movedim(1, -1).reshape(-1, 6) for site in sites])
    error = (found - wanted).square().sum() / (wanted - wanted.mean(dim=0)).square().sum()
    assert float(error) <= 1.02 * after


def test_outputs_that_hardly_vary_have_an_error_that_can_be_read() -> None:
    """Behind a dead layer everything is constant: variances are rounding noise, below zero at times."""
    z = torch.full((400, 6), 1234.567) + 1e-5 * draw(400, 6)
    y = torch.full((400, 3), -987.654)
    moments = moments_of(z, y, parts=7)
    exact = moments.error(torch.zeros(3, 6), y[0])
    assert 0.0 <= exact < 1e-3
    assert moments.error(torch.zeros(3, 6), 1.1 * y[0]) > 1.0
    assert moments.error(torch.zeros(3, 6), torch.zeros(3)) == pytest.approx(1e6, rel=0.01)


@pytest.mark.parametrize("bits", [4, 8])
def test_constant_inputs_do_not_blow_up_the_weight(bits: int) -> None:
    z = (torch.full((4000, 5), 37.1) + 1e-6 * draw(4000, 5)).clamp_min(0)
    y = torch.full((4000, 4), 2.5) + 1e-6 * draw(4000, 4, seed=1)
    old = draw(4, 5, seed=2)
    codes = (old / 0.5).round().clamp(-8, 7).to(torch.int8)
    link = Link(codes, torch.full((4, 1), 0.5), bits, torch.zeros(4))
    before = float(link.weight.abs().max())
    error = fit_last_link(link, moments_of(z[:3000], y[:3000]), moments_of(z[3000:], y[3000:]))
    assert 0.0 <= error < 1e-3
    assert float(link.weight.abs().max()) < 3 * before
    torch.testing.assert_close(link(z[:5]), y[:5], rtol=1e-2, atol=1e-2)


def with_instrument(z: Tensor, y: Tensor, x: Tensor) -> tuple[OutputMoments, OutputMoments]:
    """Moments to fit on and to judge by."""
    parts = []
    for rows in (slice(0, len(z), 2), slice(1, len(z), 2)):
        moments = OutputMoments.empty(z.shape[1], y.shape[1], z.device)
        for piece in range(3):
            moments.add(z[rows][piece::3], y[rows][piece::3], x[rows][piece::3])
        parts.append(moments)
    return parts[0], parts[1]


def fitted_weight(z: Tensor, y: Tensor, x: Tensor | None) -> Tensor:
    """A link at 8 bits that is the original one before the fit, and is fitted to these samples."""
    link = one_by_one(WEIGHT_OF_NOISE)
    if x is None:
        fit_last_link(link, moments_of(z[::2], y[::2]), moments_of(z[1::2], y[1::2]))
    else:
        fit_last_link(link, *with_instrument(z, y, x))
    return link.weight.reshape(4, 6)


WEIGHT_OF_NOISE = draw(4, 6, seed=31)
SIZES = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3, 0.2])


def one_by_one(weight: Tensor) -> Link:
    return Link(*round_rows(weight, None, 8), 8)


def test_noise_in_the_inputs_draws_no_weight_to_zero() -> None:
    x = draw(6000, 6, seed=32) * SIZES
    z, y = x + 0.3 * draw(6000, 6, seed=33), x @ WEIGHT_OF_NOISE.mT
    plain, fitted = fitted_weight(z, y, None), fitted_weight(z, y, x)
    last = WEIGHT_OF_NOISE[:, -1]
    assert float((plain[:, -1] @ last) / (last @ last)) < 0.5  # least squares: 0.2² of 0.2² + 0.3²
    assert float((fitted[:, -1] @ last) / (last @ last)) == pytest.approx(1.0, abs=0.1)


def test_what_earlier_layers_do_alike_is_made_up_for() -> None:
    x = draw(6000, 6, seed=34) * SIZES
    mixing = torch.eye(6) + 0.2 * draw(6, 6, seed=35)
    z = x @ mixing.mT + 0.1 * draw(6000, 6, seed=36)
    fitted = fitted_weight(z, x @ WEIGHT_OF_NOISE.mT, x)
    error = (fitted @ mixing - WEIGHT_OF_NOISE) * SIZES
    before = (WEIGHT_OF_NOISE @ mixing - WEIGHT_OF_NOISE) * SIZES
    assert float(error.norm()) < 0.3 * float(before.norm())


def test_moments_of_parts_are_those_of_the_whole() -> None:
    x, y = draw(60, 6, seed=37), draw(60, 4, seed=38)
    z = x + draw(60, 6, seed=39)
    whole = OutputMoments.empty(6, 4, z.device)
    whole.add(z, y, x)
    fitting, validation = with_instrument(z, y, x)
    for one, other in zip(fitting.joined(validation).explained(), whole.explained(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_between_near_errors_the_answers_of_the_network_decide() -> None:
    x = draw(6000, 6, seed=40) * SIZES
    z, y = x + 0.02 * draw(6000, 6, seed=41), x @ WEIGHT_OF_NOISE.mT
    link = one_by_one(WEIGHT_OF_NOISE)
    codes = link.codes.clone()

    def harm() -> float:
        return 0.0 if link.bias is None else 1.0

    fit_last_link(link, *with_instrument(z, y, x), harm=harm)
    assert link.bias is None
    assert torch.equal(link.codes, codes)
    fit_last_link(link, *with_instrument(z, y, x), harm=lambda: math.nan)  # nothing can be compared
    assert link.bias is not None


def test_a_much_smaller_error_is_taken_whatever_the_answers_say() -> None:
    x = draw(6000, 6, seed=42) * SIZES
    link = one_by_one(WEIGHT_OF_NOISE)

    def harm() -> float:
        return 0.0 if link.bias is None else 1.0

    error = fit_last_link(link, *with_instrument(x, 2.0 * x @ WEIGHT_OF_NOISE.mT, x), harm=harm)
    assert error < 1e-3
    assert torch.allclose(link.weight, 2.0 * WEIGHT_OF_NOISE, atol=0.05)


def test_outputs_that_are_no_numbers_leave_the_link_as_it_is() -> None:
    x = draw(600, 6, seed=43)
    y = (x @ WEIGHT_OF_NOISE.mT).index_fill(0, torch.tensor([1]), math.nan)  # of the held-back samples
    link = one_by_one(WEIGHT_OF_NOISE)
    codes = link.codes.clone()
    assert math.isnan(fit_last_link(link, *with_instrument(x, y, x)))
    assert torch.equal(link.codes, codes)
