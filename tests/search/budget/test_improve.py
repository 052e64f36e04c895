"""Plans around an exact choice: harms are scaled by what each layer does among the others."""

from collections.abc import Mapping, Sequence

from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.pipeline.events import Progress
from qaf_core.search.budget.allocate import Allocation, Choice, Limit, allocate
from qaf_core.search.budget.improve import improve
from qaf_core.search.sensitivity.settings import Setting

TRUE = {"a": 4.0, "b": 0.25}  # times what is expected


class Rehearsal:
    """Stands for a network in which layer a does far more harm than expected, and b far less."""

    def rehearse(self, plan: Plan, *, without: str | None = None) -> float:
        return sum(TRUE[row.name] * harm(row) for row in plan.layers if row.name != without)


def harm(row: LayerPlan) -> float:
    assert isinstance(row.bits, int)
    return float(4.0 ** (4 - row.bits))


def choices() -> dict[str, list[Choice]]:
    rows = {name: [LayerPlan(name=name, structure="dense", bits=b) for b in (2, 3, 4, 5, 6)] for name in "ab"}
    return {
        name: [
            Choice(
                setting=Setting(row=row, harm=harm(row), size_bytes=int(row.bits or 0), bops=1),  # type: ignore[call-overload]
                costs={"size": float(row.bits or 0)},  # type: ignore[arg-type]
            )
            for row in found
        ]
        for name, found in rows.items()
    }


def choose(found: Mapping[str, Sequence[Choice]]) -> Allocation:
    return allocate(found, [Limit(name="size", limit=8.0, fixed=0.0, text="size=8B")])


def plan_of(allocation: Allocation) -> Plan:
    return Plan(model="m", layers=tuple(row.row for row in allocation.settings.values()))


def test_bits_go_where_the_harm_truly_is() -> None:
    first = choose(choices())
    assert [row.row.bits for row in first.settings.values()] == [4, 4]
    steps = improve(Rehearsal(), choices(), first, plan_of, choose, Progress(), seconds=60.0)  # type: ignore[arg-type]
    assert [row.bits for row in steps[0].plan.layers] in ([5, 3], [6, 2])
    assert steps[0].divergence == min(step.divergence for step in steps)
    assert steps[0].divergence < Rehearsal().rehearse(plan_of(first))


def test_out_of_time_the_first_choice_stands() -> None:
    first = choose(choices())
    (only,) = improve(Rehearsal(), choices(), first, plan_of, choose, Progress(), seconds=-1.0)  # type: ignore[arg-type]
    assert only.plan == plan_of(first)
