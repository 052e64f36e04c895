"""In a real browser: pages are restored from their addresses; typed values are kept, undone, found again."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.browsing import settle

MODEL = "model=inspection%2Fresnet20"
EXPLORE = "ratio=3.1&bits=6&method=sequential&structure=svd&size=60"
PAGES = {  # with what shows that it is that page
    "models?model=inspection%2Fvgg&colour=bops": "h3:has-text('VGG')",
    f"explore?model=digits%2Fcnn&{EXPLORE}": ".st-key-chosen-sequential",
    "run?run={finished}": "text=Against the original",
    "layers?run={finished}&second={stopped}&layer=layer2.0.conv1": "text=Inside a layer",
    "export?run={finished}&batch=4": "input[aria-label='Images at once'][value='4']",
    "decide?run={finished}&part=risks": "text=Risks and plan",
    "run?run={finished}&minutes=30&trains=scales": "text=Against the original",
    "run?find=tuned": "input[aria-label='Search'][value='tuned']",
    f"tradeoffs?{MODEL}&target=%E2%89%A4+80+kB&reference={{finished}}&y=size_bytes&group=tag": "text=keep to",
    f"tradeoffs?{MODEL}&chart=lines": ".js-plotly-plot",
    "compare?run={finished}&run={finetuned}&what=errors&sort=output": "td:has-text('layer1.0.conv1')",
    "start?step=2": "h3:has-text('What compression does')",
    "glossary?find=rank": ".qaf-terms dt:has-text('Rank')",
    "explore?model=digits%2Fcnn&ratio=3.1&lang=ja": "h2:has-text('圧縮設定')",
}
RANKS = [str(rank) for rank in range(21, 29)]


@contextmanager
def busy_processors() -> Iterator[None]:
    """Four processes that do nothing but count, as runs at work would."""
    command = [sys.executable, "-c", "while True: pass"]
    at_work = [subprocess.Popen(command) for _one in range(4)]
    try:
        yield
    finally:
        for process in at_work:
            process.kill()
            process.wait()


def query(view: Any) -> list[str]:
    return sorted(str(view.url).partition("?")[2].split("&"))


@pytest.mark.parametrize(("asked", "sign"), PAGES.items())
def test_a_page_is_restored_from_its_address(
    page: Any,
    served: tuple[str, dict[str, str]],
    asked: str,
    sign: str,
) -> None:
    address, ids = served
    asked = asked.format(**ids)
    named, shows = sorted(asked.partition("?")[2].split("&")), page.locator(sign).first

    def assert_restored() -> None:
        shows.wait_for()
        settle(page)
        assert query(page) == named
        assert page.get_by_text("not known here").count() == 0

    page.goto(f"{address}/{asked}")
    assert_restored()
    page.goto(f"{address}/models")
    page.get_by_text("Add your own").wait_for()
    page.go_back()
    assert_restored()
    page.reload()
    assert_restored()


def test_a_click_in_the_graph_chooses_a_layer(page: Any, served: tuple[str, dict[str, str]]) -> None:
    address, ids = served
    page.goto(f"{address}/layers?run={ids['finished']}&layer=layer2.0.conv1")
    nodes = page.locator("[data-testid=stGraphVizChart] g.node")
    nodes.first.wait_for()
    settle(page)
    assert nodes.count() == 31
    marked = page.locator("g.node", has=page.locator("[stroke-width='3']"))
    assert marked.count() == 1
    nodes.filter(has_text="conv2").first.click()
    page.wait_for_url(re.compile("layer=layer1.0.conv2"))
    settle(page)
    assert marked.filter(has_text="conv2").count() == 1


def test_back_and_forth_through_changes_of_one_page(
    page: Any,
    served: tuple[str, dict[str, str]],
) -> None:
    page.goto(f"{served[0]}/live")
    page.wait_for_url("**/run")
    page.goto(f"{served[0]}/explore?model=digits%2Fcnn")
    page.get_by_role("button", name="Sequential").wait_for()
    settle(page)
    page.get_by_role("button", name="Sequential").click()
    page.wait_for_url(re.compile("method=sequential"))
    page.get_by_role("button", name="Paper", exact=True).click()
    page.wait_for_url(re.compile("method=paper"))
    settle(page)
    page.go_back()
    page.locator(".st-key-chosen-sequential").wait_for()
    page.go_back()
    page.locator(".st-key-chosen-joint").wait_for()
    settle(page)
    page.go_forward()
    page.locator(".st-key-chosen-sequential").wait_for()
    assert "method=sequential" in page.url


def test_what_a_page_writes_into_its_address_by_itself_is_no_step(
    page: Any,
    served: tuple[str, dict[str, str]],
) -> None:
    page.goto(f"{served[0]}/models")
    page.get_by_text("Add your own").wait_for()
    settle(page)
    for name in ("Trade-offs", "Layers", "Decide"):
        page.get_by_role("link", name=name, exact=True).first.click()
        page.wait_for_url(re.compile(f"{name.lower().replace('-', '')}[?](run|model)="))
        settle(page)
    for name in ("layers", "tradeoffs"):
        page.go_back()
        page.wait_for_url(re.compile(f"/{name}[?]"))
        settle(page)
    page.go_back()
    page.wait_for_url("**/models")


def test_a_typed_column_is_kept_undone_and_found_again(
    page: Any,
    served: tuple[str, dict[str, str]],
) -> None:
    page.goto(f"{served[0]}/explore")
    first = page.get_by_label("Rank, layer1.0.conv1", exact=True)
    first.wait_for()
    settle(page)
    cells = page.locator("td.rank input")

    def ranks() -> list[str]:
        settle(page)
        return [cells.nth(1 + place).input_value() for place in range(len(RANKS))]

    before = ranks()
    with busy_processors():
        first.click()
        for rank in RANKS:
            for sign in rank:
                page.keyboard.press(sign)
                page.wait_for_timeout(50)
            page.keyboard.press("Enter")
            page.wait_for_timeout(50)
        page.get_by_text("Custom").first.wait_for()
    page.wait_for_url(re.compile("plan="))
    assert ranks() == RANKS

    # What cannot be survives another page; then all is taken back, and made again.
    page.get_by_label("Bits, layer1.0.conv1", exact=True).fill("nine")
    page.keyboard.press("Enter")
    page.get_by_text("These rows cannot be used as they are").wait_for()
    page.get_by_role("link", name="Models").first.click()
    page.get_by_text("Add your own").wait_for()
    page.get_by_role("link", name="Explore").first.click()
    page.get_by_text("These rows cannot be used as they are").wait_for()
    assert ranks() == RANKS
    page.get_by_role("button", name="Aggressive").click()
    page.get_by_text("What you typed into the table was replaced").wait_for()
    page.get_by_text("These rows cannot be used as they are").wait_for(state="detached")
    settle(page)
    page.keyboard.press("Control+z")
    page.get_by_text("These rows cannot be used as they are").wait_for()
    assert ranks() == RANKS
    undo = page.get_by_role("button", name="Undo")
    while undo.is_enabled():
        undo.click()
        settle(page)
    assert ranks() == before
    page.keyboard.press("Control+Shift+z")
    page.wait_for_url(re.compile("plan="))
    page.reload()
    first.wait_for()
    assert ranks() != before
