import json

import pytest

from qaf_core.cli.text import print_costs, print_images, print_json, print_table


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


def test_how_images_were_split_and_the_first_of_those_left_out_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    skipped = [{"name": f"{number}.png", "reason": "cut off"} for number in range(5)]
    print_images({"split": "5 images calibrate.", "skipped": skipped, "skipped_count": 1207})
    assert capsys.readouterr().out.splitlines() == [
        "images: 5 images calibrate.",
        "1,207 images are left out, unreadable: 0.png (cut off), 1.png (cut off), 2.png (cut off)"
        " and 1,204 more",
    ]
    print_images({"split": "", "skipped": [], "skipped_count": 0})
    print_images({})
    assert capsys.readouterr().out == ""
