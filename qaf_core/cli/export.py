"""``qaf export``: a run's compressed network as a file to deploy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qaf_core.cli.interrupt import execute
from qaf_core.cli.options import Json, Run, Workspace
from qaf_core.cli.text import _, echo, print_json, print_stage
from qaf_core.text.units import duration_text, size_text

if TYPE_CHECKING:
    from qaf_core.deploy.onnx_export.report import ExportReport

Target = Annotated[
    str,
    typer.Option(
        help="The processor for integers: this machine's, or any. On x86 without VNNI sums of 8-bit products"
        " are cut off: any avoids that, and runs layers of 8-bit codes slower on x86 with VNNI."
    ),
]


def export(
    run: Run,
    format: Annotated[str, typer.Option(help="packed (for PyTorch) or onnx.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="The file to write.")],
    precision: Annotated[
        str,
        typer.Option(
            help="Of onnx: int8 (exactly what was evaluated), int8-fast (fastest: outputs of layers and"
            " additions rounded too, agreement measured) or fp32."
        ),
    ] = "int8",
    target: Target = "this",
    force: Annotated[bool, typer.Option("--force", help="Write the file even if a check fails.")] = False,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Write a run's compressed network as a file to deploy, and check that it says what the run said."""
    from qaf_core.pipeline.events import Progress
    from qaf_core.runs.store.request import ExportRequest
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        record = store.find(run)
        request = ExportRequest(
            run=record.id, format=format, precision=precision, target=target, force=force,
            path=str(out.expanduser().absolute()),
        )  # fmt: skip
        report = execute(store, request, Progress(print_stage))
    if as_json:
        print_json(report)
    else:
        from qaf_core.deploy.onnx_export.report import ExportReport
        from qaf_core.records import from_plain

        _print_report(from_plain(ExportReport, report))
        if record.is_partial:
            done, planned = len(record.layers), len(record.planned_layers)
            echo(
                "  {done} of {planned} layers are compressed: the run ended before the others",
                done=done,
                planned=planned,
            )


def _print_report(report: ExportReport) -> None:
    echo(
        "{path}: {size}, in {time}",
        path=report.path,
        size=size_text(report.size_bytes),
        time=duration_text(report.seconds),
    )
    if report.precision is not None:
        print(f"  {_(report.precision.difference)}")
    for check in report.checks:
        print(f"  {_('passed') if check.passed else _('FAILED')}  {check.told(_)}")
    stored = ", ".join(f"{count} as {kind}" for kind, count in sorted(report.weights_stored_as.items()))
    echo("  weights: {stored}", stored=stored)
    if {"int4", "uint4"} & report.weights_stored_as.keys():
        from qaf_core.deploy.runtime.measure_kit import LEAST_RUNTIME

        echo(
            "  needs ONNX Runtime {version} or later, which takes 4-bit weights",
            version=".".join(map(str, LEAST_RUNTIME)),
        )
    if not report.any_batch:
        echo("  takes one image at a time: the network does not work with any number of them")
