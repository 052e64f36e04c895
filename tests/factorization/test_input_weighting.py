"""Solving under the second moment of a layer's inputs: errors of outputs, singular moments, bad input."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from helpers import draw
from torch import Tensor

from qaf_core import QuantSpec, SolveResult, SolverOptions, solve_layer
from qaf_core.errors import SolverError
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.input_weighting import channel_moment, refit_output_side
from qaf_core.quantization.grid import Grid

QUICK = SolverOptions(starts=1, start_iterations=15, iterations=2, rounding_rounds=3)
STRUCTURES: dict[str, tuple[tuple[int, ...], Any]] = {
    "cp": ((10, 8, 3, 3), 6),
    "tucker2": ((10, 8, 3, 3), (5, 4)),
    "svd": ((10, 8, 3, 3), 4),
    "spatial": ((10, 8, 3, 3), 5),
    "dense": ((10, 8, 3, 3), None),
}


def solve(weight: Tensor, structure: str, rank: Any = None, bits: Any = 4, **options: Any) -> SolveResult:
    spec = QuantSpec(bits=bits, granularity=options.pop("granularity", "rank"))
    return solve_layer(weight, structure=structure, rank=rank, spec=spec, options=QUICK, **options)


def assert_sound(result: SolveResult, weight: Tensor) -> None:
    """Codes on their grids, scales positive, the error finite and as rebuilt."""
    for codes, scales, bits in zip(
        result.factors.codes, result.factors.scales, result.factors.bits, strict=True
    ):
        low, high = Grid.of(bits).low, Grid.of(bits).high
        assert low <= int(codes.min())
        assert int(codes.max()) <= high
        assert float(scales.min()) > 0
    error = float((result.factors.reconstruct() - weight).norm() / weight.norm())
    assert result.relative_error == pytest.approx(error, rel=1e-5, abs=1e-7)


@functools.cache
def without_moment() -> float:
    return solve(draw(10, 8, 3, 3), "cp", 6).relative_error


def output_error(weight: Tensor, factors: Factors, covariance: Tensor) -> float:
    difference = (factors.reconstruct() - weight).reshape(len(weight), -1)
    return float(((difference @ covariance) * difference).sum())


def patch_moment(channels: int, side: int = 3) -> Tensor:
    """Second moment of the patches of smooth random images: strong correlation between positions."""
    images = torch.nn.functional.interpolate(draw(40, channels, 4, 4, seed=3), size=16, mode="bilinear")
    rows = torch.nn.functional.unfold(images, side).movedim(1, -1).reshape(-1, channels * side * side)
    return rows.mT @ rows / len(rows)


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd"])
@pytest.mark.parametrize("granularity", ["tensor", "rank", "rank_row"])
def test_the_output_side_sees_the_full_covariance(structure: str, granularity: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight, covariance = draw(*shape), patch_moment(8)
    blocks = covariance.reshape(8, 9, 8, 9).diagonal(dim1=1, dim2=3).mean(dim=-1)
    full = solve(weight, structure, rank, input_covariance=covariance, granularity=granularity)
    averaged = solve(weight, structure, rank, input_covariance=blocks, granularity=granularity)
    assert_sound(full, weight)
    assert output_error(weight, full.factors, covariance) < output_error(weight, averaged.factors, covariance)


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd"])
def test_the_output_side_is_left_where_the_refit_gains_nothing(structure: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight, covariance = draw(*shape), patch_moment(8)
    factors = solve(weight, structure, rank, input_covariance=covariance).factors
    rows = 3 if structure == "spatial" else 1
    for _ in range(6):  # until nothing changes any more
        before, factors = factors, refit_output_side(weight, covariance, factors, "rank", rows)
        if factors is before:
            break
    assert refit_output_side(weight, covariance, factors, "rank", rows) is factors


def test_dense_under_a_covariance_errs_less_where_the_inputs_are() -> None:
    weight, inputs = draw(12, 6, 3, 3), draw(400, 54, seed=1) + 3 * draw(400, 1, seed=2)
    covariance = inputs.mT @ inputs / 400

    plain, aware = solve(weight, "dense", bits=3), solve(weight, "dense", bits=3, input_covariance=covariance)
    assert output_error(weight, aware.factors, covariance) < 0.7 * output_error(
        weight, plain.factors, covariance
    )


@pytest.mark.parametrize(("structure", "rank"), [("cp", 12), ("tucker2", (5, 4)), ("svd", 4)])
@pytest.mark.parametrize("full", [False, True])
def test_a_covariance_lowers_the_error_of_outputs(structure: str, rank: Any, full: bool) -> None:
    weight = draw(10, 8, 3, 3)
    mixed = draw(200, 8, seed=1) * torch.logspace(-1, 1, 8)
    moment = mixed.mT @ mixed / 200
    positions = weight[0, 0].numel()
    covariance = torch.kron(moment, torch.eye(positions)) if full else moment

    def error(result: SolveResult) -> float:
        difference = (result.factors.reconstruct() - weight).movedim(1, -1)
        return float(((difference @ moment) * difference).sum())

    plain = solve(weight, structure, rank)
    aware = solve(weight, structure, rank, input_covariance=covariance)
    assert error(aware) < 0.7 * error(plain)
    assert_sound(aware, weight)


def test_full_covariances_are_averaged_over_positions() -> None:
    moment = torch.eye(3) + 0.5
    blocks = torch.kron(moment, torch.diag(torch.tensor([1.0, 2.0])))
    found = channel_moment(blocks, 3)
    torch.testing.assert_close(found, moment / 1.5, rtol=2e-3, atol=2e-3)


COVARIANCES = {
    "zero": torch.zeros(8, 8),
    "rank one": torch.ones(8, 8),
    "dead channels": torch.diag(torch.tensor([1.0] * 5 + [0.0] * 3)),
    "huge": 1e30 * torch.eye(8),
    "tiny": 1e-30 * torch.eye(8),
    "whole numbers": torch.eye(8, dtype=torch.int64),
    "double": torch.eye(8, dtype=torch.float64),
    "patches": torch.kron(torch.ones(8, 8), torch.eye(9)),
    "dead patches": torch.zeros(72, 72),
}


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "dense"])
@pytest.mark.parametrize("name", COVARIANCES)
def test_singular_and_extreme_covariances(structure: str, name: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    result = solve(weight, structure, rank, input_covariance=COVARIANCES[name])
    assert_sound(result, weight)
    assert result.relative_error < 1.2


@pytest.mark.parametrize("name", ["huge", "tiny", "whole numbers", "double", "zero"])
def test_a_multiple_of_the_identity_says_nothing(name: str) -> None:
    found = solve(draw(10, 8, 3, 3), "cp", 6, input_covariance=COVARIANCES[name])
    assert found.relative_error == pytest.approx(without_moment(), rel=0.01)


@pytest.mark.parametrize("structure", ["cp", "tucker2", "svd", "dense"])
def test_weights_that_meet_dead_channels_only(structure: str) -> None:
    shape, rank = STRUCTURES[structure]
    weight = draw(*shape)
    weight[:, :5] = 0.0
    result = solve(weight, structure, rank, input_covariance=COVARIANCES["dead channels"])
    assert_sound(result, weight)
    assert result.relative_error < 1


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.eye(7), "wrong shape.*72, 72.*8, 8"),
        (torch.ones(8), "wrong shape"),
        (torch.ones(8, 72), "wrong shape"),
        (torch.full((8, 8), math.nan), "NaN or infinite"),
        (torch.full((72, 72), math.inf), "NaN or infinite"),
        (-torch.eye(8), "negative eigenvalues"),
        (torch.diag(torch.tensor([1.0] * 7 + [-1.0])), "negative eigenvalues"),
    ],
)
@pytest.mark.parametrize("structure", ["cp", "dense"])
def test_covariances_that_are_none_are_refused(structure: str, covariance: Tensor, message: str) -> None:
    shape, rank = STRUCTURES[structure]
    with pytest.raises(SolverError, match=message):
        solve(draw(*shape), structure, rank, input_covariance=covariance)
