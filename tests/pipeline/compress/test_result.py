"""Options of a compression say what they do not take; outcomes become plain data."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from qaf_core.errors import PlanError
from qaf_core.factorization.factors import Factors
from qaf_core.pipeline.compress.result import PAPER_BATCHNORM, CompressOptions, LayerOutcome


@pytest.mark.parametrize("choice", PAPER_BATCHNORM)
def test_every_choice_of_statistics_is_taken(choice: str) -> None:
    assert CompressOptions(paper_batchnorm=choice).paper_batchnorm == choice


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(PlanError, match="paper_batchnorm; got maybe; expected better, keep, reestimate"):
        CompressOptions(paper_batchnorm="maybe")


@pytest.mark.parametrize("weight", [-0.1, 1.0, float("nan"), "0.5", True, None])
def test_moment_weights_are_fractions(weight: Any) -> None:
    with pytest.raises(PlanError, match="moment_weight out of range"):
        CompressOptions(moment_weight=weight)


def test_outcomes_become_plain_data_without_their_factors() -> None:
    factors = Factors(
        structure="tucker2",
        weight_shape=(4, 3, 1, 1),
        codes=(torch.ones(4, 2), torch.ones(2, 2, 1), torch.ones(3, 2)),
        scales=(torch.ones(1, 2), torch.ones(1, 2, 1), torch.ones(1, 2)),
        bits=(4, 8, 4),
    )
    outcome = LayerOutcome(
        name="conv",
        structure="tucker2",
        rank=(2, 2),
        bits=(4, 8, 4),
        relative_error=0.25,
        float_relative_error=0.2,
        status="converged",
        iterations=12,
        seconds=0.5,
        output_error=None,
        histograms={},
        factors=factors,
    )
    told = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    assert told["rank"] == [2, 2]
    assert told["bits"] == [4, 8, 4]
    assert told["output_error"] is None
    assert "factors" not in told
