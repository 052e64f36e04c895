"""In a real browser, in both languages: from the start page over the guided demo to the report as a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.guided_demo import STEPS, press
from qaf_core.text.catalogue import translator
from tests.browsing import settle

Translate = Callable[[str], str]


def open_part(page: Any, title: str, mark: str) -> None:
    """Choose a part of the decision, and wait for what stands in it."""
    page.get_by_test_id("stMain").get_by_role("radio", name=title, exact=True).click()
    page.get_by_test_id("stMain").get_by_text(mark).first.wait_for()
    settle(page)
    assert page.get_by_test_id("stException").count() == 0


def walk_the_demo(page: Any, address: str, language: str, _: Translate) -> None:
    page.goto(f"{address}/?lang={language}")
    press(page, _("Begin"), step=1)
    onward = re.compile(re.escape(_("Next: {step}").format(step="")))
    for step in range(2, STEPS + 1):
        settle(page)
        press(page, onward, step=step)
    page.get_by_text(_("Three sentences for the meeting")).wait_for()
    settle(page)
    page.get_by_role("link", name=_("See criteria, risks and the report")).click()
    page.get_by_role("heading", name=_("Decide"), exact=True).wait_for()
    settle(page)


def change_criteria(page: Any, _: Translate) -> str:
    """Add a criterion that nothing measured, or take it away again; the verdict that follows."""
    page.locator(".qaf-verdict").wait_for()
    if page.locator(".qaf-verdict.pass").count():
        page.get_by_role("button", name=_("Add a criterion")).click()
        settle(page)
        page.get_by_role("spinbutton").last.fill("0.001")
        page.get_by_role("spinbutton").last.press("Enter")
        status, banner = "open", _("Not shown yet: {name}")
    else:
        page.locator('[class*="st-key-criteria-"][class*="-gone"] button:visible').last.click()
        status, banner = "pass", _("Recommended: {name}")
    settle(page)
    page.get_by_role("button", name=_("Keep these criteria")).click()
    line = page.locator(f".qaf-verdict.{status}")
    line.wait_for()
    settle(page)
    assert line.locator("b").inner_text().startswith(banner.partition("{")[0])
    return status


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_whole_path_to_the_report(
    page: Any, served: tuple[str, dict[str, str]], language: str, tmp_path: Path
) -> None:
    _ = translator(language)
    walk_the_demo(page, served[0], language, _)
    run_id = re.search(r"run=([\w-]+)", page.url).group(1)  # type: ignore[union-attr]
    status = change_criteria(page, _)

    open_part(page, _("What changed for whom"), _("Class by class"))
    open_part(page, _("Speed, robustness, stability"), _("Stability in operation"))
    open_part(page, _("Business case"), _("Saved a month, likely"))
    open_part(page, _("Risks and plan"), _("Three sentences for the meeting"))
    open_part(page, _("Report"), _("On the command line:"))
    with page.expect_download() as waiting:
        page.get_by_role("button", name=_("Report to read and click")).click()
    waiting.value.save_as(tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<html lang="{language}">' in report
    assert run_id in report
    assert _("Decision about a compressed network") in report
    page.goto((tmp_path / "report.html").as_uri())
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert page.locator(f"h1.banner.{status}").is_visible()
