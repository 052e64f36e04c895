"""Solved layers are found again by content, and only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qaf_core.factorization.options import SolverOptions, Status
from qaf_core.factorization.solve import SolveResult
from qaf_core.pipeline.compress.solve_cache import SolveCache, SolveTask
from qaf_core.quantization.spec import QuantSpec

OPTIONS = SolverOptions(starts=1, start_iterations=5, iterations=2, rounding_rounds=2)
TASK = SolveTask(structure="cp", rank=4, spec=QuantSpec(bits=4), options=OPTIONS, method="joint", seed=0)


def solved(weight: torch.Tensor) -> SolveResult:
    return TASK.solve(weight, layer="layer", on_event=None)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(1))


def test_a_kept_result_comes_back_whole(tmp_path: Path, weight: torch.Tensor) -> None:
    cache, result = SolveCache(tmp_path), solved(weight)
    key = cache.key(weight, TASK)
    assert cache.load(key) is None
    cache.keep(key, result)
    found = cache.load(key)
    assert found is not None
    assert torch.equal(found.factors.reconstruct(), result.factors.reconstruct())
    assert (found.relative_error, found.status, found.seconds) == (
        result.relative_error,
        result.status,
        result.seconds,
    )
    assert found.factors.codes[0].dtype == torch.int8
    assert (found.worst_row_error, found.lost_rows) == (result.worst_row_error, result.lost_rows)
    assert found.worst_row_error > 0


@pytest.mark.parametrize("change", [
    {"rank": 5}, {"structure": "tucker2", "rank": (4, 4)}, {"spec": QuantSpec(bits=3)}, {"seed": 1},
    {"method": "paper"},
    {"spec": QuantSpec(bits=4, granularity="rank_row")}, {"options": replace(OPTIONS, tolerance=1e-4)},
    {"input_covariance": torch.eye(6)},
])  # fmt: skip
def test_every_input_of_the_solve_changes_the_key(
    tmp_path: Path, weight: torch.Tensor, change: dict[str, Any]
) -> None:
    cache = SolveCache(tmp_path)
    assert cache.key(weight, TASK) != cache.key(weight, replace(TASK, **change))


def test_another_weight_has_another_key(tmp_path: Path, weight: torch.Tensor) -> None:
    cache, other = SolveCache(tmp_path), weight.clone()
    other[0, 0, 0, 0] += 1e-6
    assert cache.key(weight, TASK) != cache.key(other, TASK)
    assert cache.key(weight, TASK) == cache.key(weight.clone(), TASK)


def test_damaged_and_unfinished_results_are_not_used(tmp_path: Path, weight: torch.Tensor) -> None:
    cache, result = SolveCache(tmp_path), solved(weight)
    key = cache.key(weight, TASK)
    cache.keep(key, replace(result, status=Status.CANCELLED))
    assert cache.load(key) is None
    cache.keep(key, result)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    assert cache.load(key) is None


def test_an_unwritable_folder_is_no_fault(tmp_path: Path, weight: torch.Tensor) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = SolveCache(tmp_path / "file")
    key = cache.key(weight, TASK)
    cache.keep(key, solved(weight))
    assert cache.load(key) is None
