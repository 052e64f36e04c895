"""Large scripts that a page will need, named with the page: browsers then load them while it is drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPTS = Path(st.__file__).resolve().parent / "static" / "static" / "js"
CHARTS, TABLES = "PlotlyChart.*.js", "DataFrame.*.js"
_IMPORTED = re.compile(r'\b(?:from|import)"\./([\w.-]+\.js)"')
_NAMED = re.compile(r'"\./static/js/([\w.-]+\.js)"')
HEAD = 16_384  # characters of a script, where its imports stand
NEEDED = {
    "tradeoffs": (CHARTS, TABLES),
    "run": (CHARTS, TABLES),
    "live": (CHARTS, TABLES),
    "compare": (CHARTS, TABLES),
    "layers": (CHARTS, TABLES),
    "export": (CHARTS, TABLES),
    "decide": (CHARTS,),
}


class EarlyScripts:
    """ASGI middleware that names the scripts of a page, and what they import, in its ``Link`` header.

    Streamlit's page asks for a script once it is to draw with it, which is after its own scripts have run,
    its websocket stands and the page's Python has come so far; charts wait for 4.7 MB from then on, tables
    for some thirty small files.

    Args:
        app: What answers.
        folder: Where Streamlit's scripts lie; their names hold a digest.
    """

    def __init__(self, app: ASGIApp, folder: Path = SCRIPTS) -> None:
        self._app = app
        known = folder.parent.parent / "index.html"
        asked = set(_NAMED.findall(known.read_text(encoding="utf-8"))) if known.is_file() else set()
        self._links = {
            page: ", ".join(
                f"</static/js/{name}>; rel=modulepreload; crossorigin"
                for name in _with_imports(folder, patterns)
                if name not in asked
            )
            for page, patterns in NEEDED.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through; the answer to one for a page with charts names its scripts."""
        links = self._links.get(scope["path"].strip("/")) if scope["type"] == "http" else None

        async def send_with_links(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("link", links or "")
            await send(message)

        await self._app(scope, receive, send_with_links if links else send)


def _with_imports(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The scripts of some patterns and all that they import, each once."""
    names = [path.name for pattern in patterns for path in sorted(folder.glob(pattern))]
    for name in names:  # grows
        with (folder / name).open(encoding="utf-8") as file:
            text = file.read(HEAD)
        names += [
            other
            for other in dict.fromkeys(_IMPORTED.findall(text))
            if other not in names and (folder / other).is_file()
        ]
    return names
