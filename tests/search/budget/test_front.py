"""The expected front: no plan of its sizes harms less, and it is read between its points."""

import itertools

import pytest

from qaf_core.network.plan.types import LayerPlan
from qaf_core.search.budget.front import expected_front, harm_at_size
from qaf_core.search.sensitivity.settings import Setting, harm_together

HARMS = {8: 0.0001, 4: 0.01, 3: 0.1, 2: 1.0}


def settings() -> dict[str, list[Setting]]:
    return {
        name: [
            Setting(
                row=LayerPlan(name=name, structure="dense", bits=bits), harm=factor * harm,
                size_bytes=100 * bits, bops=1,
            )
            for bits, harm in HARMS.items()
        ]
        for name, factor in (("a", 1.0), ("b", 0.1), ("c", 3.0))
    }  # fmt: skip


def test_no_plan_of_as_many_bytes_harms_less() -> None:
    found = settings()
    front = expected_front(found)
    assert [point.size_bytes for point in front] == sorted({point.size_bytes for point in front})
    assert [point.harm for point in front] == sorted((point.harm for point in front), reverse=True)
    assert (front[0].size_bytes, front[-1].size_bytes) == (600, 2400)
    for rows in itertools.product(*found.values()):
        size, harm = sum(row.size_bytes for row in rows), harm_together(row.harm for row in rows)
        assert all(point.harm <= harm + 1e-12 for point in front if point.size_bytes >= size)


def test_harm_is_read_between_points_and_not_below_them() -> None:
    front = expected_front(settings())
    assert harm_at_size(front, 599) is None
    assert harm_at_size(front, 600) == pytest.approx(front[0].harm)
    between = harm_at_size(front, (front[0].size_bytes + front[1].size_bytes) / 2)
    assert between is not None
    assert front[1].harm < between < front[0].harm
    assert harm_at_size(front, 10_000) == pytest.approx(front[-1].harm)
