"""The evidence of runs as one zip that another workspace opens: records, answers, checks, criteria, notes.

What is read back is not trusted: names are those known here or nothing, sizes are bounded, and nothing that
is in the workspace already is overwritten.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qaf_core.data.formats.zip import DAMAGE
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.files import write_file
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.evidence import predictions, robustness, stability
from qaf_core.runs.evidence.gallery import PICTURES_NAME
from qaf_core.runs.jobs import latency
from qaf_core.runs.jobs.device_kit import RESULT_NAME
from qaf_core.runs.jobs.preview import PREVIEW_NAME
from qaf_core.runs.store.kinds import RUN_KINDS
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.text.said import say

FORMAT = 1
MANIFEST = "evidence.json"
#: What goes with a run, where it is there.
FILES = (
    PACKED_NAME, predictions.FILE_NAME, PREVIEW_NAME, PICTURES_NAME, latency.FILE_NAME, RESULT_NAME,
    robustness.FILE_NAME, stability.FILE_NAME, "criteria.json", "economics.json", "review.json",
)  # fmt: skip
MOST_RUNS = 20
LARGEST_MANIFEST_BYTES = 64 * 2**20
LARGEST_FILE_BYTES = 2 * 2**30
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
_TIMES = ("created_at", "started_at", "finished_at")


def pack_evidence(store: Store, run_ids: Sequence[str], path: Path, extra: Mapping[str, bytes]) -> None:
    """Write the evidence of runs.

    Args:
        store: The run store.
        run_ids: Finished runs.
        path: The zip to write.
        extra: More files for people, by name; an import does not look at them.

    Raises:
        WorkspaceError: If there is no such run, or the file cannot be written.
    """
    entries = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for run_id in run_ids:
            record, folder = store.run(run_id), store.run_folder(run_id)
            entries.append(
                {
                    "id": run_id,
                    "kind": record.kind,
                    "status": record.status,
                    **{name: getattr(record, name) for name in _TIMES},
                    "request": json.loads(record.request.to_json()),
                    "result": dict(record.result),
                    "layers": [dict(row) for row in record.layer_rows],
                }
            )
            for name in FILES:
                if (folder / name).is_file():
                    archive.write(folder / name, f"runs/{run_id}/{name}")
        for name, content in extra.items():
            archive.writestr(name, content)
        archive.writestr(MANIFEST, json.dumps({"format": FORMAT, "runs": entries}, indent=1))
    write_file(path, buffer.getvalue())


def import_evidence(store: Store, path: Path) -> tuple[list[str], list[str]]:
    """Take the runs of an evidence file into a workspace.

    Args:
        store: The run store.
        path: What ``pack_evidence`` wrote.

    Returns:
        Ids of the runs that are new here, and of those that were here already and stay as they are.

    Raises:
        QafError: If it is no such file, or something in it is out of bounds; then nothing is taken.
    """
    try:
        with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as undo:
            runs = _read_manifest(archive)
            here = {run["id"] for run in runs if store.has_job(run["id"])}
            new = [run for run in runs if run["id"] not in here]
            for run in new:
                folder = store.run_folder(run["id"])
                if not folder.exists():
                    undo.callback(shutil.rmtree, folder, ignore_errors=True)
                _take_files(archive, run["id"], folder)
            store.take_runs(new)
            undo.pop_all()
    except (OSError, *DAMAGE) as error:
        raise WorkspaceError(
            "this evidence cannot be read",
            got=f"{path.name} ({error})",
            expected="a file written by qaf report RUN --out evidence.zip",
        ) from error
    return [run["id"] for run in new], sorted(here)


def list_evidence(path: Path) -> list[str]:
    """The ids of the runs in an evidence file; raises as :func:`import_evidence`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [run["id"] for run in _read_manifest(archive)]
    except (OSError, *DAMAGE) as error:
        raise WorkspaceError("this evidence cannot be read", got=f"{path.name} ({error})") from error


def _read_manifest(archive: zipfile.ZipFile) -> list[dict[str, Any]]:
    try:
        info = archive.getinfo(MANIFEST)
        if info.file_size > LARGEST_MANIFEST_BYTES:
            raise ValueError(f"{info.file_size:,} bytes")
        manifest = json.loads(archive.read(MANIFEST))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
        runs = [_checked(run) for run in manifest["runs"]]
        if not 1 <= len(runs) <= MOST_RUNS or len({run["id"] for run in runs}) < len(runs):
            raise ValueError(f"{len(runs)} runs")
        return runs
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, QafError) as error:
        raise WorkspaceError(
            "this is no evidence of runs",
            got=str(error)[:200],
            expected="a file written by qaf report RUN --out evidence.zip",
        ) from error


def _checked(run: dict[str, Any]) -> dict[str, Any]:
    """One run of a manifest with only what is known here."""
    run_id, kind, status = str(run["id"]), run["kind"], RunStatus(run["status"])
    if not _ID.fullmatch(run_id) or kind not in RUN_KINDS or not status.is_final:
        raise ValueError(f"run {run_id[:40]!r}")
    times = {name: None if run[name] is None else float(run[name]) for name in _TIMES}
    names = [row["name"] for row in run["layers"]]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"layers of {run_id}")
    if not isinstance(run["result"], dict):
        raise ValueError(f"result of {run_id}")
    request = RunRequest.from_json(json.dumps(run["request"]))
    return {
        "id": run_id, "kind": kind, "status": status, **times, "request": request,
        "result": {**run["result"], "imported": True}, "layers": run["layers"],
    }  # fmt: skip


def _take_files(archive: zipfile.ZipFile, run_id: str, folder: Path) -> None:
    names = set(archive.namelist())
    for name in FILES:
        place = f"runs/{run_id}/{name}"
        if place not in names:
            continue
        size = archive.getinfo(place).file_size
        if size > LARGEST_FILE_BYTES:
            raise WorkspaceError(
                "a file of this evidence is too large",
                got=say("{name}, {size:,} bytes", name=name, size=size),
            )
        write_file(folder / name, archive.read(place))
