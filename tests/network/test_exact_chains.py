"""Networks of torchvision: every layer is listed, and those that can be factorized are exchanged exactly.

The chains hold factors that are constructed, not fitted, so the exchanged network must put out what the
original did. ``benchmarks/exact_chains.py`` does the same at full size.
"""

from __future__ import annotations

import pytest

from benchmarks.exact_chains import NETWORKS, prove

TOLERANCE = 1e-4
SIDE = 64
SIDES = {"inception_v3": 96}  # the least a network takes, where that is more


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_chains_in_all_places_leave_the_outputs_as_they_were(name: str) -> None:
    found = prove(name, SIDES.get(name, SIDE))
    assert found["parameters"] == found["parameters_of_the_network"]
    assert found["factorizable"] > 10
    assert found["size_fraction"] < 0.5
    assert "no reason given" not in {*found["kept"], *found["kept_of_other_kinds"]}
    assert found["outputs"] > 0
    assert found["difference"] <= TOLERANCE
    # Far below what another image changes, else it would prove nothing.
    assert found["difference"] < 1e-3 * found["spread"]
