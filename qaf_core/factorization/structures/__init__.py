"""The structures a weight can be written in, one module each; a new one is listed here. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qaf_core.factorization.structures.base import (
    Kernel,
    LinkForm,
    Rank,
    Shape,
    Structure,
    check_ratio,
)
from qaf_core.factorization.structures.cp import Canonical
from qaf_core.factorization.structures.dense import Dense
from qaf_core.factorization.structures.spatial import Spatial
from qaf_core.factorization.structures.svd import TwoFactors
from qaf_core.factorization.structures.tucker2 import Tucker2

__all__ = ["FACTORIZED", "STRUCTURES", "Kernel", "LinkForm", "Rank", "Shape", "Structure", "check_ratio"]

#: By name, in the order in which they are offered.
STRUCTURES: Mapping[str, Structure] = MappingProxyType(
    {structure.name: structure for structure in (Canonical(), Tucker2(), TwoFactors(), Spatial(), Dense())}
)
FACTORIZED = tuple(name for name, structure in STRUCTURES.items() if structure.factorizes)
