"""The ``qaf`` program: its commands, and how faults become one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from qaf_core.cli.app import app
from qaf_core.cli.doctor import doctor
from qaf_core.cli.explore.sweep import sweep
from qaf_core.cli.export import export
from qaf_core.cli.finetune import finetune
from qaf_core.cli.history import manage
from qaf_core.cli.history.listed import show
from qaf_core.cli.interrupt import EXIT_BAD_INPUT, EXIT_CANCELLED, EXIT_DONE, EXIT_FAILED
from qaf_core.cli.latency import device_kit, latency
from qaf_core.cli.models import models
from qaf_core.cli.networks import check, cost, inspect, predict, sensitivity
from qaf_core.cli.plans import plan
from qaf_core.cli.report import import_evidence, report
from qaf_core.cli.runs import compress, search
from qaf_core.cli.text import VARIABLE, _, choose_language, describe_usage
from qaf_core.errors import QafError, RunCancelled
from qaf_core.files import write_file
from qaf_core.runs.store.workspace import default_workspace
from qaf_core.text.catalogue import LANGUAGES
from qaf_core.text.said import say

LONGEST_MESSAGE = 400

program = typer.Typer(
    name="qaf",
    help="Compress trained neural networks by joint tensor factorization and quantization.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    app, models, inspect, cost, check, sensitivity, predict, search, sweep, plan, compress, finetune, show,
    export, latency, device_kit, report, doctor,
):  # fmt: skip
    program.command()(command)
program.command("import")(import_evidence)
program.add_typer(manage.program, name="runs")


@program.callback()
def _begin(
    lang: Annotated[
        str | None, typer.Option(help=f"{' or '.join(LANGUAGES)} [default: ${VARIABLE}, else the system's]")
    ] = None,
) -> None:
    if lang is not None:
        choose_language(lang)


def tell_help(command: Any) -> None:  # click's, of which Typer may carry a copy of its own
    """Put what ``--help`` says of a command, and of those behind it, into the user's language."""
    command.help = command.help and _(command.help)
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        if text:
            parameter.help = _(text)
    for other in getattr(command, "commands", {}).values():
        tell_help(other)


def _language_of(given: Sequence[str]) -> str | None:
    """What ``--lang`` says before the command: help is written before options are read."""
    first = given[0] if given else ""
    if first == "--lang":
        return given[1] if len(given) > 1 else None
    return first.partition("=")[2] if first.startswith("--lang=") else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands after ``qaf``; None for the process's own.

    Returns:
        0 done, 2 bad input, 130 cancelled, 1 anything else; errors are told in one line on stderr.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        choose_language(_language_of(argv))
        command = get_command(program)
        tell_help(command)
        outcome = command(argv or ["--help"], standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else EXIT_DONE
    except QafError as error:
        return _report(error.text(_), EXIT_BAD_INPUT)
    except (KeyboardInterrupt, RunCancelled):
        return _report(_("Cancelled."), EXIT_CANCELLED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        return _report_other(error)


def run() -> NoReturn:
    """The ``qaf`` process: one command, then its exit code, also where Ctrl-C is pressed while it ends."""
    try:
        code = main()
    except KeyboardInterrupt:  # while the outcome was being told
        code = EXIT_CANCELLED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _report_other(error: Exception) -> int:
    # Typer carries its own copy of click in newer versions, so its errors are known by what they can do.
    if hasattr(error, "format_message"):
        message = say("{fault}; see: qaf --help.", fault=describe_usage(error))
        return _report(message.text(_), EXIT_BAD_INPUT)
    if type(error).__name__ == "Abort":
        return _report(_("Cancelled."), EXIT_CANCELLED)
    if type(error).__name__ == "JobFailed":
        return _report(error.fault.text(_), EXIT_FAILED)  # type: ignore[attr-defined]
    summary = say("Internal error: {kind}: {summary}", kind=type(error).__name__, summary=str(error)).text(_)
    with contextlib.suppress(OSError, QafError):
        path = default_workspace() / "logs" / "cli-traceback.txt"
        write_file(path, "".join(traceback.format_exception(error)).encode())
        summary += say("; details are in {path}", path=path).text(_)
    return _report(summary, EXIT_FAILED)


def _report(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…", file=sys.stderr)
    return code
