"""At 1024 × 768 and on paper: what must be in sight is, tables are whole, sections open."""

from __future__ import annotations

from typing import Any

from tests.browsing import settle

SMALL = {"width": 1024, "height": 768}


def at_once(page: Any, address: str) -> None:
    page.set_viewport_size(SMALL)
    page.goto(address)
    settle(page)


def test_savings_and_run_are_in_sight_without_scrolling(
    page: Any, served: tuple[str, dict[str, str]]
) -> None:
    at_once(page, f"{served[0]}/explore")
    bar = page.locator(".st-key-savings")
    bar.wait_for()
    run = page.get_by_role("button", name="Run", exact=True)
    for place in (bar.get_by_test_id("stMetric").first, run, bar.get_by_text("Thorough", exact=True)):
        place.wait_for()
        settle(page)
        box = place.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= SMALL["height"]
    quick, thorough = (bar.get_by_text(word, exact=True) for word in ("Quick", "Thorough"))
    assert quick.bounding_box()["y"] == thorough.bounding_box()["y"], "the dial wraps"
    page.mouse.move(500, 400)
    page.mouse.wheel(0, 3000)
    page.wait_for_timeout(300)
    assert run.bounding_box()["y"] + run.bounding_box()["height"] <= SMALL["height"]


def test_plain_words_and_the_glossary_are_a_click_away(page: Any, served: tuple[str, dict[str, str]]) -> None:
    address, ids = served
    at_once(page, f"{address}/run?run={ids['finished']}")
    page.get_by_test_id("stExpandSidebarButton").click()
    page.get_by_text("Plain words", exact=True).click()
    page.get_by_text("How far each layer's numbers moved").wait_for()
    page.wait_for_url("**plain=True**")
    page.get_by_role("link", name="Glossary").click()
    page.locator(".qaf-terms dt", has_text="ADMM").wait_for()


def test_on_paper_sections_are_open_and_tables_whole(page: Any, served: tuple[str, dict[str, str]]) -> None:
    address, ids = served
    at_once(page, f"{address}/run?run={ids['finished']}")
    page.emulate_media(media="print")
    try:
        tables = page.locator(".qaf-printed table")
        assert tables.count() >= 2
        assert all(table.is_visible() for table in tables.all())
        assert page.locator("[data-testid=stHeader]").is_hidden()
        assert page.locator("[data-testid=stDataFrame]").first.is_hidden()
        room = page.locator("[data-testid=stElementContainer]:has([data-testid=stDataFrame])").first
        assert room.is_hidden(), "a gap where the table was"
        assert page.get_by_text("Time in all").is_visible()
    finally:
        page.emulate_media(media="screen")
    assert page.locator(".qaf-printed").first.is_hidden()


def test_all_runs_that_are_compared_are_in_sight(page: Any, served: tuple[str, dict[str, str]]) -> None:
    address, ids = served
    runs = "&".join(f"run={ids[name]}" for name in ("finished", "stopped", "finetuned"))
    at_once(page, f"{address}/compare?{runs}")
    chips = page.get_by_test_id("stMultiSelectTagsContainer")
    chips.wait_for()
    page.set_viewport_size({"width": 500, "height": 768})  # one a line
    page.wait_for_timeout(300)
    tall = "e => [e.scrollHeight, e.clientHeight]"
    needed, shown = chips.evaluate(tall)
    assert needed <= shown + 1


def test_the_arrow_of_an_empty_page_is_as_small_as_its_words(
    page: Any, served: tuple[str, dict[str, str]]
) -> None:
    at_once(page, f"{served[0]}/layers?run={served[1]['queued']}")
    size = page.evaluate(
        "() => { const box = document.createElement('div'); box.className = 'st-key-empty-state';"
        " box.innerHTML = '<button><span data-testid=\"stIconMaterial\">x</span></button>';"
        " document.querySelector('.stApp').append(box);"
        " return parseFloat(getComputedStyle(box.querySelector('span')).fontSize) }"
    )
    assert size < 24
