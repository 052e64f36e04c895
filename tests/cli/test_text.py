import json

import pytest

from qaf_core.cli.text import print_costs, print_json, print_table


def test_json_holds_no_numbers_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.5, float("nan")], "b": {"c": float("inf")}, "d": (1, "x")})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None], "b": {"c": None}, "d": [1, "x"]}


def test_tables_are_as_wide_as_their_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a", "long header"), [("wide cell", "1")])
    assert capsys.readouterr().out.splitlines() == ["a          long header", "wide cell  1"]


def test_costs_carry_units(capsys: pytest.CaptureFixture[str]) -> None:
    before = {"params": 2_000_000, "size_bytes": 8_000_000, "macs": 3e9, "bops": 3.1e12}
    print_costs(before, {key: value / 4 for key, value in before.items()})
    out = capsys.readouterr().out
    assert "8 MB" in out
    assert "750 MMACs" in out
    assert "4×" in out
