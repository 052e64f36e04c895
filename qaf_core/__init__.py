"""Joint tensor factorization and quantization of trained neural networks.

The names below are loaded on first use, so that importing the package stays quick (torch takes seconds).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qaf_core.errors import QafError
    from qaf_core.factorization.options import SolveEvent, SolverOptions, Status
    from qaf_core.factorization.solve import SolveResult, solve_layer
    from qaf_core.quantization.spec import QuantSpec

__version__ = "0.1.0"

_HOMES = {
    "QafError": "qaf_core.errors",
    "QuantSpec": "qaf_core.quantization.spec",
    "SolveEvent": "qaf_core.factorization.options",
    "SolveResult": "qaf_core.factorization.solve",
    "SolverOptions": "qaf_core.factorization.options",
    "Status": "qaf_core.factorization.options",
    "solve_layer": "qaf_core.factorization.solve",
}

__all__ = ["QafError", "QuantSpec", "SolveEvent", "SolveResult", "SolverOptions", "Status", "solve_layer"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
