"""Large scripts that a page will need, named with the page: browsers then load them while it is drawn."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPTS = Path(st.__file__).resolve().parent / "static" / "static" / "js"
CHARTS, TABLES = "PlotlyChart.*.js", "DataFrame.*.js"
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
    """ASGI middleware that names the scripts of a page in its ``Link`` header.

    Streamlit's page asks for a script once it is to draw with it, which is after its own scripts have run,
    its websocket stands and the page's Python has come so far; charts wait 4.7 MB from then on.

    Args:
        app: What answers.
        folder: Where Streamlit's scripts lie; their names hold a digest.
    """

    def __init__(self, app: ASGIApp, folder: Path = SCRIPTS) -> None:
        self._app = app
        names = {pattern: sorted(path.name for path in folder.glob(pattern)) for pattern in (CHARTS, TABLES)}
        self._links = {
            page: ", ".join(
                f"</static/js/{name}>; rel=modulepreload; crossorigin"
                for pattern in patterns
                for name in names[pattern]
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
