"""Chains of links compute what the layer with the rebuilt weight computes, wherever they stand."""

from __future__ import annotations

import copy
import functools
import json
import math
from typing import Any

import pytest
import torch
from helpers import draw_double as draw
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver

from qaf_core.errors import ModelError
from qaf_core.factorization.factors import Factors, exact_factors
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of
from qaf_core.network.modules.build import build_chain
from qaf_core.network.modules.operation import LINEAR, Operation, convolution
from qaf_core.network.modules.quantized import (
    ActivationQuantizer,
    BatchNorm,
    FactorizedLayer,
    Layer,
    Link,
    swap_layer,
)

OUTPUTS, INPUTS, RANK, RANKS = 6, 5, 4, (3, 2)
SCALE_KINDS = ("one", "columns", "outer")


def scales_of(shape: tuple[int, ...], kind: str, seed: int, *, rows: bool) -> Tensor:
    """Positive scales: one, one per column, or (on the output side) rows times columns."""
    tail = (1,) * (len(shape) - 2)
    row = draw(shape[0], 1, *tail, seed=seed).abs() + 0.1
    column = draw(1, shape[1], *tail, seed=seed + 1).abs() + 0.1
    if kind == "one":
        return row[:1, :1].clone()
    return row * column if kind == "outer" and rows else column


def factors_of(
    structure: str, weight_shape: tuple[int, ...], kind: str = "columns", bits: int = 4
) -> Factors:
    rows, columns, positions = weight_shape[0], weight_shape[1], math.prod(weight_shape[2:])
    shapes: dict[str, list[tuple[int, ...]]] = {
        "cp": [(rows, RANK), (columns, RANK), (positions, RANK)],
        "svd": [(rows, RANK), (columns * positions, RANK)],
        "spatial": [(rows * weight_shape[-1], RANK), (columns * positions // weight_shape[-1], RANK)],
        "tucker2": [(rows, RANKS[0]), (*RANKS, positions), (columns, RANKS[1])],
        "dense": [(rows, columns * positions)],
    }
    generator = torch.Generator().manual_seed(7)
    codes = tuple(
        torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8) for shape in shapes[structure]
    )
    scales = tuple(
        scales_of(tuple(code.shape), kind, seed, rows=seed == 0 or (structure == "tucker2" and seed == 1))
        for seed, code in enumerate(codes)
    )
    if structure == "dense":
        scales = (draw(rows, 1).abs() + 0.1,)
    return Factors(
        structure=structure,
        weight_shape=tuple(weight_shape),
        codes=codes,
        scales=scales,
        bits=(bits,) * len(codes),
    )


def random_layer(weight_shape: tuple[int, ...], *operations: Operation, bias: bool = True) -> Layer:
    """A layer with a random weight, its shape given by rows."""
    first = operations[0]
    weight = first.as_stored(draw(*weight_shape, seed=11))
    return Layer(weight, draw(weight_shape[0], seed=12) if bias else None, operations)


def assert_same_function(layer: Layer, factors: Factors, values: Tensor) -> None:
    """The chain computes, at each of the layer's places, what the layer does with the rebuilt weight."""
    chain, exact = build_chain(layer, factors).double(), copy.deepcopy(layer).double()
    with torch.no_grad():
        exact.weight.copy_(layer.operation.as_stored(factors.reconstruct().double()))
        for site in range(len(layer.operations)):
            assert_close(chain(values, site), exact(values, site))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of double precision."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max())


@functools.cache
def captured_convolution(geometry: str) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution, and the captured network that holds nothing else."""
    torch.manual_seed(0)
    layer = nn.Conv2d(INPUTS, OUTPUTS, **json.loads(geometry)).double()
    return layer, capture(nn.Sequential(layer), (INPUTS, 11, 12))


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 4, "padding": (1, 2)},
    {"kernel_size": (1, 7), "padding": (0, 3)},
    {"kernel_size": (7, 1), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (2, 1)},
    {"kernel_size": 5, "padding": 4, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "replicate", "stride": 2},
    {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "circular"},
    {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
    {"kernel_size": 1, "padding": 1},
]


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "spatial", "dense"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_keeps_its_geometry(structure: str, geometry: dict[str, Any]) -> None:
    layer, captured = captured_convolution(json.dumps(geometry))
    factors = factors_of(structure, layer.weight.shape)
    network, exact = copy.deepcopy(captured), copy.deepcopy(layer)
    swap_layer(network, "0", build_chain(layer_of(network, "0"), factors).double())
    values = draw(2, INPUTS, 11, 12, seed=5)
    with torch.no_grad():
        exact.weight.copy_(factors.reconstruct())
        assert_close(network(values), exact(values))


# Operation and shape of the weight by rows, and of one input.
OPERATIONS: list[tuple[Operation, tuple[int, ...], tuple[int, ...]]] = [
    (convolution(1, stride=2, padding=3, dilation=2), (OUTPUTS, INPUTS, 5), (INPUTS, 17)),
    (convolution(1), (OUTPUTS, INPUTS, 1), (INPUTS, 9)),
    (convolution(3, padding=(1, 0, 2)), (OUTPUTS, INPUTS, 3, 1, 2), (INPUTS, 4, 5, 6)),
    (convolution(1, stride=3, transposed=True), (OUTPUTS, INPUTS, 4), (INPUTS, 7)),
    (
        convolution(2, stride=2, padding=1, output_padding=1, transposed=True),
        (OUTPUTS, INPUTS, 3, 3),
        (INPUTS, 5, 6),
    ),
    (convolution(2, dilation=(1, 2), transposed=True), (OUTPUTS, INPUTS, 2, 3), (INPUTS, 5, 6)),
    (convolution(3, stride=2, transposed=True), (OUTPUTS, INPUTS, 2, 2, 2), (INPUTS, 3, 3, 3)),
]


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "dense"])
@pytest.mark.parametrize(("operation", "weight", "one"), OPERATIONS, ids=str)
def test_convolutions_of_every_kind_keep_theirs_too(
    structure: str, operation: Operation, weight: tuple[int, ...], one: tuple[int, ...]
) -> None:
    layer = random_layer(weight, operation)
    assert layer.rows.shape == weight
    assert_same_function(layer, factors_of(structure, weight), draw(2, *one, seed=5))


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "spatial", "dense"])
def test_a_weight_used_with_two_geometries_is_one_chain(structure: str) -> None:
    operations = [convolution(2, padding=1), convolution(2, padding=2, dilation=2, stride=2)]
    layer = random_layer((OUTPUTS, INPUTS, 3, 3), *operations)
    values = draw(2, INPUTS, 9, 9)
    assert layer(values).shape != layer(values, 1).shape
    assert_same_function(layer, factors_of(structure, (OUTPUTS, INPUTS, 3, 3)), values)


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd"])
@pytest.mark.parametrize("kind", SCALE_KINDS)
def test_scales_of_every_shape_find_their_link(structure: str, kind: str) -> None:
    shape = (OUTPUTS, INPUTS, 3, 3)
    layer = random_layer(shape, convolution(2, stride=2))
    assert_same_function(layer, factors_of(structure, shape, kind), draw(2, INPUTS, 9, 9))


@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2}, {"padding": 2}, {"stride": (1, 3), "bias": False}], ids=str
)
@pytest.mark.parametrize("structure", ["svd", "dense"])
def test_a_1x1_convolution_in_two_factors(structure: str, geometry: dict[str, Any]) -> None:
    shape, bias = (OUTPUTS, INPUTS, 1, 1), geometry.get("bias", True)
    operation = convolution(2, **{key: value for key, value in geometry.items() if key != "bias"})
    layer = random_layer(shape, operation, bias=bias)
    assert_same_function(layer, factors_of(structure, shape), draw(2, INPUTS, 8, 9))


@pytest.mark.parametrize("shape", [(7, INPUTS), (2, 7, INPUTS), (INPUTS,)])
@pytest.mark.parametrize("structure", ["svd", "dense"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", SCALE_KINDS)
def test_linear_layers_with_any_number_of_positions(
    structure: str, shape: tuple[int, ...], bias: bool, kind: str
) -> None:
    layer = random_layer((OUTPUTS, INPUTS), LINEAR, bias=bias)
    assert_same_function(layer, factors_of(structure, (OUTPUTS, INPUTS), kind), draw(*shape))


@pytest.mark.parametrize(("groups", "channels"), [(2, 4), (6, 6)])
@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions_are_rounded_as_they_are(groups: int, channels: int, transposed: bool) -> None:
    shape = (6, channels // groups, 3, 3)
    layer = random_layer(shape, convolution(2, padding=1, groups=groups, transposed=transposed))
    assert layer.rows.shape == shape
    assert_same_function(layer, factors_of("dense", shape), draw(2, channels, 8, 8))


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_convolutions_are_not_factorized(transposed: bool) -> None:
    layer = random_layer((6, 2, 3, 3), convolution(2, groups=2, transposed=transposed))
    with pytest.raises(ModelError, match="grouped convolution.*groups=2"):
        build_chain(layer, factors_of("cp", (6, 2, 3, 3)))


def test_floating_point_factors_run_too() -> None:
    layer = random_layer((OUTPUTS, INPUTS, 3, 3), convolution(2))
    factors = factors_of("cp", (OUTPUTS, INPUTS, 3, 3), bits=32)
    floats = tuple(codes + draw(*codes.shape) for codes in factors.codes)
    unrounded = Factors(
        structure="cp",
        weight_shape=factors.weight_shape,
        codes=floats,
        scales=factors.scales,
        bits=factors.bits,
    )
    assert_same_function(layer, unrounded, draw(2, INPUTS, 8, 8))


@pytest.mark.parametrize("structure", ["cp", "svd", "tucker2", "dense"])
def test_every_link_is_a_plain_per_channel_integer_layer(structure: str) -> None:
    layer = random_layer((OUTPUTS, INPUTS, 3, 3), convolution(2))
    chain = build_chain(layer, factors_of(structure, (OUTPUTS, INPUTS, 3, 3), "outer"))
    for link in chain.chain:
        assert link.operation.kind == "conv2d"
        assert link.codes.dtype == torch.int8
        assert link.scales.shape == (len(link.codes), 1, 1, 1)
        assert float(link.scales.min()) > 0
    assert [link.bias is not None for link in chain.chain] == [False] * (len(chain.chain) - 1) + [True]
    assert chain.last is chain.chain[-1]
    assert chain.structure == structure


@pytest.mark.parametrize("structure", ["cp", "svd", "tucker2", "dense"])
def test_a_chain_shares_no_memory_with_its_factors_or_the_layer(structure: str) -> None:
    layer = random_layer((OUTPUTS, INPUTS, 3, 3), convolution(2))
    factors = factors_of(structure, (OUTPUTS, INPUTS, 3, 3), "one")
    before, bias = factors.reconstruct(), layer.bias.detach().clone() if layer.bias is not None else None
    chain = build_chain(layer, factors)
    for link in chain.chain:
        link.codes.add_(1)
        link.scales.mul_(3)
    assert chain.last.bias is not None
    chain.last.bias.add_(1)
    assert torch.equal(factors.reconstruct(), before)
    assert torch.equal(layer.bias, bias)  # type: ignore[arg-type]


def test_a_chain_holds_no_trainable_weight() -> None:
    chain = build_chain(random_layer((OUTPUTS, INPUTS), LINEAR), factors_of("svd", (OUTPUTS, INPUTS)))
    assert not any(parameter.requires_grad for parameter in chain.parameters())


# Activations


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_ranges_and_rounding_agree_with_torch(first: float, second: float) -> None:
    low, high = sorted((first, second))
    observer = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
    observer(torch.tensor([low, high]))
    scale, zero_point = observer.calculate_qparams()
    quantizer = ActivationQuantizer()
    quantizer.set_range(low, high)
    if high - low > 1e-3:
        assert float(quantizer.scale) == pytest.approx(float(scale), rel=1e-5)
        assert abs(int(quantizer.zero_point) - int(zero_point)) <= 1
    values = torch.linspace(2 * low - high, 2 * high - low, 301)
    expected = torch.fake_quantize_per_tensor_affine(values, quantizer.scale, quantizer.zero_point, 0, 255)
    assert torch.equal(quantizer(values), expected)


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_values_within_the_range_move_by_at_most_half_a_step(first: float, second: float) -> None:
    low, high = min(first, second, 0.0), max(first, second, 0.0)
    quantizer = ActivationQuantizer()
    quantizer.set_range(low, high)
    values = torch.linspace(low, high, 100)
    step = float(quantizer.scale)
    rounded = quantizer(values)
    # Half a step for rounding, half for the zero point, which must be a whole number too.
    assert float((rounded - values).abs().max()) <= 1.01 * step
    assert float(quantizer(torch.zeros(1))) == 0.0
    assert len(rounded.unique()) <= 256
    assert torch.equal(quantizer(rounded), rounded)


def test_a_quantizer_without_a_range_does_nothing() -> None:
    values = draw(4, 3)
    assert ActivationQuantizer()(values) is values


def test_a_constant_activation_is_taken() -> None:
    quantizer = ActivationQuantizer()
    quantizer.set_range(0.0, 0.0)
    assert torch.equal(quantizer(torch.zeros(3)), torch.zeros(3))
    quantizer.set_range(5.0, 5.0)
    torch.testing.assert_close(quantizer(torch.full((2,), 5.0)), torch.full((2,), 5.0))


def plain_chain() -> FactorizedLayer:
    """Integers as weights, inputs as they are."""
    shape = (OUTPUTS, INPUTS, 3, 3)
    return build_chain(random_layer(shape, convolution(2, padding=1)), factors_of("cp", shape)).float()


def quantized_chain() -> FactorizedLayer:
    """The same with quantized inputs."""
    chain = plain_chain()
    for reach, link in enumerate(chain.chain, start=1):
        link.input_quantizer.set_range(-reach, reach)
    return chain


def test_each_link_quantizes_its_own_input() -> None:
    chain, values = quantized_chain(), draw(2, INPUTS, 6, 6).float()
    expected = values
    for link in chain.chain:
        quantizer = link.input_quantizer
        rounded = torch.fake_quantize_per_tensor_affine(
            expected, quantizer.scale, quantizer.zero_point, 0, 255
        )
        expected = link.apply_weight(rounded, link.bias)
    assert torch.equal(chain(values), expected)
    assert not torch.equal(chain(values), plain_chain()(values))


def test_copies_stay_quantized_and_apart() -> None:
    chain, values = quantized_chain(), draw(2, INPUTS, 6, 6).float()
    before = chain(values)
    twin = copy.deepcopy(chain)
    assert torch.equal(twin(values), before)
    twin.chain[0].input_quantizer.set_range(-0.01, 0.01)
    assert not torch.equal(twin(values), before)
    assert torch.equal(chain(values), before)


def test_a_state_dict_carries_the_quantizers() -> None:
    chain, values = quantized_chain(), draw(2, INPUTS, 6, 6).float()
    fresh = plain_chain()
    assert not torch.equal(fresh(values), chain(values))
    fresh.load_state_dict(chain.state_dict())
    assert torch.equal(fresh(values), chain(values))
    unquantized = plain_chain()
    fresh.load_state_dict(unquantized.state_dict())
    assert torch.equal(fresh(values), unquantized(values))


def in_whole_numbers(
    chain: FactorizedLayer, values: Tensor, output_qparams: tuple[float, int] | None
) -> Tensor:
    """What a chain on codes must put out: sums in float64, each step as an integer runtime rounds it."""
    grids = [link.input_quantizer.qparams for link in chain.chain] + [output_qparams]
    step, zero = grids[0] or (1.0, 0)
    codes = (values / step).round().clamp(-zero, 255 - zero)
    for link, grid in zip(chain.chain, grids[1:], strict=True):
        steps = (link.scales.reshape(-1) * step).reshape(-1, 1, 1)
        sums = link.map_linearly(codes.double(), link.codes.double(), None)
        if grid is None:
            bias = 0.0 if link.bias is None else link.bias.reshape(-1, 1, 1)
            return sums.float() * steps + bias
        if link.bias is not None:
            sums += (link.bias.double().reshape(-1, 1, 1) / steps.double()).round()
        step, zero = grid
        codes = (sums.float() * (steps / step)).round().clamp(-zero, 255 - zero)
    return codes * step


@pytest.mark.parametrize("output_qparams", [None, (0.05, 37)])
@pytest.mark.parametrize("seed", range(4))
def test_a_chain_on_codes_computes_with_whole_numbers(
    seed: int, output_qparams: tuple[float, int] | None
) -> None:
    chain, values = quantized_chain(), draw(2, INPUTS, 6, 6, seed=seed).float()
    floating = chain(values)
    assert not chain.runs_on_codes
    assert chain.use_codes(output_qparams)
    assert chain.runs_on_codes
    with torch.no_grad():
        found = chain(values)
        assert torch.equal(found, in_whole_numbers(chain, values, output_qparams))
    if output_qparams is None:
        assert float((found - floating).abs().max()) < 0.05 * float(floating.abs().max())
    else:
        assert torch.equal(found, (found / 0.05).round() * 0.05)
        assert chain.output_qparams == output_qparams


def test_only_integer_chains_compute_on_codes() -> None:
    plain = plain_chain()
    assert not plain.use_codes((0.1, 3))
    assert plain.output_qparams is None
    floating = quantized_chain()
    floating.chain[1].bits = 32
    assert not floating.use_codes()


def test_a_bias_beyond_32_bits_keeps_the_output_off_the_grid() -> None:
    chain = quantized_chain()
    chain.last.bias = nn.Parameter(torch.full((OUTPUTS,), 1e12), requires_grad=False)
    assert chain.use_codes((0.1, 3))
    assert chain.output_qparams is None


# Exchange by name


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU())
    )


def test_a_layer_is_exchanged_by_name_and_back() -> None:
    model, replacement = network(), nn.Identity()
    old = swap_layer(model, "2.0", replacement)
    assert isinstance(old, nn.Conv2d)
    assert model.get_submodule("2.0") is replacement
    assert swap_layer(model, "2.0", old) is replacement
    assert model.get_submodule("2.0") is old


def test_attributes_are_exchanged_like_items() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, values: Tensor) -> Tensor:
            result: Tensor = self.conv(values)
            return result

    model = nn.Sequential(Block())
    swap_layer(model, "0.conv", nn.Identity())
    values = draw(1, 3, 2, 2)
    assert torch.equal(model(values), values)


def test_a_layer_that_stands_in_two_places_is_exchanged_in_both() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    swap_layer(model, "0", nn.Identity())
    assert not any(module is shared for module in model.modules())


@pytest.mark.parametrize("name", ["5", "2.7", "conv", "2.0.weight", ""])
def test_names_that_do_not_exist_are_told(name: str) -> None:
    with pytest.raises(ModelError):
        swap_layer(network(), name, nn.Identity())


def test_a_linear_link_is_a_linear_layer() -> None:
    codes, scales = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), torch.tensor([[0.5], [2.0]])
    link = Link(codes, scales, 4, torch.tensor([1.0, 0.0]))
    assert torch.equal(link(torch.tensor([[1.0, 1.0]])), torch.tensor([[0.5, 14.0]]))
    assert torch.equal(link.weight, torch.tensor([[0.5, -1.0], [6.0, 8.0]]))


def test_pytorchs_transformer_goes_on_with_a_chain_inside() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    tokens = draw(2, 5, 8).float()
    with torch.inference_mode():  # where PyTorch takes its fused path, with the weights as arguments
        expected, network = encoder(tokens), capture(encoder, (5, 8))
        layer = layer_of(network, "layers.0.linear1")
        chain = build_chain(layer, exact_factors(layer.rows.detach(), "svd"))
        swap_layer(network, "layers.0.linear1", chain)
        torch.testing.assert_close(network(tokens), expected, rtol=1e-4, atol=1e-5)


# BatchNorm


def test_a_batchnorm_is_a_factor_and_a_shift() -> None:
    weight, bias, mean = (draw(4, seed=seed) for seed in range(3))
    norm = BatchNorm(weight, bias, mean, draw(4, seed=3).abs() + 0.1, 1e-3).eval()
    values = draw(2, 4, 3, 3, seed=4)
    factor, shift = (numbers.reshape(-1, 1, 1) for numbers in norm.factor_and_shift())
    assert_close(norm(values), values * factor + shift)


@pytest.mark.parametrize("affine", [False, True])
def test_statistics_estimated_anew_are_the_mean_over_the_batches(affine: bool) -> None:
    given = [torch.rand(4) + 0.5, torch.rand(4)] if affine else [None, None]
    norm = BatchNorm(*given, torch.full((4,), 9.0), torch.full((4,), 9.0), 1e-5)
    batches = [draw(8, 4, 5, 5, seed=seed).float() * (seed + 1) + seed for seed in range(3)]
    norm.estimate_anew()
    for batch in batches:
        norm(batch)
    norm.eval()
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert torch.equal(norm(batches[0][:1]), norm(batches[0])[:1])
