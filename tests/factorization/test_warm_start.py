"""Starting from the factors of a neighbouring rank or bit-width."""

from __future__ import annotations

import pytest
import torch
from helpers import draw

from qaf_core.errors import SolverError
from qaf_core.factorization.algebra.cp import Canonical
from qaf_core.factorization.options import SolverOptions
from qaf_core.factorization.solve import solve_layer
from qaf_core.factorization.warm_start import warm_values
from qaf_core.quantization.spec import QuantSpec

SHORT = SolverOptions(start_iterations=4, iterations=2, rounding_rounds=4)
# What another solve begins with: one start, not the best of three.
FIRST = SolverOptions(starts=1, start_iterations=40, iterations=4, rounding_rounds=6)


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return draw(24, 16, 3, 3)


@pytest.mark.parametrize(("structure", "rank"), [("cp", 20), ("tucker2", (10, 8)), ("svd", 10)])
def test_a_warm_start_beats_a_cold_one_of_the_same_length(
    weight: torch.Tensor, structure: str, rank: int | tuple[int, int]
) -> None:
    wide = solve_layer(weight, structure, rank, QuantSpec(bits=6), FIRST)
    cold = solve_layer(weight, structure, rank, QuantSpec(bits=4), SHORT, seed=1)
    warm = solve_layer(weight, structure, rank, QuantSpec(bits=4), SHORT, seed=1, start=wide.factors)
    assert warm.relative_error <= cold.relative_error + 1e-6


@pytest.mark.parametrize("rank", [12, 28])
def test_the_largest_components_stay_and_missing_ones_are_added(weight: torch.Tensor, rank: int) -> None:
    found = solve_layer(weight, "cp", 20, QuantSpec(bits=6), SHORT)
    problem = Canonical(weight.reshape(24, 16, 9), rank)
    values = warm_values(problem, "cp", found.factors, 1.0, 0)
    assert [tuple(value.shape) for value in values] == [(24, rank), (16, rank), (9, rank)]
    strength = torch.stack([value.norm(dim=0) for value in found.factors.values()]).prod(dim=0).sort()[0]
    kept = torch.stack([value.norm(dim=0) for value in values]).prod(dim=0)[: min(rank, 20)].sort()[0]
    assert torch.allclose(kept, strength[-min(rank, 20) :], rtol=1e-4)


def test_same_rank_start_stands_for_the_same_tensor(weight: torch.Tensor) -> None:
    found = solve_layer(weight, "cp", 20, QuantSpec(bits=4), SHORT)
    values = warm_values(Canonical(weight.reshape(24, 16, 9) / 2, 20), "cp", found.factors, 2.0, 0)
    rebuilt = torch.einsum("ir,jr,kr->ijk", *values).reshape(weight.shape) * 2
    assert torch.allclose(rebuilt, found.factors.reconstruct(), atol=1e-5)


def test_two_factors_of_a_kernel_stand_for_the_same_tensor(weight: torch.Tensor) -> None:
    found = solve_layer(weight, "svd", 10, QuantSpec(bits=4), SHORT)
    problem = Canonical(weight.movedim(1, -1).reshape(24, -1), 10)
    left, right = warm_values(problem, "svd", found.factors, 1.0, 0)
    rebuilt = (left @ right.mT).reshape(24, 3, 3, 16).movedim(-1, 1)
    assert torch.allclose(rebuilt, found.factors.reconstruct(), atol=1e-5)


def test_factors_of_something_else_are_refused(weight: torch.Tensor) -> None:
    other = solve_layer(weight[:8], "cp", 6, QuantSpec(bits=4), SHORT)
    with pytest.raises(SolverError, match="another weight shape"):
        solve_layer(weight, "cp", 6, start=other.factors)
    tucker = solve_layer(weight, "tucker2", (6, 6), QuantSpec(bits=4), SHORT)
    with pytest.raises(SolverError, match="another structure"):
        solve_layer(weight, "cp", 6, start=tucker.factors)
    with pytest.raises(SolverError, match="another shape or rank"):
        solve_layer(weight, "tucker2", (6, 5), start=tucker.factors)
