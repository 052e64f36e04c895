"""What tests of several folders call: random tensors, a quick solver, and a memory for solved layers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qaf_core.factorization.options import SolverOptions, Status
from qaf_core.factorization.solve import SolveResult
from qaf_core.pipeline.compress.solve_cache import SolveCache
from qaf_core.runs.evidence.predictions import PairedPredictions
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


def paired_answers(
    n: int, lost: int, gained: int, classes: tuple[str, ...] = ("ok", "crack", "pit"), seed: int = 0
) -> PairedPredictions:
    """Two made-up classifiers: of ``n`` images the first alone is right on some, the second on others."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    right = np.stack([labels, (labels + 1) % len(classes)], axis=1)
    wrong = right[:, ::-1]
    order = generator.permutation(n)
    before, after = right.copy(), right.copy()
    before[order[lost : lost + gained]] = wrong[order[lost : lost + gained]]
    after[order[:lost]] = wrong[order[:lost]]
    both = order[lost + gained : lost + gained + n // 20]
    before[both], after[both] = wrong[both], wrong[both]

    def answers(ranked: np.ndarray) -> dict[str, np.ndarray]:
        first = generator.uniform(0.5, 1.0, n).astype(np.float32)
        return {"ranked": ranked.astype(np.int32), "confidence": np.stack([first, 1 - first], axis=1)}

    return PairedPredictions(
        task="classification", classes=classes, images="made up", data_sha256="0" * 64,
        original=answers(before), compressed=answers(after), targets={"labels": labels},
    )  # fmt: skip
