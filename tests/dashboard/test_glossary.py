"""The glossary's page, plain words on the pages, and what hovers over headings."""

from __future__ import annotations

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from dashboard.views.run import live
from dashboard.widgets import blocks, columns
from qaf_core.review.report.blocks import Table
from qaf_core.runs.store.store import Store
from qaf_core.text.glossary import GLOSSARY, meaning

from .conftest import Draw, shown
from .test_pages import run_with


def terms_on(test: AppTest) -> int:
    return sum(str(element.proto.body).count("<dt>") for element in test.get("html"))


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_term_stands_on_the_page_and_words_narrow_it(draw: Draw, language: str) -> None:
    test = draw("glossary", lang=language)
    shown(test)
    assert terms_on(test) == len(GLOSSARY)
    assert 0 < terms_on(test.text_input[0].set_value("ADMM").run()) < 4
    assert test.query_params["find"] == "ADMM"
    assert test.text_input[0].set_value("xyzzy").run().info


def test_the_sidebar_leads_to_it_and_keeps_plain_words_in_the_address(
    draw: Draw, seeded_store: Store
) -> None:
    run_id = run_with(seeded_store, "completed")
    test = draw("run", run=run_id)
    assert [link.proto.page for link in test.sidebar.get("page_link")] == ["glossary"]
    assert "Error of each layer" in shown(test)
    assert "plain" not in test.query_params
    test.sidebar.toggle[0].set_value(True).run()
    assert test.query_params["plain"] == "True"
    text = shown(test)
    assert "How far each layer's numbers moved" in text
    assert "Error of each layer" not in text
    assert "'status': {0: 'Done'" in " ".join(str(frame.value.to_dict()) for frame in test.dataframe)


def test_errors_are_said_to_be_none_of_answers(draw: Draw, seeded_store: Store) -> None:
    run = seeded_store.run(run_with(seeded_store, "completed"))
    assert run.drop is not None
    for page in ("run", "layers"):
        text = shown(draw(page, run=run.id))
        assert "These are errors of stored numbers, not of answers" in text
        assert "points." in text


def test_an_address_asks_for_plain_words_in_japanese(draw: Draw, seeded_store: Store) -> None:
    test = draw("run", run=run_with(seeded_store, "completed"), plain="True", lang="ja")
    assert "各層の重みの値の変化" in shown(test)


def test_columns_explain_their_terms_and_take_one_unit() -> None:
    frame = pd.DataFrame({"size": [26_200, None, 360_000], "time": [0.2, 12.0, None]})
    assert columns.in_units(frame, {"size": "B", "time": "ms"}) == {"size": "%.1f kB", "time": "%.2f ms"}
    assert frame["size"].tolist()[::2] == [26.2, 360.0]
    told = columns.number("Rank", "%d", "rank", "More.")
    assert told["help"] == f"{meaning('rank')} More."
    assert columns.text("Run")["help"] is None
    assert all(column["help"] for name, column in live.layer_columns().items() if name != "seconds")


def test_differences_are_shown_signed_and_sorted_as_numbers() -> None:
    frame = pd.DataFrame({"run": ["a", "b", "c"], "change": list(map(columns.points, (-0.1, 0.02, None)))})
    shown = columns._in_words(frame)
    assert shown.data["change"].map(float, na_action="ignore").tolist()[:2] == [-10.0, 2.0]
    cells = [row[2]["display_value"] for row in shown._translate(False, False)["body"]]
    assert cells == ["−10.0", "+2.0", "–"]
    printed = columns.printed(frame, {})
    assert "<td>−10.0</td>" in printed
    assert "<td>+2.0</td>" in printed


def test_headings_of_finished_tables_explain_their_terms() -> None:
    table = Table(key="t", title="", header=["Class", "Agreement"], rows=[["Rank", "Rank"]])
    html = blocks._table(table)
    assert f'title="{GLOSSARY["agreement"].meaning}"' in html
    assert html.count("title=") == 2  # of the heading and of the row's name, not of a value
