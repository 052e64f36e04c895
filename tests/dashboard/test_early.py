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
