"""Commands about speed: ``latency`` on this machine, ``device-kit`` for another."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qaf_core.cli.export import Target
from qaf_core.cli.interrupt import execute, stop_on_interrupt
from qaf_core.cli.options import Json, Run, Workspace
from qaf_core.cli.plans import Batch, Threads
from qaf_core.cli.text import _, echo, print_json, print_stage, print_table
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.errors import QafError
from qaf_core.text.units import (
    MISSING,
    energy_text,
    factor_text,
    milliseconds_text,
    percent_text,
    points_text,
    size_text,
)

if TYPE_CHECKING:
    from qaf_core.deploy.runtime.speed_report import Energy, SpeedReport
    from qaf_core.runs.store.record import RunRecord

TITLES: dict[str, str] = {file: file.short for file in ModelFile}


def latency(
    run: Run,
    threads: Threads = None,
    batch: Batch = 1,
    images: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="At most so many evaluation images judge the INT8 models; 0 for none [default: all the run "
            "was measured on]",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="At most so long, of timing.")] = 60.0,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Time a run's models side by side: original, dense INT8, factorized fp32 and INT8; and by layer."""
    from qaf_core.deploy.runtime.speed_report import SpeedReport
    from qaf_core.runs.store.request import LatencyRequest
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store, stop_on_interrupt("nothing is kept", print_stage) as progress:
        record = store.find(run)
        request = LatencyRequest(
            run=record.id, threads=threads or os.cpu_count() or 1, batch=batch, images=images,
            seconds=seconds,
        )  # fmt: skip
        result = execute(store, request, progress)
    if as_json:
        print_json(result)
    else:
        _print_latency(SpeedReport.from_dict(result), record)


def device_kit(
    run: Run,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A new folder for the kit.")] = None,
    result: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read back what the kit measured.")
    ] = None,
    batch: Batch = 1,
    target: Target = "any",
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """A folder that measures a run's models on another device; --result reads its result.json back."""
    from qaf_core.runs.store.request import DeviceKitRequest
    from qaf_core.runs.store.store import Store

    if (out is None) == (result is None):
        raise QafError("say what to do with the kit", expected="--out DIR, or --result FILE")
    with Store(workspace) as store:
        record = store.find(run)
        if result is not None:
            from qaf_core.runs.jobs.device_kit import read_kit_result

            report = read_kit_result(store, record.id, result.expanduser())
            if as_json:
                print_json(report.to_dict())
            else:
                _print_latency(report, record)
            return
        assert out is not None
        folder = str(out.expanduser().absolute())
        request = DeviceKitRequest(run=record.id, batch=batch, target=target, folder=folder)
        made = execute(store, request)
    if as_json:
        print_json(made)
    else:
        echo("The kit is in {folder}. On the device: python measure.py", folder=made["folder"])
        echo("Then here: qaf device-kit {run} --result result.json", run=record.id)


def _print_energy(energy: Energy) -> None:
    for name, joules in energy.joules.items():
        echo(
            "{name}: {energy} an inference, {source}",
            name=_(TITLES.get(name, name)),
            energy=energy_text(joules),
            source=_(energy.source or ""),
        )
    if energy.reason:
        echo("energy not measured: {reason}", reason=energy.why_not(_))
    modelled = energy.modelled
    if modelled.original and modelled.compressed:
        echo(
            "energy of an image {before} → {after}, {source}",
            before=energy_text(modelled.original),
            after=energy_text(modelled.compressed),
            source=_(modelled.source or ""),
        )


def print_verdict(report: SpeedReport) -> None:
    """The ratios to dense INT8 with their intervals, and what they come to in words."""
    for name in (ModelFile.FAST, ModelFile.EXACT):
        ratio = report.ratio(name)
        if ratio is not None:
            echo(
                "{name} over dense INT8: {value} (95 %: {low} to {high})",
                name=name.short,
                value=factor_text(ratio.value),
                low=factor_text(ratio.low),
                high=factor_text(ratio.high),
            )
    print(" ".join(sentence.text(_) for sentence in report.sentences()))


def _print_latency(report: SpeedReport, record: RunRecord) -> None:
    from qaf_core.deploy.runtime.measure_kit import answer_lines

    machine = report.machine
    echo(
        "{processor}, {threads} threads, batch {batch}, ONNX Runtime {version}",
        processor=machine.processor,
        threads=machine.threads,
        batch=report.batch,
        version=machine.onnxruntime,
    )
    accuracy, rows = report.accuracy, []
    for name, row in report.latencies.items():
        memory, judged = report.peak_memory_bytes.get(name), accuracy.get(name)
        rows.append(
            (
                _(TITLES.get(name, name)),
                milliseconds_text(row.median_ms),
                f"{milliseconds_text(row.p5_ms)} – {milliseconds_text(row.p95_ms)}",
                MISSING if memory is None else size_text(memory),
                MISSING if judged is None else percent_text(judged.value),
                MISSING if judged is None or judged.drop is None else points_text(-judged.drop),
            )
        )
    print_table(("model", "median", "5 to 95 %", "memory", "accuracy", "change, points"), rows)
    if accuracy:
        images = max(row.n for row in accuracy.values())
        measured = record.compressed.n if record.compressed else 0
        if measured in (0, images):
            echo("accuracy on {judged:,} images", judged=images)
        else:
            echo(
                "accuracy on {judged:,} images, not all {measured:,} that the run was measured on",
                judged=images,
                measured=measured,
            )
    _print_energy(report.energy)
    for line, is_warning in answer_lines(report.to_dict(), _):
        print(line, file=sys.stderr if is_warning else sys.stdout)
    print_verdict(report)
    layers = [
        (
            row.layer,
            f"{row.structure or ''} {row.rank or ''}".strip(),
            *(MISSING if ms is None else milliseconds_text(ms) for ms in row.each_ms),
            {True: _("slower"), False: _("faster"), None: ""}[row.slower_than_dense],
        )
        for row in report.layers
    ]
    if layers:
        print()
        print_table(("layer", "structure", "original fp32", "dense INT8", "int8-fast", ""), layers)
