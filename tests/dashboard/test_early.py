"""Scripts that a page will need, named with it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dashboard.early import CHARTS, NEEDED, SCRIPTS, EarlyScripts


def links(path: str, kind: str = "text/html; charset=utf-8") -> str:
    async def inside(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    asyncio.run(EarlyScripts(inside)(scope, None, send))  # type: ignore[arg-type]
    return dict(sent[0]["headers"]).get(b"link", b"").decode()


@pytest.mark.parametrize("page", NEEDED)
def test_a_page_with_charts_names_the_script_that_draws_them(page: str) -> None:
    (script,) = SCRIPTS.glob(CHARTS)
    assert f"</static/js/{script.name}>; rel=modulepreload" in links(f"/{page}")


def test_other_pages_and_other_answers_name_none() -> None:
    assert links("/glossary") == links("/") == links("/tradeoffs", "text/plain") == ""


def test_a_streamlit_without_such_scripts_is_served_as_it_is(tmp_path: Path) -> None:
    gate = EarlyScripts(None, tmp_path)  # type: ignore[arg-type]
    assert not any(gate._links.values())


def test_what_a_script_imports_is_named_but_for_what_the_page_asks_for_itself(tmp_path: Path) -> None:
    folder = tmp_path / "static" / "js"
    folder.mkdir(parents=True)
    (tmp_path / "index.html").write_text('<script src="./static/js/index.1.js"></script>')
    (folder / "PlotlyChart.1.js").write_text('import{t as e}from"./index.1.js";import"./moment.2.js";e(1)')
    (folder / "moment.2.js").write_text('import{a}from"./PlotlyChart.1.js"')
    (folder / "index.1.js").write_text("")
    named = EarlyScripts(None, folder)._links["decide"]  # type: ignore[arg-type]
    assert [part.split(">")[0] for part in named.split(", ")] == [
        "</static/js/PlotlyChart.1.js", "</static/js/moment.2.js"
    ]  # fmt: skip
