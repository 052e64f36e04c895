"""What a compression is told and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from qaf_core.errors import PlanError
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.options import SolverOptions
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.events import RunStatus
from qaf_core.pipeline.results import LayerRow
from qaf_core.text.said import Said

PAPER_BATCHNORM = ("better", "keep", "reestimate")


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How a network is compressed.

    Attributes:
        solver: Options of the solver.
        granularity: Of the scales; the paper's method has one per factor whatever is set here.
        paper_inner_iterations: Inner iterations of the published method (its own limit is 1,000, DESIGN.md
            §6).
        output_fit: Fit outputs on the calibration images where the method does so.
        paper_batchnorm: BatchNorm statistics of the published method: ``keep``, ``reestimate``, or
            ``better``, whichever of the two comes closer to the original's scores on the calibration images.
        moment_weight: Share of the inputs' second moment in the error that factorized layers are solved
            for; 0 solves for the weight itself and leaves the images to the output fit.
    """

    solver: SolverOptions = field(default_factory=SolverOptions)
    granularity: str = "rank_row"
    paper_inner_iterations: int = 10
    output_fit: bool = True
    paper_batchnorm: str = "better"
    moment_weight: float = 0.0

    def __post_init__(self) -> None:
        weight = self.moment_weight
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 <= weight < 1.0:
            raise PlanError("option moment_weight out of range", got=weight, expected="0 up to 1")
        if self.paper_batchnorm not in PAPER_BATCHNORM:
            raise PlanError(
                "unknown option paper_batchnorm",
                got=self.paper_batchnorm,
                expected=", ".join(PAPER_BATCHNORM),
            )


@dataclass(frozen=True, kw_only=True)
class LayerOutcome(LayerRow):
    """What became of one planned layer, with its factors; ``output_error`` is None without images."""

    relative_error: float
    float_relative_error: float
    iterations: int
    seconds: float
    histograms: dict[str, Any]
    factors: Factors

    @property
    def row(self) -> LayerRow:
        """What tables show of it."""
        return LayerRow(**{item.name: getattr(self, item.name) for item in fields(LayerRow)})

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, without the factors."""
        return {**self.row.to_dict(), "histograms": self.histograms}


@dataclass(frozen=True, kw_only=True)
class Compression:
    """A compressed network and how it came about.

    Attributes:
        model: The network with its planned layers exchanged, in evaluation mode.
        layers: Outcomes in the order in which the layers run.
        status: ``completed`` or ``cancelled``; when cancelled, layers not reached keep their original
            weights.
        seconds: By stage: ``factorize`` and ``calibrate``.
        notes: What is to be said of it, one sentence each.
    """

    model: nn.Module
    layers: tuple[LayerOutcome, ...]
    status: RunStatus
    seconds: dict[str, float]
    notes: tuple[Said, ...] = ()


def read_options(plan: Plan) -> CompressOptions:
    """The options a plan carries by name, the solver's and the compression's.

    Raises:
        QafError: If one is unknown or out of range.
    """
    of_solver = {item.name for item in fields(SolverOptions)}
    of_compression = {item.name for item in fields(CompressOptions)} - {"solver"}
    unknown = sorted(set(plan.options) - of_solver - of_compression)
    if unknown:
        known = ", ".join(sorted(of_solver | of_compression))
        raise PlanError("the plan has unknown options", got=", ".join(unknown), expected=known)
    solver = SolverOptions(**{key: value for key, value in plan.options.items() if key in of_solver})
    own = {key: value for key, value in plan.options.items() if key in of_compression}
    return CompressOptions(solver=solver, **own)
