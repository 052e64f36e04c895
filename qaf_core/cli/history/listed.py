"""Runs told on the command line: ``qaf runs``, the list, and ``qaf show``, one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.options import Json, Run, Workspace
from qaf_core.cli.runs import print_result
from qaf_core.cli.text import _, echo, print_json, print_table, status_word, warn
from qaf_core.text.said import say
from qaf_core.text.units import percent_text, points_text, size_text

if TYPE_CHECKING:
    from qaf_core.runs.listing import RunRow
    from qaf_core.runs.store.record import RunRecord


def runs(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    archived: Annotated[bool, typer.Option(help="Archived ones too.")] = False,
    deleted: Annotated[bool, typer.Option(help="Those that are deleted and can be restored.")] = False,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """The runs of the workspace, newest first; a word behind it names, tags, archives or deletes some."""
    if context.invoked_subcommand is not None:
        return
    from qaf_core.runs.listing import list_rows
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        store.mark_interrupted()
        rows = [
            row
            for row in list_rows(store, model=model, deleted=deleted)
            if (archived or deleted or not row.archived) and (tag is None or tag in row.tags)
        ]
        ids = [row.id for row in rows if as_json or (row.error and not row.named)]
        records = {record.id: record for record in store.runs(ids)}
    if as_json:
        entries = [
            _record_row(records[row.id])
            | {"note": row.note, "tags": list(row.tags), "archived": row.archived}
            for row in rows
        ]
        print_json({"runs": entries})
    elif not rows:
        echo("No runs yet. Start one with: qaf compress digits/cnn --ratio 2 --bits 4")
    else:
        print_table(
            ("run", "status", "model", "method", "metric", "drop", "size", "name"),
            [_row_cells(row, records.get(row.id)) for row in rows],
        )


def _record_row(record: RunRecord) -> dict[str, Any]:
    row = {
        "run_id": record.id,
        "status": record.status,
        "name": record.request.name,
        "model": record.model,
        "method": record.method,
        "plan": dict(record.plan_row),
        "layers": [dict(layer) for layer in record.layer_rows],
        **record.result,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "error": record.error,
    }
    return {**row, "status": record.status}


def part_done(done: int, planned: int) -> str:
    """How many layers of its plan a run has compressed."""
    return say("{done} of {planned} layers", done=done, planned=planned).text(_)


def _row_cells(row: RunRow, record: RunRecord | None) -> tuple[str, ...]:
    failure = None if record is None else record.failure
    name = row.title if row.named else failure.text(_) if failure else ""
    status = status_word(row.status)
    return (
        row.id,
        f"{status}, {part_done(row.done, row.planned)}" if row.is_partial else status,
        row.model,
        row.method,
        "–" if row.value is None else f"{row.metric} {percent_text(row.value)}",
        "–" if row.drop is None else points_text(-row.drop),
        "–" if row.size_bytes is None else size_text(row.size_bytes),
        f"{name} [{', '.join(row.tags)}]" if row.tags else name,
    )


def show(
    run: Run,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """One run: what was asked for and what came of it."""
    from qaf_core.cli.latency import print_verdict
    from qaf_core.runs.jobs.device_kit import RESULT_NAME
    from qaf_core.runs.jobs.latency import FILE_NAME, read_latency
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        store.mark_interrupted()
        record = store.find(run)
        folder = store.run_folder(record.id)
        speeds = {name: read_latency(folder, name) for name in (FILE_NAME, RESULT_NAME)}
    for name, speed in speeds.items():
        if speed is None and (folder / name).exists():
            warn("warning: {name} of this run is damaged and left out", name=name)
    if as_json:
        print_json(_record_row(record))
        return
    print(f"{record.model}, {record.method}" + (f", {record.request.name}" if record.request.name else ""))
    if record.failure:
        print(record.failure.text(_))
    if record.is_partial:
        echo(
            "{part} compressed, the others as they were",
            part=part_done(len(record.layers), len(record.planned_layers)),
        )
    print_result({"run_id": record.id, "status": record.status, **record.result})
    for speed in filter(None, speeds.values()):
        echo(
            "speed, {source}, {processor}, {threads} threads:",
            source=speed.source,
            processor=speed.machine.processor,
            threads=speed.threads,
        )
        print_verdict(speed)
    rows = [
        (
            str(row["name"]),
            str(row.get("structure", "–")),
            str(row.get("rank") or ""),
            str(row.get("bits", "–")),
            "–" if row.get("relative_error") is None else percent_text(row["relative_error"]),
            str(row.get("status", "–")),
        )
        for row in record.layer_rows
    ]
    if rows:
        print()
        print_table(("layer", "structure", "rank", "bits", "error", "status"), rows)
    if record.compressed is not None and record.compressed.per_class:
        print()
        print_table(("class", "original", "compressed"), _class_cells(record))


def _class_cells(record: RunRecord) -> list[tuple[str, str, str]]:
    before = record.baseline.per_class if record.baseline else {}
    after = record.compressed.per_class if record.compressed else {}
    return [
        (name, percent_text(before[name]) if name in before else "–", percent_text(value))
        for name, value in after.items()
    ]
