"""One weight in, integer factors out: planted solutions, odd tensors and bad input."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers import draw
from torch import Tensor

from qaf_core import QuantSpec, SolveResult, SolverOptions, solve_layer
from qaf_core.errors import RunCancelled, SolverError
from qaf_core.factorization.options import SolveEvent, Status
from qaf_core.factorization.solve import relative_error, with_factors
from qaf_core.quantization.grid import Grid
from qaf_core.quantization.spec import GRANULARITIES

QUICK = SolverOptions(starts=1, start_iterations=12, iterations=2, rounding_rounds=2)
# The published method may turn in circles for a thousand iterations.
LIMITED = SolverOptions(inner_iterations=5, time_limit_seconds=0.05)
STRUCTURES: dict[str, tuple[tuple[int, ...], Any]] = {
    "cp": ((10, 8, 3, 3), 6),
    "tucker2": ((10, 8, 3, 3), (5, 4)),
    "svd": ((10, 8), 4),
    "spatial": ((10, 8, 3, 3), 5),
    "dense": ((10, 8, 3, 3), None),
}
every_structure = pytest.mark.parametrize("structure", STRUCTURES)
METHODS = ("joint", "paper", "sequential")
UNPUBLISHED = (("tucker2", "paper"), ("spatial", "paper"))


def solve(weight: Tensor, structure: str, rank: Any = None, bits: Any = 4, **options: Any) -> SolveResult:
    options.setdefault("options", LIMITED if options.get("method") == "paper" else QUICK)
    spec = QuantSpec(bits=bits, granularity=options.pop("granularity", "rank"))
    return solve_layer(weight, structure=structure, rank=rank, spec=spec, **options)


@cache
def usual(structure: str, dtype: torch.dtype = torch.float32) -> SolveResult:
    """The result for the structure's usual weight, rank and width, with which others are compared."""
    shape, rank = STRUCTURES[structure]
    return solve(draw(*shape, dtype=dtype), structure, rank)


def planted(shape: tuple[int, ...], rank: int, bits: int, seed: int, *, whole_grid: bool = False) -> Tensor:
    """A weight that integer factors of this width meet exactly, each column with a scale of its own.

    With ``whole_grid`` the lowest code occurs too: no column may then turn its sign.
    """
    generator, (low, high) = torch.Generator().manual_seed(seed), (Grid.of(bits).low, Grid.of(bits).high)
    low, peak = (low, low) if whole_grid else (-high, high)
    sizes = (shape[0], shape[1], math.prod(shape[2:])) if len(shape) == 4 else shape
    factors = []
    for size in sizes:
        codes = torch.randint(low, high + 1, (size, rank), generator=generator).double()
        codes[torch.randint(0, size, (rank,), generator=generator), torch.arange(rank)] = peak
        factors.append(codes * (0.5 + torch.rand(1, rank, generator=generator)))
    letters = "ir,jr,kr->ijk" if len(sizes) == 3 else "ir,jr->ij"
    return torch.einsum(letters, *factors).reshape(shape)


def assert_sound(result: SolveResult, weight: Tensor) -> None:
    """Codes on their grids, scales positive, everything finite, the error as rebuilt."""
    factors = result.factors
    for codes, scales, bits in zip(factors.codes, factors.scales, factors.bits, strict=True):
        assert bool(torch.isfinite(scales).all())
        assert float(scales.min()) > 0
        assert torch.broadcast_shapes(codes.shape, scales.shape) == codes.shape
        if bits != 32:
            low, high = Grid.of(bits).low, Grid.of(bits).high
            assert codes.dtype == torch.int8
            assert low <= int(codes.min())
            assert int(codes.max()) <= high
    rebuilt = factors.reconstruct()
    assert rebuilt.shape == weight.shape
    assert bool(torch.isfinite(rebuilt).all())
    exact = weight.double()
    error = float((rebuilt.double() - exact).norm() / exact.norm().clamp_min(1e-300))
    assert result.relative_error == pytest.approx(error, rel=1e-6, abs=1e-12)
    assert math.isfinite(result.float_relative_error)
    assert result.seconds >= 0


# Right answers


@pytest.mark.parametrize(
    ("seed", "dtype", "whole_grid"), [(0, torch.float32, False), (1, torch.float64, True)]
)
def test_planted_factors_are_recovered_at_eight_bits(seed: int, dtype: torch.dtype, whole_grid: bool) -> None:
    weight = planted((12, 10, 3, 3), 4, 8, seed, whole_grid=whole_grid).to(dtype)
    result = solve_layer(weight, "cp", 4, QuantSpec(bits=8))
    assert result.relative_error < 1e-3
    assert_sound(result, weight)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("seed", "whole_grid"), [(0, False), (1, True)])
def test_planted_factors_are_recovered_at_few_bits(seed: int, bits: int, whole_grid: bool) -> None:
    weight = planted((12, 10, 3, 3), 2, bits, seed, whole_grid=whole_grid).float()
    assert solve_layer(weight, "cp", 2, QuantSpec(bits=bits)).relative_error < 1e-2


@pytest.mark.parametrize("bits", [4, 8])
def test_a_planted_component_is_recovered_in_two_factors(bits: int) -> None:
    weight = planted((16, 12), 1, bits, 0).float()
    assert solve(weight, "svd", 1, bits).relative_error < 1e-3


@pytest.mark.parametrize("rank", [1, 4, 9])
@pytest.mark.parametrize("shape", [(14, 11), (14, 3, 3, 5)])
def test_two_floating_point_factors_are_the_best_of_their_rank(shape: tuple[int, ...], rank: int) -> None:
    weight = draw(*shape)
    values = torch.linalg.svdvals(weight.flatten(1).double())
    best = float((values[rank:].square().sum() / values.square().sum()).sqrt())
    result = solve_layer(weight, "svd", rank, QuantSpec(bits=32))
    assert result.relative_error == pytest.approx(best, rel=0.01)
    assert result.float_relative_error == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("method", ["joint", "sequential"])
def test_full_tucker_ranks_lose_nothing_in_floating_point(method: str) -> None:
    assert solve(draw(8, 6, 3, 3), "tucker2", (8, 6), bits=32, method=method).relative_error < 1e-3


def test_dense_meets_weights_that_lie_on_a_grid() -> None:
    codes = torch.randint(-8, 8, (6, 5, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    codes[:, 0, 0, 0] = -8.0
    weight = codes * torch.logspace(-2, 2, 6).reshape(-1, 1, 1, 1)
    result = solve(weight, "dense")
    assert result.relative_error < 1e-6
    assert torch.equal(result.factors.codes[0].reshape(weight.shape).float(), codes)


# Properties


@every_structure
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 4, 8, 32])
def test_every_structure_grid_and_width_gives_sound_factors(
    structure: str, granularity: str, bits: int
) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    result = solve(weight, structure, rank, bits, granularity=granularity)
    assert_sound(result, weight)
    assert result.factors.rank == rank
    assert result.status in (Status.CONVERGED, Status.STAGNATED, Status.MAX_ITERATIONS)
    assert result.relative_error < 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("structure", ["cp", "svd"])
def test_every_method_gives_sound_factors(method: str, structure: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    assert_sound(solve(weight, structure, rank, method=method), weight)


@pytest.mark.parametrize(("structure", "bits"), [("cp", (8, 2, 32)), ("tucker2", (4, 8, 3)), ("svd", (3, 8))])
def test_each_factor_may_have_its_own_width(structure: str, bits: tuple[int, ...]) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    result = solve(weight, structure, rank, bits)
    assert result.factors.bits == bits
    assert_sound(result, weight)


@every_structure
def test_the_same_seed_gives_the_same_codes(structure: str) -> None:
    shape, rank = STRUCTURES[structure]
    first, again = usual(structure), solve(draw(*shape), structure, rank)
    for a, b in zip(first.factors.codes, again.factors.codes, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.factors.scales, again.factors.scales, strict=True):
        assert torch.equal(a, b)
    assert first.relative_error == again.relative_error


@every_structure
@pytest.mark.parametrize("exponent", [-80, 3, 80])
def test_codes_do_not_depend_on_the_size_of_the_weight(structure: str, exponent: int) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    plain, scaled = usual(structure), solve(2.0**exponent * weight, structure, rank)
    for a, b in zip(plain.factors.codes, scaled.factors.codes, strict=True):
        assert torch.equal(a, b)
    assert scaled.relative_error == pytest.approx(plain.relative_error, rel=1e-6)


def test_more_bits_and_more_rank_lose_less() -> None:
    weight = draw(12, 10, 3, 3)
    by_bits = [solve(weight, "cp", 24, bits).relative_error for bits in (2, 3, 4, 6, 8)]
    by_rank = [solve(weight, "cp", rank, 6).relative_error for rank in (4, 12, 30, 60)]
    for errors in (by_bits, by_rank):  # but for the luck of the start
        assert all(better < 1.03 * worse for worse, better in itertools.pairwise(errors))
        assert errors[-1] < 0.7 * errors[0]


def test_the_weight_is_not_changed_and_may_want_gradients() -> None:
    weight = draw(8, 6, 3, 3).requires_grad_()
    before = weight.detach().clone()
    result = solve(weight, "cp", 5)
    assert torch.equal(weight.detach(), before)
    assert not result.factors.scales[0].requires_grad


@pytest.mark.parametrize("method", ["joint", "paper"])
def test_a_solve_can_be_cancelled_from_its_events(method: str) -> None:
    events: list[SolveEvent] = []

    def stop_at_third(event: SolveEvent) -> None:
        events.append(event)
        if len(events) == 3:
            raise RunCancelled

    weight = draw(12, 10, 3, 3)
    result = solve(
        weight, "cp", 8, bits=3, method=method, options=QUICK, on_event=stop_at_third, layer="conv7"
    )
    assert result.status is Status.CANCELLED
    assert len(events) == 3
    assert {event.layer for event in events} == {"conv7"}
    assert_sound(result, weight)
    assert result.relative_error <= min(event.quantized_error for event in events) * (1 + 1e-3)


@pytest.mark.parametrize("method", [*METHODS, "dense"])
def test_a_time_limit_gives_a_sound_result(method: str) -> None:
    weight = draw(12, 10, 3, 3)
    result = solve(weight, "cp", 8, options=SolverOptions(time_limit_seconds=1e-9), method=method)
    assert result.status is Status.TIME_LIMIT
    assert_sound(result, weight)


def test_a_start_cut_short_is_rounded_whether_anyone_listens_or_not() -> None:
    weight, options = draw(12, 10, 3, 3), SolverOptions(time_limit_seconds=1e-9, starts=1)
    alone = solve(weight, "cp", 40, options=options)
    watched = solve(weight, "cp", 40, options=options, on_event=lambda _event: None)
    assert alone.relative_error == watched.relative_error < 1.0


def test_other_factors_come_with_their_own_error() -> None:
    weight = draw(8, 6)
    rough, fine = solve(weight, "svd", 3, 2), solve(weight, "svd", 5, 8)
    changed = with_factors(rough, fine.factors, weight)
    assert changed.relative_error == pytest.approx(relative_error(weight, fine.factors))
    assert changed.status is rough.status


# Odd tensors


@every_structure
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_are_a_status(structure: str, value: float, method: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    weight.view(-1)[7] = value
    result = solve(weight, structure, rank, method=method)
    assert result.status is Status.NONFINITE
    assert math.isnan(result.relative_error)
    assert not bool(result.factors.reconstruct().any())


@every_structure
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [2, 8, 32])
def test_zero_weights_stay_zero(structure: str, method: str, bits: int) -> None:
    shape, rank = STRUCTURES[structure]
    result = solve(torch.zeros(shape), structure, rank, bits, method=method)
    assert (result.status, result.relative_error) == (Status.CONVERGED, 0.0)
    assert_sound(result, torch.zeros(shape))


@pytest.mark.parametrize(
    ("structure", "method"),
    [pair for pair in itertools.product(STRUCTURES, METHODS) if pair not in UNPUBLISHED],
)
@pytest.mark.parametrize("case", ["constant", "one element", "one row", "one column", "outlier"])
def test_degenerate_weights_are_met(structure: str, method: str, case: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    if case == "constant":
        weight = torch.full(shape, -0.3)
    elif case == "one element":
        weight = torch.zeros(shape)
        weight[3, 2] = 2.0
        weight.view(-1)[1] = 0.0
    elif case == "one row":
        weight[1:] = 0.0
    elif case == "one column":
        weight[:, 1:] = 0.0
    else:
        weight.view(-1)[5] = 1e6
    result = solve(weight, structure, rank, method=method)
    assert_sound(result, weight)
    if method != "sequential":  # rounding what it found is all it can do
        assert result.relative_error < (0.01 if case in ("constant", "one element", "outlier") else 0.8)


ODD_SHAPES: list[tuple[tuple[int, ...], str, Any]] = [
    ((12, 10, 1, 1), "cp", 3),
    ((12, 10, 1, 7), "cp", 5),
    ((12, 10, 5, 5), "tucker2", (3, 3)),
    ((1, 10, 3, 3), "cp", 2),
    ((12, 1, 3, 3), "cp", 2),
    ((12, 1, 3, 3), "tucker2", (2, 1)),
    ((1, 1, 3, 3), "cp", 1),
    ((1, 1, 1, 1), "cp", 1),
    ((1, 1, 1, 1), "tucker2", (1, 1)),
    ((1, 1, 1, 1), "svd", 1),
    ((1, 10), "svd", 1),
    ((12, 1), "svd", 1),
    ((1, 5), "dense", None),
    ((12, 1, 1, 7), "dense", None),
    *[
        (shape, structure, rank)
        for shape in [(8, 6, 3), (8, 6, 1), (8, 6, 2, 3, 2)]
        for structure, rank in [("cp", 3), ("tucker2", (3, 3)), ("dense", None)]
    ],
]


@pytest.mark.parametrize(("shape", "structure", "rank"), ODD_SHAPES, ids=str)
@pytest.mark.parametrize("bits", [2, 32])
def test_odd_shapes(shape: tuple[int, ...], structure: str, rank: Any, bits: int) -> None:
    weight = draw(*shape)
    for method in METHODS:
        if (structure, method) not in UNPUBLISHED:
            result = solve(weight, structure, rank, bits, method=method)
            assert_sound(result, weight)
            # Rounding afterwards may be worse than nothing at 2 bits; the floating-point factors never are.
            told = result.float_relative_error if method == "sequential" else result.relative_error
            assert told < 1


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "dense"])  # spatial takes flat kernels alone
@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6, 2, 3, 2)], ids=["one", "three"])
@pytest.mark.parametrize("moment", [None, "channels", "positions"])
def test_kernels_of_other_dimensions_are_solved_like_flat_ones(
    structure: str, shape: tuple[int, ...], moment: str | None
) -> None:
    """Where a kernel's positions lie does not matter: the codes are those of the kernel in one row."""
    rank = {"cp": 3, "tucker2": (3, 3), "svd": 3, "dense": None}[structure]
    weight = draw(*shape)
    inputs = draw(200, weight[0].numel() if moment == "positions" else shape[1], seed=1)
    covariance = None if moment is None else inputs.mT @ inputs / 200
    first = solve(weight, structure, rank, input_covariance=covariance)
    flat = solve(weight.reshape(*shape[:2], 1, -1), structure, rank, input_covariance=covariance)
    assert_sound(first, weight)
    assert torch.equal(first.factors.reconstruct().flatten(), flat.factors.reconstruct().flatten())
    for a, b in zip(first.factors.codes, flat.factors.codes, strict=True):
        assert torch.equal(a, b)


@every_structure
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(structure: str, dtype: torch.dtype) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape).to(dtype)
    result = solve(weight, structure, rank)
    assert_sound(result, weight)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert result.factors.scales[0].dtype == expected
    plain = usual(structure).relative_error
    assert result.relative_error == pytest.approx(plain, rel=0.05)


# Whatever kind of number or tensor it is


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    plain = solve(draw(10, 8, 3, 3), "cp", 6, seed=3)
    spec = QuantSpec(bits=np.int64(4))  # type: ignore[arg-type]
    options = replace(QUICK, iterations=np.int32(QUICK.iterations), tolerance=np.float32(QUICK.tolerance))
    same = solve_layer(draw(10, 8, 3, 3), "cp", np.int64(6), spec, options, seed=np.int64(3))  # type: ignore[arg-type]
    assert all(map(torch.equal, plain.factors.codes, same.factors.codes))
    assert all(type(bits) is int for bits in same.factors.bits)
    assert all(type(getattr(options, name)) in (int, float) for name in ("iterations", "tolerance"))
    pair = (np.int64(5), np.int32(4))
    assert solve(draw(10, 8, 3, 3), "tucker2", pair, np.int64(4)).factors.rank == (5, 4)
    assert QuantSpec(bits=(np.int64(4), 8)).bits == (4, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [None, 0.5, True, 2**63, "7"])
def test_seeds_that_are_no_whole_numbers_are_refused(seed: Any) -> None:
    with pytest.raises(SolverError, match="seed out of range"):
        solve(draw(6, 4), "svd", 2, seed=seed)


@every_structure
@pytest.mark.parametrize("size", [1e-300, 1e-60, 1e300])
def test_double_precision_beyond_single_precision(structure: str, size: float) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape, dtype=torch.float64)
    plain, scaled = usual(structure, torch.float64), solve(weight * size, structure, rank)
    assert scaled.relative_error == pytest.approx(plain.relative_error, rel=0.05)
    rebuilt = scaled.factors.reconstruct()
    assert bool(rebuilt.isfinite().all())
    assert bool(rebuilt.any())


def test_weights_whose_scales_no_number_holds_are_refused() -> None:
    with pytest.raises(SolverError, match="beyond float32.*divide the weight"):
        solve(torch.full((1, 64, 3, 3), 3e38), "cp", 1, bits=2)


def strided(shape: tuple[int, ...]) -> list[Tensor]:
    """One weight as tensors that lie differently in memory, or want gradients."""
    weight = draw(*shape)
    wide = torch.zeros(*shape[:-1], 2 * shape[-1])
    wide[..., ::2] = weight
    turned = weight.transpose(0, 1).contiguous().transpose(0, 1)
    return [weight, wide[..., ::2], turned, torch.nn.Parameter(weight), (weight * 1).requires_grad_() * 1.0]


@every_structure
def test_where_a_weight_lies_in_memory_is_no_matter(structure: str) -> None:
    shape, rank = STRUCTURES[structure]
    first, others = usual(structure), [solve(weight, structure, rank) for weight in strided(shape)[1:]]
    for other in others:
        assert all(map(torch.equal, first.factors.codes, other.factors.codes))
        assert not any(scales.requires_grad for scales in other.factors.scales)


def test_a_covariance_may_want_gradients() -> None:
    inputs = draw(50, 8, seed=1)
    moment = (inputs.mT @ inputs).requires_grad_()
    result = solve(draw(10, 8), "svd", 4, input_covariance=moment)
    assert not any(scales.requires_grad for scales in result.factors.scales)


def odd_tensors() -> dict[str, tuple[Any, str]]:
    """Tensors that hold no plain real numbers, and what is said of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized and nested tensors are being changed in PyTorch
        quantized = torch.quantize_per_tensor(draw(6, 4), 0.1, 0, torch.qint8)
        nested = torch.nested.nested_tensor([draw(3), draw(2)])
    return {
        "sparse": (draw(6, 4).to_sparse(), "is not dense; got layout sparse_coo;.*give its to_dense"),
        "csr": (csr(draw(6, 4)), "is not dense; got layout sparse_csr;.*give its to_dense"),
        "meta": (torch.empty(6, 4, device="meta"), "no numbers that can be read; got a tensor on the meta"),
        "lazy": (torch.nn.LazyLinear(4).weight, "no numbers that can be read; got a lazy parameter"),
        "quantized": (quantized, "not a floating-point tensor; got torch.qint8; give its values, dequantize"),
        "complex": (draw(6, 4).to(torch.complex64), "got torch.complex64; give its real and its imaginary"),
        "nested": (nested, "is not dense; got a nested tensor"),
        "array": (
            draw(6, 4).numpy(),
            "not a floating-point tensor; got numpy.ndarray; give torch.from_numpy",
        ),
        "whole": (torch.ones(6, 4, dtype=torch.int8), "not a floating-point tensor; got torch.int8"),
    }


def csr(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight.to_sparse_csr()


@pytest.mark.parametrize("kind", odd_tensors())
def test_tensors_without_plain_numbers_are_named(kind: str) -> None:
    tensor, words = odd_tensors()[kind]
    with pytest.raises(SolverError, match=f"weight.*{words}"):
        solve(tensor, "svd", 2)
    if kind != "whole":  # a second moment may be in whole numbers
        with pytest.raises(SolverError, match=f"input covariance.*{words}"):
            solve(draw(6, 4), "svd", 2, input_covariance=tensor)


def test_eight_bit_floating_point_weights_are_widened() -> None:
    weight = draw(10, 8).to(torch.float8_e4m3fn)
    assert solve(weight, "svd", 6, 8).relative_error < 0.5


# Scales far from one


@pytest.mark.parametrize(("structure", "lost"), [("cp", 3), ("tucker2", 3), ("svd", 3), ("dense", 0)])
def test_rows_lost_beside_large_ones_are_told(structure: str, lost: int) -> None:
    """The error of the whole weight is that of its large rows; the small ones are gone without it."""
    shape, rank = STRUCTURES[structure]
    weight = planted((10, 8, 3, 3), 2, 8, 0).reshape(10, 8, -1)[..., : math.prod(shape[2:])].reshape(shape)
    weight = (weight / weight.abs().max()).float()
    weight[:3] = 1e-12 * draw(3, *shape[1:])
    weight[3:] *= 1e12
    result = solve(weight, structure, rank, 8)
    assert result.relative_error < 0.1
    assert result.lost_rows == lost
    assert (result.worst_row_error > 0.9) == bool(lost)
    if lost:
        assert result.finding is not None
        assert str(result.finding).startswith("3 of 10 output channels lost more than half of their size")
    else:
        assert result.finding is None
    mended = with_factors(result, solve(weight, "dense", None, 8).factors, weight)
    assert (mended.lost_rows, mended.finding) == (0, None)


@every_structure
def test_rows_of_an_ordinary_weight_are_not_lost(structure: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    weight[2] = 0.0  # a dead channel has nothing to lose
    result = solve(weight, structure, rank, 8)
    rebuilt = (result.factors.reconstruct() - weight).flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1)
    assert result.worst_row_error == pytest.approx(
        float(rebuilt[weight.flatten(1).any(dim=1)].max()), rel=1e-4
    )
    assert result.finding is None


def test_a_rank_that_loses_most_is_told_by_the_error_of_the_whole() -> None:
    result = solve(draw(10, 8, 3, 3), "cp", 1)
    assert result.relative_error > 0.5
    assert result.lost_rows > 0
    assert result.finding is None


# Bad input


@pytest.mark.parametrize(
    ("structure", "rank", "message"),
    [
        ("cp", 0, "rank out of range; got 0"),
        ("cp", -3, "rank out of range; got -3"),
        ("cp", None, "rank out of range; expected a whole number"),
        ("cp", True, "rank out of range"),
        ("cp", 2.5, "rank out of range"),
        ("cp", (3, 3), "rank out of range"),
        ("cp", 1000, "rank larger than useful; got 1000; expected at most 72"),
        ("tucker2", 4, "takes a pair of ranks"),
        ("tucker2", (4,), "takes a pair of ranks"),
        ("tucker2", (0, 3), "rank out of range.*from 1 to"),
        ("tucker2", (11, 3), "rank out of range.*10, 8"),
        ("tucker2", (4, True), "rank out of range"),
    ],
)
def test_ranks_out_of_range_are_refused(structure: str, rank: Any, message: str) -> None:
    with pytest.raises(SolverError, match=message):
        solve(draw(10, 8, 3, 3), structure, rank)


def test_the_largest_useful_rank_is_taken() -> None:
    assert solve(draw(10, 8, 3, 3), "cp", 72).relative_error < 0.2
    with pytest.raises(SolverError, match="larger than useful"):
        solve(draw(10, 8), "svd", 9)
    assert solve(draw(10, 8), "svd", 8, 8).relative_error < 0.02


@pytest.mark.parametrize(
    ("weight", "structure", "message"),
    [
        (torch.zeros(3, 3, dtype=torch.int64), "svd", "not a floating-point tensor; got torch.int64"),
        ([[1.0]], "svd", "not a floating-point tensor; got list"),
        (torch.zeros(3), "svd", "shape the solver does not take"),
        (torch.zeros(3, 3, 3, 3, 3, 3), "cp", "shape the solver does not take"),
        (torch.zeros(0, 3, 3, 3), "cp", "not empty"),
        (torch.zeros(4, 3), "cp", "structure cp takes convolution weights"),
        (torch.zeros(4, 3), "tucker2", "structure tucker2 takes convolution weights"),
        (torch.zeros(4, 3), "tt", "unknown structure; got tt; expected cp, tucker2, svd, spatial"),
    ],
)
def test_tensors_that_cannot_be_factorized_are_refused(weight: Any, structure: str, message: str) -> None:
    with pytest.raises(SolverError, match=message):
        solve(weight, structure, 2)


def test_the_published_method_takes_no_kernel_in_two_factors() -> None:
    with pytest.raises(SolverError, match="solves CP only; got svd of a k×k kernel"):
        solve(draw(8, 6, 3, 3), "svd", 4, method="paper")


def test_unknown_methods_and_wrong_numbers_of_widths_are_refused() -> None:
    with pytest.raises(SolverError, match="unknown method; got magic; expected joint"):
        solve(draw(4, 4), "svd", 2, method="magic")
    with pytest.raises(SolverError, match="2 for 3 factors"):
        solve(draw(4, 4, 3, 3), "cp", 2, (4, 4))
    with pytest.raises(SolverError, match="3 for 1 factors"):
        solve(draw(4, 4, 3, 3), "dense", None, (4, 4, 4))
    with pytest.raises(SolverError, match="CP only"):
        solve(draw(4, 4, 3, 3), "tucker2", (2, 2), method="paper")


@pytest.mark.parametrize(("rank", "bits"), [(1, 2), (4, 3), (8, 8)])
def test_a_constant_kernel_is_met_at_any_width(rank: int, bits: int) -> None:
    result = solve_layer(torch.full((8, 6, 3, 3), 0.1), rank=rank, spec=QuantSpec(bits=bits))
    assert result.relative_error < 1e-3
