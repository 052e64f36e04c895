"""Plans as JSON: round trips, and what is said of damaged ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qaf_core.errors import PlanError
from qaf_core.network.plan.types import SCHEMA_VERSION, LayerPlan, Plan

ROW = {"name": "conv1", "structure": "cp", "rank": 4, "bits": 4}
GOOD = {
    "schema_version": 1,
    "model": "digits/cnn",
    "layers": [ROW],
    "activation_bits": 8,
    "options": {},
    "seed": 3,
}

whole = st.integers(-(10**9), 10**9)
rows = st.builds(
    LayerPlan,
    name=st.text(),
    structure=st.sampled_from(["cp", "tucker2", "svd", "dense", "keep", "anything"]),
    rank=st.none() | whole | st.tuples(whole, whole),
    bits=st.none() | whole | st.lists(whole, min_size=1, max_size=4).map(tuple),
)
plans = st.builds(
    Plan,
    model=st.text(),
    layers=st.lists(rows, max_size=6).map(tuple),
    activation_bits=whole,
    options=st.dictionaries(st.text(), st.none() | st.booleans() | whole | st.text(), max_size=3),
    seed=whole,
)


@given(plans)
def test_plans_survive_json(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert Plan.from_json(plan.to_json().encode()) == plan


def test_only_the_model_and_the_layers_are_needed() -> None:
    plan = Plan.from_dict({"model": "m", "layers": [{"name": "a", "structure": "keep"}]})
    assert plan == Plan(model="m", layers=(LayerPlan(name="a", structure="keep"),))
    assert (plan.schema_version, plan.activation_bits, plan.seed) == (SCHEMA_VERSION, 8, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "newer form than this program knows; got schema_version 2; .*update"),
        ({"schema_version": 0}, "unknown plan version; got schema_version 0"),
        ({"schema_version": "1"}, 'schema_version is of the wrong type; got "1"; expected a whole number'),
        ({"model": 7}, "model is of the wrong type; got 7; expected text"),
        ({"layers": {}}, "layers is of the wrong type; got {}; expected a list"),
        (
            {"layers": ["conv1"]},
            'a layer of the plan is of the wrong type; got "conv1"; expected a JSON object',
        ),
        ({"layers": [{**ROW, "rank": 4.5}]}, "layer conv1 of the plan: rank is of the wrong type; got 4.5"),
        ({"layers": [{**ROW, "rank": True}]}, "rank is of the wrong type; got true"),
        ({"layers": [{**ROW, "bits": [4, "4"]}]}, "bits is of the wrong type; .*whole numbers only"),
        (
            {"layers": [{**ROW, "bits": "4"}]},
            'bits is of the wrong type; got "4"; expected a whole number or',
        ),
        ({"layers": [{"name": "conv1"}]}, "layer conv1 of the plan lacks fields; got no structure"),
        (
            {"layers": [{**ROW, "colour": 1}]},
            "unknown fields; got colour; expected name, structure, rank, bits",
        ),
        ({"activation_bits": 8.0}, "activation_bits is of the wrong type; got 8.0"),
        ({"options": []}, "options is of the wrong type"),
        ({"seed": None}, "seed is of the wrong type; got null"),
        ({"plan": 1}, "the plan has unknown fields; got plan"),
    ],
)
def test_damaged_plans_are_refused_in_words(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        Plan.from_dict({**GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff\xfe\x00", "nothing"])
def test_text_that_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(PlanError, match="the plan is not valid JSON"):
        Plan.from_json(text)


@pytest.mark.parametrize("data", [None, [], 3, "plan", {"layers": []}, {"model": "m"}])
def test_json_that_is_no_plan_is_refused(data: Any) -> None:
    with pytest.raises(PlanError):
        Plan.from_dict(data)


def test_a_row_is_found_by_name() -> None:
    plan = Plan.from_dict(GOOD)
    assert plan.layer("conv1").rank == 4
    with pytest.raises(PlanError, match="no such layer; got conv2; expected conv1"):
        plan.layer("conv2")


def test_long_values_and_lists_are_cut_short() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_dict({**GOOD, "model": ["x"] * 100})
    assert len(str(caught.value)) < 200
    many = Plan(model="m", layers=tuple(LayerPlan(name=f"l{i}", structure="keep") for i in range(50)))
    with pytest.raises(PlanError, match="l0, l1, l2, l3, l4 and 45 more"):
        many.layer("x")
