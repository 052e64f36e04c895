"""``qaf app``: serve the dashboard on this machine."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from qaf_core.children import child_environment
from qaf_core.cli.options import Workspace
from qaf_core.cli.text import echo
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.runs.store.workspace import WORKSPACE_VARIABLE, default_workspace
from qaf_core.text.said import say

START_SECONDS = 30.0
STOP_SECONDS = 5.0
_WILDCARDS = ("", "0.0.0.0", "::")


def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 8501,
    host: Annotated[
        str, typer.Option(help="Address to serve on; 0.0.0.0 lets other machines in, with a token.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
    workspace: Workspace = None,
) -> int:
    """Open the dashboard in the browser and serve it until Ctrl-C."""
    from qaf_core.runs.worker.supervisor import Supervisor

    find_dashboard()
    check_port(host, port)
    # Told to end from outside, tidy up as on Ctrl-C.
    signal.signal(signal.SIGTERM, _raise_interrupt)
    supervisor = Supervisor(default_workspace() if workspace is None else workspace)
    server: subprocess.Popen[bytes] | None = None
    try:
        environment = {**child_environment(), WORKSPACE_VARIABLE: str(supervisor.workspace)}
        token = None if is_loopback(host) else secrets.token_urlsafe(24)
        if token is not None:
            environment["QAF_TOKEN"] = token
        command = [sys.executable, "-m", "dashboard.serve", "--host", host, "--port", str(port)]
        command += ["--parent", str(os.getpid())]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _wait_until_served(server, f"http://{_in_address(_nearest(host))}:{port}")
        address = f"http://{_in_address(_public(host))}:{port}"
        address += "" if token is None else f"/?token={token}"
        echo(
            "The dashboard is at {address} (workspace {workspace}). Ctrl-C ends it.",
            address=address,
            workspace=supervisor.workspace,
        )
        if token is not None:
            echo("Whoever has this address can use it; without the token it asks for it.")
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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or all addresses
        return False


def _public(host: str) -> str:
    """How others, or only this machine, may write the address of a server."""
    if is_loopback(host):
        return host if host not in ("127.0.0.1", "::1") else "localhost"
    if host not in _WILDCARDS:
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it chooses the address that leads outside
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _nearest(host: str) -> str:
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def find_dashboard() -> Path:
    """The dashboard's script, installed or in a checkout.

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
            say("port {port} on {host} cannot be used", port=port, host=host),
            got=error.strerror or str(error),
            expected="a free port of this machine",
            remedy=say("choose another, for instance --port {port}", port=port + 1 if port < 65535 else 8501),
        ) from error


def _wait_until_served(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    # Straight to the server, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise QafError(
                "the dashboard could not start",
                got=say("exit code {returncode}", returncode=server.returncode),
                remedy="see the lines above",
            )
        try:
            with opener.open(f"{address}/_stcore/health", timeout=2):
                return
        except urllib.error.HTTPError as answer:
            if answer.code == 401:  # it asks for the token
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise QafError(
        "the dashboard did not answer",
        got=say("nothing at {address} in {seconds:.0f} s", address=address, seconds=START_SECONDS),
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
