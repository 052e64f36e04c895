"""In a real browser: links to runs of every kind, on every page, show that run or say why they do not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.browsing import settle

GONE = "There is no run {run} in this workspace"
MISSING = "The model my/gone is not in this workspace"
# The seeded plan has five of the model's twenty layers.
OTHER_LAYERS = "The earlier plan names other layers than this model has"
SAID = {
    "unknown": (GONE, GONE, GONE, GONE),
    "deleted": (GONE, GONE, GONE, GONE),
    "interrupted": ("ended before it was done", "was interrupted", "was interrupted", OTHER_LAYERS),
    "queued": ("Waiting to start", "has not started yet", "has not started yet", OTHER_LAYERS),
    "stopped": (
        "of 5 layers, 2 layers were compressed",
        "2 of 5 layers are",
        "2 of 5 layers are",
        OTHER_LAYERS,
    ),
    "foreign": ("Against the original", "Error of each layer", MISSING, MISSING),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_link_shows_its_run_or_says_why_not(
    page: Any, served: tuple[str, dict[str, str]], kind: str
) -> None:
    address, ids = served
    for name, said in zip(("run", "layers", "export", "explore"), SAID[kind], strict=True):
        page.goto(f"{address}/{name}?run={ids[kind]}")
        page.get_by_text(said.format(run=ids[kind])).first.wait_for()
        settle(page)
        downloads = page.get_by_test_id("stDownloadButton")
        offered = 1 if name == "export" and kind in ("stopped", "foreign") else 0
        if offered:
            downloads.first.wait_for()
        assert downloads.count() == offered, (name, kind)
        if name == "layers":
            charts = page.locator(".js-plotly-plot")
            if kind in ("stopped", "foreign"):
                charts.first.wait_for()
            else:
                assert charts.count() == 0, kind
        if kind == "foreign":
            for label in ("Make and check it", "Measure", "Make the kit", "Start fine-tuning"):
                assert page.get_by_role("button", name=label, exact=True).count() == 0, (name, label)
    page.goto(f"{address}/tradeoffs?model=no/such")
    page.get_by_text("No run of no/such has been measured").wait_for()


def test_the_run_it_began_with_changes_the_address(page: Any, served: tuple[str, dict[str, str]]) -> None:
    address, ids = served
    page.goto(f"{address}/run?run={ids['finetuned']}")
    page.get_by_role("button", name="The run it began with").click()
    page.wait_for_url(re.compile(rf"run={ids['finished']}"))
    page.reload()
    page.get_by_role("heading", name="joint 2").wait_for()
