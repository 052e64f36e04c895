import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email.message import Message
from pathlib import Path

import pytest

from dashboard.serve import server_options
from qaf_core.cli.app import check_port, is_loopback
from qaf_core.cli.entry import main
from qaf_core.errors import WorkspaceError
from qaf_core.runs.store.store import Store


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_busy_port_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], workspace: Path, busy_port: int
) -> None:
    assert main(["app", "--port", str(busy_port), "--no-browser"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert f"port {busy_port}" in line
    assert f"--port {busy_port + 1}" in line
    assert not workspace.exists(), "nothing was started"


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(WorkspaceError, match="192.0.2.1 cannot be used"):
        check_port("192.0.2.1", 8501)
    with pytest.raises(WorkspaceError, match="cannot be used"):
        check_port("no such host", 8501)


def test_ports_out_of_range_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--port", "70000"]) == 2
    assert "--port" in capsys.readouterr().err


def test_the_server_makes_no_outside_connection() -> None:
    options = server_options("127.0.0.1", 8501)
    assert options["browser.gatherUsageStats"] is False
    assert options["logger.hideWelcomeMessage"] is True
    assert options["server.headless"] is True


def test_only_addresses_of_this_machine_alone_need_no_token() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.0.0.2", "::1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "192.0.2.1", "localhost.example.com")))


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder with modules that say so when they are run."""
    folder = tmp_path / "planted"
    folder.mkdir()
    for name in ("torchvision", "numpy", "streamlit", "starlette", "typer", "pickle", "sqlite3"):
        (folder / f"{name}.py").write_text(f"open('RUN-{name}', 'w')\n")
    return folder


@contextmanager
def serving(folder: Path, *options: str, state: str = "ready") -> Iterator[tuple[int, str, list[int]]]:
    """``qaf app`` started in a folder: its port, what it printed, its processes; SIGTERM at the end."""
    port = free_port()
    command = [sys.executable, "-m", "qaf_core.cli", "app", "--port", str(port), "--no-browser", *options]
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            printed = process.stdout.readline()
            assert f":{port}" in printed
            with Store() as store:
                deadline = time.monotonic() + 60
                while not {"ready", state} & set(store.worker_states().values()):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                workers = list(store.worker_states())
            yield port, printed, [process.pid, *workers]
        finally:
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
PAGE, UPLOAD, WEBSOCKET = ("GET", "/", {}), ("PUT", "/_stcore/upload_file/a/b", {}), (
    "GET", "/_stcore/stream", UPGRADE,
)  # fmt: skip


def ask(port: int, request: tuple[str, str, dict[str, str]], **headers: str) -> tuple[int, Message, bytes]:
    """Status, headers and content of the answer to a request, with ``Host`` and others as given."""
    method, path, own = request
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": f"localhost:{port}", **own, **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with connection.getresponse() as answer:
            return answer.status, answer.headers, b"" if answer.status == 101 else answer.read()


def test_the_app_lets_nobody_else_in_and_leaves_nothing_behind(workspace: Path, planted: Path) -> None:
    with serving(planted) as (port, printed, processes):
        assert f"http://localhost:{port} " in printed
        for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert ask(port, PAGE, Host=host)[0] == 200
        assert ask(port, WEBSOCKET, Origin=f"http://localhost:{port}")[0] == 101
        for request in (PAGE, UPLOAD, WEBSOCKET):
            assert ask(port, request, Host=f"evil.example:{port}")[0] == 403
            for origin in ("http://evil.example", "http://localhost:3000", "null"):
                assert ask(port, request, Origin=origin)[0] == 403
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert not list(planted.glob("RUN-*"))


def test_other_machines_need_the_token_and_a_killed_app_leaves_nothing_behind(
    workspace: Path, planted: Path
) -> None:
    with serving(planted, "--host", "0.0.0.0", state="starting") as (port, printed, processes):
        token = re.search(r"/\?token=(\S+)", printed)
        assert token is not None
        for request in (PAGE, UPLOAD, ("GET", "/_stcore/health", {}), ("GET", "/static/index.html", {})):
            status, _, content = ask(port, request)
            assert status == 401
            assert b"The token is printed where" in content
        assert ask(port, WEBSOCKET)[0] == 403
        assert ask(port, ("GET", "/?token=wrong", {}))[0] == 401
        status, headers, _ = ask(port, ("GET", f"/explore?token={token[1]}&model=digits/cnn", {}))
        assert (status, headers["Location"]) == (303, "/explore?model=digits%2Fcnn")
        cookie = headers["Set-Cookie"].split(";")[0]
        assert ask(port, PAGE, Cookie=cookie)[0] == 200
        assert ask(port, WEBSOCKET, Cookie=cookie)[0] == 101
        assert ask(port, PAGE, Cookie=cookie, Host="evil.example")[0] == 403
        os.kill(processes[0], signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{process}").exists() for process in processes[1:]) or listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
