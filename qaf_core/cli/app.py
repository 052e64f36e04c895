"""``qaf app``: serve the dashboard on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from qaf_core.cli.options import Workspace
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.runs.store.workspace import WORKSPACE_VARIABLE, default_workspace

START_SECONDS = 30.0
STOP_SECONDS = 5.0
UPLOAD_LIMIT_MB = 512
_LOCAL_HOSTS = ("", "0.0.0.0", "::", "localhost", "127.0.0.1", "::1")


def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    workspace: Workspace = None,
) -> int:
    """Open the dashboard in the browser and serve it until Ctrl-C."""
    from qaf_core.runs.worker.supervisor import Supervisor

    page = find_dashboard()
    check_port(host, port)
    # Told to end from outside, tidy up as on Ctrl-C.
    signal.signal(signal.SIGTERM, _raise_interrupt)
    supervisor = Supervisor(default_workspace() if workspace is None else workspace)
    server: subprocess.Popen[bytes] | None = None
    try:
        environment = {**os.environ, WORKSPACE_VARIABLE: str(supervisor.workspace)}
        server = subprocess.Popen(
            server_command(page, host, port), env=environment, stdout=subprocess.DEVNULL
        )
        address = f"http://{'localhost' if host in _LOCAL_HOSTS else host}:{port}"
        _wait_until_served(server, address)
        print(
            f"The dashboard is at {address} (workspace {supervisor.workspace}). Ctrl-C ends it.", flush=True
        )
        if browser and _has_display():
            webbrowser.open(address)
        return 0 if server.wait() == 0 else 1
    except KeyboardInterrupt:
        # The usual way to end a server: nothing went wrong.
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if server is not None:
            _end(server)
        supervisor.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def find_dashboard() -> Path:
    """The dashboard's entry script, installed or in a checkout.

    Raises:
        QafError: If it or Streamlit is missing.
    """
    if find_spec("streamlit") is None:
        raise QafError("Streamlit is not installed", remedy="install qaf with its dependencies: make app")
    spec = find_spec("dashboard")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    places.append(Path(__file__).resolve().parents[2] / "dashboard")
    for place in places:
        if (place / "app.py").is_file():
            return place / "app.py"
    raise QafError("the dashboard is missing from this installation", remedy="install qaf again: make app")


def check_port(host: str, port: int) -> None:
    """Check that nobody listens on the port yet.

    Raises:
        WorkspaceError: If the port is taken or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise WorkspaceError(
            f"port {port} on {host} cannot be used",
            got=error.strerror or str(error),
            expected="a free port of this machine",
            remedy=f"choose another, for instance --port {port + 1 if port < 65535 else 8501}",
        ) from error


def server_command(page: Path, host: str, port: int) -> list[str]:
    """The command that serves ``page``, without any outside connection."""
    flags = {
        "server.port": port,
        "server.address": host,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": UPLOAD_LIMIT_MB,
        "browser.gatherUsageStats": "false",
        # Besides being noise, the welcome asks an outside service for this machine's address.
        "logger.hideWelcomeMessage": "true",
    }
    options = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "streamlit", "run", str(page), *options]


def _wait_until_served(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    # Straight to the server, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise QafError(
                "the dashboard could not start",
                got=f"exit code {server.returncode}",
                remedy="see the lines above",
            )
        with contextlib.suppress(OSError), opener.open(f"{address}/_stcore/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise QafError(
        "the dashboard did not answer",
        got=f"nothing at {address} in {START_SECONDS:.0f} s",
        remedy="try another --port",
    )


def _has_display() -> bool:
    return sys.platform == "darwin" or any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _raise_interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
