"""One dial for how hard the solver works."""

from __future__ import annotations

import pytest
import torch

from qaf_core import QuantSpec, SolverOptions, solve_layer
from qaf_core.errors import SolverError
from qaf_core.factorization.effort import Effort, effort_of, effort_options, work_share


def test_the_standard_stop_is_what_the_solver_does_untold() -> None:
    assert SolverOptions(**effort_options("standard")) == SolverOptions()


@pytest.mark.parametrize("effort", Effort)
def test_a_plan_tells_its_effort(effort: Effort) -> None:
    options = effort_options(effort)
    assert effort_of(options) == effort
    assert effort_of({**options, "output_fit": False}) == effort
    assert SolverOptions(**options) is not None


def test_thorough_is_never_worse_than_standard_and_takes_longer() -> None:
    shares = [work_share(effort_options(effort)) for effort in Effort]
    assert shares == sorted(shares)
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    standard, thorough = (
        solve_layer(
            weight, rank=8, spec=QuantSpec(bits=3), options=SolverOptions(**effort_options(effort))
        ).relative_error
        for effort in ("standard", "thorough")
    )
    assert thorough <= standard


def test_an_unknown_stop_is_refused() -> None:
    with pytest.raises(SolverError, match="quick, standard, thorough"):
        effort_options("hard")
