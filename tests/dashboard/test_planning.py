"""Table rows to a checked plan."""

from __future__ import annotations

import time

import pytest

from dashboard.state import plan_draft
from dashboard.state.plan_draft import DraftRow, make_draft, read_row
from qaf_core.network.plan.chains import rank_for_ratio
from qaf_core.network.plan.cost import plan_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.network.plan.types import LayerPlan, Plan

CONV = LayerInfo(
    name="conv", kind="conv2d", weight_shape=(64, 64, 3, 3), kernel=(3, 3), stride=(1, 1), padding=(1, 1),
    input_hw=(16, 16), output_hw=(16, 16), macs=64 * 64 * 9 * 256, params=64 * 64 * 9,
    structures=("cp", "tucker2", "svd", "dense", "keep"), output_elements=64 * 256,
)  # fmt: skip
LINEAR = LayerInfo(
    name="fc", kind="linear", weight_shape=(10, 64), macs=640, params=650, bias=True,
    structures=("svd", "dense", "keep"), output_elements=10,
)  # fmt: skip
INVENTORY = (CONV, LINEAR)


@pytest.fixture
def base() -> Plan:
    rows = (
        LayerPlan(name="conv", structure="cp", rank=100, bits=4),
        LayerPlan(name="fc", structure="dense", bits=8),
    )
    return Plan(model="m", layers=rows)


def test_without_edits_the_plan_is_the_base(base: Plan) -> None:
    draft = make_draft(INVENTORY, base, {}, 2.0)
    assert draft.plan == base
    assert not draft.problems


def test_edits_are_read(base: Plan) -> None:
    draft = make_draft(INVENTORY, base, {"conv": {"rank": "40", "bits": " 3 "}}, 2.0)
    assert draft.plan.layer("conv") == LayerPlan(name="conv", structure="cp", rank=40, bits=3)
    assert plan_cost(INVENTORY, draft.plan).bops < plan_cost(INVENTORY, base).bops


@pytest.mark.parametrize("text", ["12 × 24", "12x24", "12, 24", "12 24"])
def test_two_ranks_in_any_spelling(text: str) -> None:
    planned, messages = read_row(CONV, DraftRow(structure="tucker2", rank=text, bits="4"))
    assert messages == ()
    assert planned is not None
    assert planned.rank == (12, 24)


def test_a_new_structure_brings_its_rank(base: Plan) -> None:
    draft = make_draft(INVENTORY, base, {"conv": {"structure": "tucker2"}}, 3.0)
    assert draft.plan.layer("conv").rank == rank_for_ratio(CONV, "tucker2", 3.0)
    draft = make_draft(INVENTORY, base, {"conv": {"structure": "keep"}}, 3.0)
    assert draft.plan.layer("conv") == LayerPlan(name="conv", structure="keep")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"rank": "100000"}, "100000"), ({"rank": "0"}, "0"), ({"rank": "-3"}, "-3"),
        ({"rank": "many"}, "many"),
        ({"rank": "2.5"}, "2.5"), ({"rank": ""}, "rank"), ({"bits": "9"}, "9"), ({"bits": "1"}, "1"),
        ({"bits": "four"}, "four"), ({"bits": ""}, "bits"), ({"structure": "keel"}, "keel"),
        ({"bits": "4, 4"}, "3"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_said_and_not_counted(base: Plan, edit: dict[str, str], said: str) -> None:
    draft = make_draft(INVENTORY, base, {"conv": edit}, 2.0)
    assert list(draft.problems) == ["conv"]
    assert said in " ".join(draft.problems["conv"])
    assert draft.plan == base
    first, second = plan_draft.plan_rows(INVENTORY, draft, {})
    assert said in first["check"]
    assert second["check"].startswith("✓")
    assert (first["problem"], second["problem"]) == (True, False)


def test_the_table_shows_what_was_typed_and_what_follows_from_it(base: Plan) -> None:
    edits = {"conv": {"rank": "many"}, "fc": {"structure": "svd"}, "gone": {"rank": "1"}}
    rows = plan_draft.plan_rows(INVENTORY, make_draft(INVENTORY, base, edits, 2.0), {}, {"fc"})
    assert [row["rank"] for row in rows] == ["many", str(rank_for_ratio(LINEAR, "svd", 2.0))]
    assert [row["structure"] for row in rows] == ["cp", "svd"]
    assert [row["edited"] for row in rows] == [False, True]


def test_shares_add_up(base: Plan) -> None:
    rows = plan_draft.plan_rows(INVENTORY, make_draft(INVENTORY, base, {}, 2.0), {})
    for share in ("params", "bops"):
        assert sum(row[share] for row in rows) == pytest.approx(100)
    assert (rows[0]["kind"], rows[0]["shape"]) == ("conv2d 3×3", "64 → 64, 16×16")


def test_an_edit_of_a_network_like_resnet50_takes_a_fraction_of_200_ms() -> None:
    inventory = tuple(
        LayerInfo(**{**{f: getattr(CONV, f) for f in CONV.__dataclass_fields__}, "name": f"layer{i}"})
        for i in range(54)
    )
    base = plan_for_ratio(inventory, model="m", ratio=2.0, bits=4)
    started = time.perf_counter()
    draft = make_draft(inventory, base, {"layer5": {"bits": "3"}}, 2.0)
    plan_cost(inventory, draft.plan)
    plan_draft.plan_rows(inventory, draft, {})
    assert time.perf_counter() - started < 0.1
