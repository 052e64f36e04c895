"""In a real browser: five runs beside each other, a target and who passes it, deletion and its undoing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store
from tests.browsing import serve_pages, settle
from tests.conftest import seed_finished_run

Served = tuple[str, list[str], Path]
TICK = {"x": 20, "y": 52}  # of the first row, in the table's canvas


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The dashboard over five finished runs: its address, the runs and the workspace."""
    folder = tmp_path_factory.mktemp("compare")
    runs = (("joint", 2.0, 0.921), ("joint", 3.0, 0.897), ("paper", 2.0, 0.842), ("sequential", 2.0, 0.9),
            ("dense", 1.0, 0.931))  # fmt: skip
    with Store(folder / "workspace") as store:
        ids = [seed_finished_run(store, method=how, ratio=ratio, value=value) for how, ratio, value in runs]
    with serve_pages(folder / "workspace") as address:
        yield address, ids, folder / "workspace"


def test_five_runs_stand_beside_each_other_by_their_address(page: Any, served: Served) -> None:
    address, ids, _ = served
    page.goto(f"{address}/compare?{'&'.join(f'run={run_id}' for run_id in ids)}")
    page.locator(".qaf-table").nth(1).wait_for()
    settle(page)
    heads = page.locator(".qaf-table").first.locator("th").all_inner_texts()
    assert heads[2:] == ["joint 2", "joint 3", "paper 2", "sequential 2", "dense 1"]
    page.get_by_role("radio", name="Errors").click()
    page.get_by_text("joint 2: outputs").wait_for()
    page.wait_for_url(re.compile("what=errors"))
    page.reload()
    page.get_by_text("joint 2: outputs").wait_for()
    assert page.locator(".qaf-table td.changed").count() > 5


def test_a_typed_target_says_who_passes_and_stays_in_the_address(page: Any, served: Served) -> None:
    address, _, _ = served
    page.goto(f"{address}/tradeoffs")
    box = page.get_by_label("Target", exact=True)
    box.fill("≥ 92 %, ≤ 80 kB")
    box.press("Enter")
    said = page.get_by_text("1 of 5 runs keep to: Accuracy ≥ 92.0 % · Size of the packed file ≤ 80 kB.")
    said.wait_for()
    page.wait_for_url(re.compile("target="))
    page.reload()
    said.wait_for()
    settle(page)
    shapes = page.locator(".js-plotly-plot .shapelayer path, .js-plotly-plot .layer-below path")
    shapes.nth(1).wait_for(state="attached")
    page.goto(f"{address}/tradeoffs?target={quote('≤ 5 parsecs')}")
    page.get_by_text("this part of the target cannot be read").wait_for()


def test_a_drawn_box_becomes_the_target_and_a_click_opens_a_run_where_none_is_drawn(
    page: Any, served: Served
) -> None:
    address, ids, _ = served
    page.goto(f"{address}/tradeoffs")
    chart = page.locator(".js-plotly-plot").first
    chart.wait_for()
    page.get_by_text("Click a point to open its run").wait_for()
    page.get_by_text("Draw the target").click()
    page.get_by_text("Click a point to open its run").wait_for(state="detached")
    settle(page)
    plot = chart.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(plot["x"] + 20, plot["y"] + 20)
    page.mouse.down()
    page.mouse.move(plot["x"] + 200, plot["y"] + 100, steps=6)
    page.mouse.up()
    page.get_by_text("runs keep to: Size of the packed file").wait_for()
    settle(page)
    assert re.fullmatch(r"≤ .* kB, ≥ .* %", page.get_by_label("Target", exact=True).input_value())
    page.get_by_text("Draw the target").click()
    settle(page)
    point = chart.locator(".scatterlayer .points path.point").first.bounding_box()
    page.mouse.click(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_url(re.compile("run=(" + "|".join(ids) + ")"))


def test_a_front_takes_two_clicks_and_is_found_again(page: Any, served: Served) -> None:
    address, _, workspace = served
    page.goto(f"{address}/explore")
    page.get_by_text("Best plan under a budget").wait_for()
    settle(page)
    page.get_by_text("Best plan under a budget").click()
    page.get_by_role("button", name="Measure a front").click()
    page.get_by_text("0 of 10 searches are done").wait_for()
    with Store(workspace) as store:
        assert store.count_queued("heavy") == 10
    page.wait_for_url(re.compile("front-"))
    page.reload()
    page.get_by_text("Best plan under a budget").wait_for()
    settle(page)
    page.get_by_text("Best plan under a budget").click()
    page.get_by_role("button", name="Stop the front").click()
    page.get_by_text("10 of 10 searches are done").wait_for()


def test_which_runs_pass_takes_three_actions(page: Any, served: Served) -> None:
    page.goto(f"{served[0]}/start")
    page.get_by_role("link", name="Trade-offs", exact=True).first.click()
    page.get_by_label("Target", exact=True).fill("≥ 92 %, ≤ 80 kB")
    page.keyboard.press("Enter")
    page.get_by_text("1 of 5 runs keep to").wait_for()


def test_a_typed_tag_is_saved_by_the_next_click(page: Any, served: Served) -> None:
    address, _, workspace = served
    page.goto(f"{address}/run")
    page.get_by_test_id("stDataFrame").wait_for()
    settle(page)
    page.get_by_test_id("stDataFrame").first.click(position=TICK, force=True)
    page.get_by_role("button", name="Tags").click()
    box = page.get_by_test_id("stPopoverBody")
    box.get_by_role("combobox").fill("for the line")
    page.keyboard.press("Enter")
    box.get_by_role("button", name="Save").click(timeout=10_000)
    settle(page)
    with Store(workspace) as store:
        assert [row.tags for row in list_rows(store) if row.tags] == [("for the line",)]


def test_runs_are_deleted_and_brought_back(page: Any, served: Served) -> None:
    address, ids, workspace = served
    page.goto(f"{address}/run")
    page.get_by_test_id("stDataFrame").wait_for()
    settle(page)
    page.get_by_test_id("stDataFrame").first.click(position=TICK, force=True)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("1 run was deleted").wait_for()
    with Store(workspace) as store:
        assert len(list_rows(store)) == len(ids) - 1
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("1 run was deleted").wait_for(state="detached")
    settle(page)
    with Store(workspace) as store:
        assert {row.id for row in list_rows(store)} == set(ids)
