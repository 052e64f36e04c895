"""Joint tensor factorization and quantization of trained neural networks.

The names below are loaded on first use, so that importing the package stays quick (torch takes seconds).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qaf_core.api.compress import Compressed, compress
    from qaf_core.api.evaluate import evaluate
    from qaf_core.api.sample import Sample, load_sample
    from qaf_core.deploy.packed.open import load
    from qaf_core.errors import QafError
    from qaf_core.factorization.options import SolveEvent, SolverOptions, Status
    from qaf_core.factorization.solve import SolveResult, solve_layer
    from qaf_core.network.plan.types import LayerPlan, Plan
    from qaf_core.pipeline.results import Evaluation
    from qaf_core.quantization.spec import QuantSpec

__version__ = "0.1.0"

_HOMES = {
    "Compressed": "qaf_core.api.compress",
    "Evaluation": "qaf_core.pipeline.results",
    "LayerPlan": "qaf_core.network.plan.types",
    "Plan": "qaf_core.network.plan.types",
    "QafError": "qaf_core.errors",
    "QuantSpec": "qaf_core.quantization.spec",
    "Sample": "qaf_core.api.sample",
    "SolveEvent": "qaf_core.factorization.options",
    "SolveResult": "qaf_core.factorization.solve",
    "SolverOptions": "qaf_core.factorization.options",
    "Status": "qaf_core.factorization.options",
    "compress": "qaf_core.api.compress",
    "evaluate": "qaf_core.api.evaluate",
    "load": "qaf_core.deploy.packed.open",
    "load_sample": "qaf_core.api.sample",
    "solve_layer": "qaf_core.factorization.solve",
}

__all__ = [
    "Compressed",
    "Evaluation",
    "LayerPlan",
    "Plan",
    "QafError",
    "QuantSpec",
    "Sample",
    "SolveEvent",
    "SolveResult",
    "SolverOptions",
    "Status",
    "compress",
    "evaluate",
    "load",
    "load_sample",
    "solve_layer",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
