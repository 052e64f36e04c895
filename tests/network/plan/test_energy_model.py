"""The energy model against its own published figures."""

from __future__ import annotations

import pytest

from qaf_core.network.plan.cost import original_cost, ratio_cost
from qaf_core.network.plan.energy_model import (
    INT32_ADD_PJ,
    MODELLED,
    activation_traffic_joules,
    mac_joules,
    weight_traffic_joules,
)
from qaf_core.network.plan.layer_info import LayerInfo


def test_one_multiply_accumulate() -> None:
    assert mac_joules(32, 32) == pytest.approx(4.6e-12)
    assert mac_joules(8, 8) == pytest.approx(0.3e-12)
    assert mac_joules(4, 8) == pytest.approx(0.2e-12)
    assert mac_joules(4, 32) == mac_joules(32, 8) == mac_joules(32, 32)


def test_one_word_of_memory() -> None:
    assert weight_traffic_joules(4) == pytest.approx(640e-12)
    assert activation_traffic_joules(4) == pytest.approx(5e-12)


def test_energy_of_a_network(resnet18: tuple[LayerInfo, ...]) -> None:
    before, after = original_cost(resnet18).energy_joules, ratio_cost(resnet18, 2, 4).energy_joules
    # 1.8 G operations at 4.6 pJ and 11.7 M weights at 640 pJ, and the activations.
    assert before == pytest.approx(1.814e9 * 4.6e-12 + 11.69e6 * 640e-12, rel=0.02)
    assert 0.03 < after / before < 0.1


def test_the_label_says_modelled() -> None:
    assert "modelled" in MODELLED
    assert "not measured" in MODELLED


def test_cost_by_bit_width_agrees_with_the_published_32_bit_multiplication() -> None:
    """The model's law, a·b / 64 of 0.2 pJ, gives 3.2 pJ at 32 × 32 bits; published are 3.1 pJ."""
    one_by_one = mac_joules(1, 1) - INT32_ADD_PJ * 1e-12
    assert 32 * 32 * one_by_one == pytest.approx(3.1e-12, rel=0.05)
    assert weight_traffic_joules(4 * 4 / 32) == pytest.approx(weight_traffic_joules(4) / 8)
