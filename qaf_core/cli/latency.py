"""Commands about speed: ``latency`` on this machine, ``device-kit`` for another."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.export import Target
from qaf_core.cli.interrupt import execute, stop_on_interrupt
from qaf_core.cli.options import Json, Run, Workspace
from qaf_core.cli.plans import Batch, Threads
from qaf_core.cli.text import _, print_json, print_stage, print_table, tell
from qaf_core.deploy.runtime.model_files import PROFILED, ModelFile
from qaf_core.errors import QafError
from qaf_core.text.units import (
    energy_text,
    factor_text,
    milliseconds_text,
    percent_text,
    points_text,
    size_text,
)

if TYPE_CHECKING:
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
        _print_latency(result, record)


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

            told = read_kit_result(store, record.id, result.expanduser())
        else:
            assert out is not None
            folder = str(out.expanduser().absolute())
            request = DeviceKitRequest(run=record.id, batch=batch, target=target, folder=folder)
            told = execute(store, request)
    if as_json:
        print_json(told)
    elif result is not None:
        _print_latency(told, record)
    else:
        tell("The kit is in {folder}. On the device: python measure.py", folder=told["folder"])
        tell("Then here: qaf device-kit {run} --result result.json", run=record.id)


def _print_energy(energy: dict[str, Any]) -> None:
    for name, joules in (energy.get("joules") or {}).items():
        tell(
            "{name}: {energy} an inference, {source}",
            name=_(TITLES.get(name, name)),
            energy=energy_text(joules),
            source=energy["source"],
        )
    if energy.get("reason"):
        tell("energy not measured: {reason}", reason=energy["reason"])
    modelled = energy.get("modelled") or {}
    if modelled.get("original") and modelled.get("compressed"):
        before, after = (energy_text(modelled[key]) for key in ("original", "compressed"))
        tell(
            "energy of an image {before} → {after}, {source}",
            before=before,
            after=after,
            source=modelled["source"],
        )


def print_verdict(result: dict[str, Any]) -> None:
    """The ratios to dense INT8 with their intervals, and what they come to in words.

    Args:
        result: As ``measure_run`` and ``read_kit_result`` give it.
    """
    for name in (ModelFile.FAST, ModelFile.EXACT):
        ratio = (result.get("ratios") or {}).get(name)
        if ratio is not None:
            tell(
                "{name} over dense INT8: {value} (95 %: {low} to {high})",
                name=name.short,
                **{key: factor_text(ratio[key]) for key in ("value", "low", "high")},
            )
    print(_(result["verdict"]))


def _print_latency(result: dict[str, Any], record: RunRecord) -> None:
    from qaf_core.deploy.runtime.measure_kit import tell_answers

    machine = result["machine"]
    tell(
        "{processor}, {threads} threads, batch {batch}, ONNX Runtime {version}",
        processor=machine["processor"],
        threads=machine["threads"],
        batch=result["batch"],
        version=machine["onnxruntime"],
    )
    accuracy, rows = result.get("accuracy") or {}, []
    for name, row in result["latencies"].items():
        memory, judged = result["peak_memory_bytes"].get(name), accuracy.get(name)
        rows.append(
            (
                _(TITLES.get(name, name)),
                milliseconds_text(row["median_ms"]),
                f"{milliseconds_text(row['p5_ms'])} – {milliseconds_text(row['p95_ms'])}",
                "–" if memory is None else size_text(memory),
                "–" if judged is None else percent_text(judged["value"]),
                "–" if judged is None else points_text(-judged["drop"]),
            )
        )
    print_table(("model", "median", "5 to 95 %", "memory", "accuracy", "change, points"), rows)
    if accuracy:
        judged = max(row["n"] for row in accuracy.values())
        measured = record.compressed.n if record.compressed else 0
        if measured in (0, judged):
            tell("accuracy on {judged:,} images", judged=judged)
        else:
            tell(
                "accuracy on {judged:,} images, not all {measured:,} that the run was measured on",
                judged=judged,
                measured=measured,
            )
    _print_energy(result.get("energy") or {})
    for line in tell_answers(result):
        print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
    print_verdict(result)
    layers = [
        (
            str(row["layer"]),
            f"{row['structure'] or ''} {row['rank'] or ''}".strip(),
            *(milliseconds_text(row[f"{name}_ms"]) for name in PROFILED),
            {True: _("slower"), False: _("faster"), None: ""}[row["slower_than_dense"]],
        )
        for row in result["layers"]
    ]
    if layers:
        print()
        print_table(("layer", "structure", "original fp32", "dense INT8", "int8-fast", ""), layers)
