"""Factors become the weights of links, and these factors again: the tensor stays."""

from __future__ import annotations

import pytest
import torch

from qaf_core.factorization.algebra import ALGEBRAS
from qaf_core.factorization.solve import solve_layer
from qaf_core.quantization.spec import QuantSpec


@pytest.mark.parametrize("granularity", ["tensor", "rank", "rank_row"])
@pytest.mark.parametrize(
    ("structure", "rank"), [("cp", 7), ("tucker2", (4, 5)), ("svd", 6), ("spatial", 5), ("dense", None)]
)
def test_what_links_hold_is_the_same_tensor(
    structure: str, rank: int | tuple[int, int] | None, granularity: str
) -> None:
    weight = torch.randn(8, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(bits=4, granularity=granularity)
    factors = solve_layer(weight, structure=structure, rank=rank, spec=spec).factors
    links = factors.algebra.link_weights(factors.codes, factors.scales)
    weights = [codes * scales.reshape(-1, *(1,) * (codes.ndim - 1)) for codes, scales in links]
    found = ALGEBRAS[structure](weight.shape)
    torch.testing.assert_close(found.reconstruct(found.of_links(weights)), factors.reconstruct())
