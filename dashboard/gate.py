"""Who may come in: requests to this server's own names, from its own pages, with its token if it has one.

A page of another site may send requests here from the user's browser, under a name of its own that it points
to this machine (DNS rebinding), or straight to ``localhost``: the first shows in ``Host``, the second in
``Origin`` or ``Sec-Fetch-Site``. Streamlit's own checks cover its websocket alone.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
import time
from collections import deque
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("", "0.0.0.0", "::")
MOST_TRIES, TRIES_SECONDS, MOST_CLIENTS = 10, 60.0, 10_000
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
_TOKEN_PAGE = """<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<title>QAF Workbench</title>
<form style="font:16px sans-serif;max-width:32em;margin:20vh auto">
<p>{message}</p>
<p><label>Token <input name="token" type="password" autofocus autocomplete="off"></label>
<button>Go in</button>
</form>"""


class Gate:
    """ASGI middleware in front of everything the dashboard serves.

    Args:
        app: What is behind the gate.
        host: Address the server listens on; with one for all of the machine's, its addresses and its own name
            are known as the server's.
        port: Cookies of servers on other ports are not taken for this one's.
        token: What a browser must show once; None to let everyone in who reaches the server.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str | None) -> None:
        self._app, self._token = app, token
        self._names = {*LOOPBACK_NAMES, host.lower()}
        self._any_address = host in WILDCARDS
        if self._any_address:
            self._names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self._cookie, self._pass = f"qaf-{port}", secrets.token_urlsafe(32)
        self._wrong: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        inside = self._app
        if scope["type"] in ("http", "websocket"):
            request = HTTPConnection(scope)
            if not self._is_ours(request):
                inside = PlainTextResponse("This server answers to its own names and pages.", 403)
            elif self._token is not None and not self._is_known(request):
                inside = self._ask(request, self._token)
        if inside is not self._app and scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # before it is accepted: 403
        else:
            await inside(scope, receive, send)

    def _is_ours(self, request: HTTPConnection) -> bool:
        hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
        match = _HOST.fullmatch(hosts[0].lower()) if len(hosts) == 1 else None
        if match is None or not self._is_name(match[1].strip("[]")):
            return False
        own = {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}
        return {origin.lower() for origin in origins} <= own and not _is_foreign(request)

    def _is_name(self, name: str) -> bool:
        return name in self._names or (self._any_address and _is_address(name))

    def _is_known(self, request: HTTPConnection) -> bool:
        return secrets.compare_digest(request.cookies.get(self._cookie, "").encode(), self._pass.encode())

    def _ask(self, request: HTTPConnection, token: str) -> Response:
        """Take the token, or ask for it; nothing else is told."""
        shown = request.query_params.get("token")
        client = request.client.host if request.client is not None else ""
        now = time.monotonic()
        wrong = self._wrong.setdefault(client, deque(maxlen=MOST_TRIES))
        if len(self._wrong) > MOST_CLIENTS:
            del self._wrong[next(iter(self._wrong))]
        if len(wrong) == MOST_TRIES and wrong[0] > now - TRIES_SECONDS:
            message = "Too many wrong tokens. Wait a minute, then try again."
            return _token_page(message, HTTPStatus.TOO_MANY_REQUESTS)
        if shown is None:
            return _token_page("The token is printed where <code>qaf app</code> was started.")
        if not secrets.compare_digest(shown.encode(), token.encode()):
            wrong.append(now)
            return _token_page("This is not the token that <code>qaf app</code> has printed.")
        kept = urlencode([item for item in request.query_params.multi_items() if item[0] != "token"])
        path = request.url.path.lstrip("/\\")  # two of them would lead to another server
        answer = RedirectResponse(f"/{path}" + (f"?{kept}" if kept else ""), HTTPStatus.SEE_OTHER)
        answer.set_cookie(self._cookie, self._pass, httponly=True, samesite="lax")
        return answer


def _is_foreign(request: HTTPConnection) -> bool:
    """Whether a page of another site or port asks for more than to be left for this one, as by a link."""
    site, mode = request.headers.get("sec-fetch-site"), request.headers.get("sec-fetch-mode")
    is_link = mode == "navigate" and request.headers.get("sec-fetch-dest") == "document"
    return site in ("cross-site", "same-site") and not is_link


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _token_page(message: str, status: HTTPStatus = HTTPStatus.UNAUTHORIZED) -> Response:
    return HTMLResponse(_TOKEN_PAGE.format(message=message), status)
