"""The gate alone, over ASGI; a real server stands in tests/cli/test_app.py."""

import asyncio
from typing import Any

import pytest

from dashboard.gate import MOST_TRIES, Gate

TOKEN = "the-token"


async def inside(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(gate: Gate, path: str = "/", query: str = "", client: str = "192.0.2.9", **headers: str) -> Any:
    """Status and headers of the answer; ``host`` is the server's own unless given."""
    told = {"host": "localhost:8501", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": query.encode(), "scheme": "http",
        "server": ("127.0.0.1", 8501), "client": (client, 1),
        "headers": [(name.encode(), value.encode()) for name, value in told.items() if value],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    asyncio.run(gate(scope, receive, send))  # type: ignore[arg-type]
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def gate(host: str = "127.0.0.1", token: str | None = None) -> Gate:
    return Gate(inside, host=host, port=8501, token=token)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "named", "status"),
    [
        ("127.0.0.1", "LOCALHOST:8501", 200),
        ("127.0.0.1", "[::1]", 200),
        ("127.0.0.1", "192.0.2.1:8501", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "evil.example@localhost", 403),
        ("127.0.0.1", "", 403),
        ("bench.example", "bench.example:8501", 200),
        ("0.0.0.0", "192.0.2.1:8501", 200),
        ("0.0.0.0", "evil.example:8501", 403),
    ],
)
def test_hosts(host: str, named: str, status: int) -> None:
    assert ask(gate(host), host=named)[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:8501"}, 200),
        ({"origin": "https://localhost:8501"}, 200),  # behind something that speaks TLS
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://127.0.0.1:8501"}, 403),
        ({"origin": "null"}, 403),
        ({"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"}, 200),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 200),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
    ],
)
def test_pages_of_others(headers: dict[str, str], status: int) -> None:
    assert ask(gate(), **headers)[0] == status


def test_the_token_opens_once_and_the_cookie_from_then_on() -> None:
    door = gate(token=TOKEN)
    assert ask(door)[0] == 401
    status, headers = ask(door, "//evil.example/", f"token={TOKEN}&run=a%26b")
    assert (status, headers["location"]) == (303, "/evil.example/?run=a%26b")
    assert "HttpOnly" in headers["set-cookie"]
    cookie = headers["set-cookie"].split(";")[0]
    assert ask(door, cookie=cookie)[0] == 200
    assert ask(gate(token=TOKEN), cookie=cookie)[0] == 401, "of another server"


def test_who_guesses_must_wait() -> None:
    door = gate(token=TOKEN)
    assert [ask(door, query="token=x")[0] for _ in range(MOST_TRIES)] == [401] * MOST_TRIES
    assert ask(door, query=f"token={TOKEN}")[0] == 429
    assert ask(door, query=f"token={TOKEN}", client="192.0.2.10")[0] == 303, "others need not"
