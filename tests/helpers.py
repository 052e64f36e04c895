"""What tests of several folders call: random tensors, a quick solver, and a memory for solved layers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from qaf_core.factorization.options import SolverOptions, Status
from qaf_core.factorization.solve import SolveResult
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

# One random start and a few sweeps: sound factors, though not the best ones.
QUICK_SOLVER = SolverOptions(starts=1, start_iterations=20, iterations=2, rounding_rounds=3)
# The same as a run's options, shorter still: for tests of what is done with factors.
SHORT = {"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw_double(*shape: int, seed: int = 0) -> Tensor:
    """The same in double precision."""
    return draw(*shape, seed=seed, dtype=torch.float64)


def begun_run(store: Store, request: RunRequest) -> str:
    """A run that this very process is at work on."""
    run_id = store.ask_for_own(request, os.getpid())
    assert store.claim_next(os.getpid(), own=run_id) == run_id
    return run_id


class Remembered(SolveCache):
    """Solved layers kept in memory, so that tests of what follows do not solve the same layer again."""

    def __init__(self) -> None:
        super().__init__(Path("in memory"))
        self.results: dict[str, SolveResult] = {}

    def holds(self, key: str) -> bool:
        return key in self.results

    def load(self, key: str) -> SolveResult | None:
        return self.results.get(key)

    def keep(self, key: str, result: SolveResult) -> None:
        if result.status not in (Status.CANCELLED, Status.TIME_LIMIT, Status.NONFINITE):
            self.results[key] = result
