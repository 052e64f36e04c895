"""Tucker-2, against what a singular value decomposition says."""

from __future__ import annotations

import numpy as np
import torch
from helpers import draw_double as draw

from qaf_core.factorization.algebra.tucker2 import Tucker2, Tucker2Algebra

ROWS, COLUMNS, KERNEL = 7, 6, 5


def test_the_start_spans_the_leading_subspaces() -> None:
    problem = Tucker2(draw(ROWS, COLUMNS, KERNEL), (4, 3))
    outer, _, inner = problem.random_start(torch.Generator())
    for basis, mode, rank in ((outer, 0, 4), (inner, 1, 3)):
        unfolding = problem.target.movedim(mode, 0).reshape(problem.target.shape[mode], -1)
        leading = np.linalg.svd(unfolding.numpy())[0][:, :rank]
        np.testing.assert_allclose(np.asarray(basis @ basis.mT), leading @ leading.T, atol=1e-8)


def test_full_ranks_lose_nothing() -> None:
    problem = Tucker2(draw(ROWS, COLUMNS, KERNEL), (ROWS, COLUMNS))
    start = problem.random_start(torch.Generator())
    error = problem.quadratic(start, 0).squared_error(start[0], problem.target_norm_squared)
    assert error < 1e-6 * problem.target_norm_squared


def test_the_core_is_stored_by_ranks_and_kernel_position() -> None:
    problem = Tucker2(draw(ROWS, COLUMNS, KERNEL), (4, 3))
    outer, core, inner = problem.random_start(torch.Generator())
    algebra = Tucker2Algebra((ROWS, COLUMNS, KERNEL))
    stored = algebra.stored([outer, core, inner])[1]
    assert stored.shape == (4, 3, KERNEL)
    for position in range(KERNEL):
        torch.testing.assert_close(stored[:, :, position], core.reshape(KERNEL, 4, 3)[position])
    assert torch.equal(algebra.matrices([outer, stored, inner])[1], core)
    by_column = algebra.stored_scales([outer[:1], draw(1, 3), inner[:1]])[1]
    assert by_column.shape == (1, 3, 1)
