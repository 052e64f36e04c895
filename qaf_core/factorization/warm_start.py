"""Starting a solve from the factors of a neighbouring rank or bit-width."""

from __future__ import annotations

from torch import Tensor

from qaf_core.errors import SolverError
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.subproblem import Subproblem


def warm_values(problem: Subproblem, structure: str, start: Factors, size: float, seed: int) -> list[Tensor]:
    """Floating-point factors for ``problem`` out of those of another solve.

    Args:
        problem: What is to be solved; its target is the weight divided by ``size``.
        structure: Whose it is.
        start: Factors of the same weight shape and structure, at any bits; but for Tucker-2 also at another
            rank: the largest components stay, small random ones are added.
        size: What the weight was divided by.
        seed: Of the added components.

    Returns:
        One matrix per factor, as the solver holds them.

    Raises:
        SolverError: If the factors are of another structure, weight shape or (Tucker-2) rank.
    """
    if start.structure != structure:
        raise SolverError("the start is of another structure", got=start.structure, expected=structure)
    values = [value.to(problem.device, problem.dtype) for value in start.values()]
    outer, *others = start.algebra.matrices(values)
    return problem.resume([outer / size, *others], seed)
