"""The server that ``qaf app`` starts: Streamlit behind the gate, without any outside connection."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import streamlit as st
from starlette.middleware import Middleware

from dashboard.early import EarlyScripts
from dashboard.gate import Gate
from qaf_core.children import end_with

PAGE = Path(__file__).resolve().parent / "app.py"
TOKEN_VARIABLE = "QAF_TOKEN"
UPLOAD_LIMIT_MB = 512


def main() -> None:
    """Serve until told to end, or until the process that started this one is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # the server raises them again once it has closed
        signal.signal(number, _exit)
    end_with(options.parent)
    token = os.environ.pop(TOKEN_VARIABLE, None)
    gate = Middleware(Gate, host=options.host, port=options.port, token=token)
    sys.argv = sys.argv[:1]
    st.App(PAGE, middleware=[gate, Middleware(EarlyScripts)]).run(
        config=server_options(options.host, options.port)
    )


def server_options(host: str, port: int) -> dict[str, object]:
    """Streamlit's options; given here, no file in the folder it starts in can change them."""
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": UPLOAD_LIMIT_MB,
        "server.enableCORS": True,
        "server.corsAllowedOrigins": [],
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "global.developmentMode": False,
        "browser.gatherUsageStats": False,
        # Besides being noise, the welcome asks an outside service for this machine's address.
        "logger.hideWelcomeMessage": True,
    }


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
