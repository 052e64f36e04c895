"""The tensors of every structure, one module each beside its descriptor; a new one is listed here too."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qaf_core.factorization.algebra.base import Algebra
from qaf_core.factorization.algebra.cp import CanonicalAlgebra
from qaf_core.factorization.algebra.dense import DenseAlgebra
from qaf_core.factorization.algebra.spatial import SpatialAlgebra
from qaf_core.factorization.algebra.svd import TwoFactorAlgebra
from qaf_core.factorization.algebra.tucker2 import Tucker2Algebra

__all__ = ["ALGEBRAS", "Algebra"]

_ALL: tuple[type[Algebra], ...] = (
    CanonicalAlgebra, Tucker2Algebra, TwoFactorAlgebra, SpatialAlgebra, DenseAlgebra,
)  # fmt: skip
ALGEBRAS: Mapping[str, type[Algebra]] = MappingProxyType({part.structure.name: part for part in _ALL})
