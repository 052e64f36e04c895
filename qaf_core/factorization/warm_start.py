"""Starting a solve from the factors of a neighbouring rank or bit-width."""

from __future__ import annotations

import torch
from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.cp import Canonical, by_position
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.tucker2 import Tucker2

NEW_COMPONENT_SIZE = 0.1


def warm_values(problem: Canonical | Tucker2, start: Factors, size: float, seed: int) -> list[Tensor]:
    """Floating-point factors for ``problem`` out of those of another solve.

    Args:
        problem: What is to be solved; its target is the weight divided by ``size``.
        start: Factors of the same weight shape and structure, at any bits; CP and the two-factor form also at
            another rank: the largest components stay, small random ones are added.
        size: What the weight was divided by.
        seed: Of the added components.

    Returns:
        One matrix per factor, as the solver holds them.

    Raises:
        SolverError: If the factors are of another structure, weight shape or (Tucker-2) rank.
    """
    values = [value.to(problem.device, problem.dtype) for value in start.values()]
    if start.structure != problem.name:
        raise SolverError("the start is of another structure", got=start.structure, expected=problem.name)
    if isinstance(problem, Tucker2):
        if start.rank != problem.ranks or [len(values[0]), len(values[2])] != list(problem.target.shape[:2]):
            raise SolverError("the start is of another shape or rank", got=start.rank, expected=problem.ranks)
        core = values[1].permute(2, 0, 1).reshape(-1, problem.ranks[1])
        return problem.balance([values[0] / size, core, values[2]])
    if start.structure == "svd":
        values[1] = by_position(values[1], start.weight_shape[1])
    if [len(value) for value in values] != list(problem.target.shape):
        raise SolverError(
            "the start is of another weight shape",
            got=[len(value) for value in values],
            expected=list(problem.target.shape),
        )
    values = problem.balance([values[0] / size, *values[1:]])
    strength = torch.stack([value.norm(dim=0) for value in values]).prod(dim=0)
    kept = torch.argsort(strength, descending=True)[: problem.rank].sort()[0]
    values = [value[:, kept] for value in values]
    missing = problem.rank - len(kept)
    if missing:
        fresh = problem.random_start(torch.Generator().manual_seed(seed))
        values = [
            torch.cat([value, NEW_COMPONENT_SIZE * new[:, :missing]], dim=1)
            for value, new in zip(values, fresh, strict=True)
        ]
    return [value.contiguous() for value in values]
