import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from qaf_core.cli import main
from qaf_core.cli.app import check_port, find_dashboard, server_command
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
    command = server_command(find_dashboard(), "127.0.0.1", 8501)
    options = dict(zip(command[5::2], command[6::2], strict=True))
    assert options["--browser.gatherUsageStats"] == "false"
    assert options["--logger.hideWelcomeMessage"] == "true"
    assert options["--server.headless"] == "true"


def test_the_app_serves_has_a_worker_ready_and_leaves_nothing_behind(workspace: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "qaf_core.cli", "app", "--port", str(port), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert f"http://localhost:{port}" in process.stdout.readline()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
                assert answer.status == 200
            with Store(workspace) as store:
                deadline = time.monotonic() + 60
                while "ready" not in store.worker_states().values():
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                (worker,) = store.worker_states()
        finally:
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
