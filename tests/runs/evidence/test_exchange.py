"""Evidence of a run in another workspace: the same review, and nothing taken that is out of bounds."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qaf_core.cli.entry import main
from qaf_core.errors import WorkspaceError
from qaf_core.review.decision.criteria import Criterion, keep_criteria
from qaf_core.review.report.report import write_evidence
from qaf_core.review.report.review import gather_review
from qaf_core.runs.evidence.exchange import MANIFEST, import_evidence, list_evidence
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store

Run = tuple[Path, str]


@pytest.fixture(scope="module")
def evidence(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace, run_id = finished_run
    path = tmp_path_factory.mktemp("evidence") / "evidence.zip"
    with Store(workspace) as store:
        write_evidence(store, gather_review(store, [run_id], pictures=3), path)
    return path


def test_another_workspace_comes_to_the_same(
    finished_run: Run, evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, run_id = finished_run
    other = tmp_path / "other"
    assert main(["import", str(evidence), "--workspace", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"imported": [run_id], "known": []}
    with Store(workspace) as first, Store(other) as second:
        before, after = first.run(run_id), second.run(run_id)
        assert after.result == {**before.result, "imported": True}
        assert (before.is_imported, after.is_imported) == (False, True)
        assert [row.tags for row in list_rows(second)] == [("imported",)]
        assert (after.request, after.layers, after.finished_at) == (
            before.request, before.layers, before.finished_at
        )  # fmt: skip
        one, two = (gather_review(store, [run_id], pictures=3) for store in (first, second))
        assert two.changes is not None
        assert one.changes is not None
        assert two.changes.changed == one.changes.changed
        assert two.sha256 == one.sha256
        keep_criteria(second.run_folder(run_id), [Criterion(kind="file_size", limit=1e9)])
    assert main(["import", str(evidence), "--workspace", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"imported": [], "known": [run_id]}
    with Store(other) as store:
        assert gather_review(store, [run_id]).criteria  # what was added here stays


def test_tables_are_there_for_spreadsheets(evidence: Path) -> None:
    with zipfile.ZipFile(evidence) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        assert {"tables/classes.csv", "tables/runs.csv", "tables/about.csv", "report.json"} <= set(names)
        assert archive.read("tables/classes.csv").decode("utf-8-sig").startswith("Class,Number of images,")


def change(run: dict[str, Any], key: str, value: Any) -> None:
    run[key] = value


@pytest.mark.parametrize(
    "harm",
    [
        lambda told: change(told["runs"][0], "id", "../../etc"),
        lambda told: change(told["runs"][0], "status", "running"),
        lambda told: change(told["runs"][0], "kind", "register"),
        lambda told: change(told["runs"][0], "request", {"no": "model"}),
        lambda told: change(told["runs"][0], "layers", [{"no": "name"}]),
        lambda told: change(told["runs"][0], "layers", 2 * told["runs"][0]["layers"][:1]),
        lambda told: change(told["runs"][0], "created_at", "yesterday"),
        lambda told: change(told["runs"][0], "created_at", 10**400),
        lambda told: change(told, "format", 99),
        lambda told: change(told, "runs", []),
        lambda told: told.pop("runs"),
    ],
)
def test_what_is_out_of_bounds_is_not_taken(
    evidence: Path, tmp_path: Path, harm: Callable[[dict[str, Any]], None]
) -> None:
    path = tmp_path / "harmed.zip"
    with zipfile.ZipFile(evidence) as given, zipfile.ZipFile(path, "w") as written:
        told = json.loads(given.read(MANIFEST))
        harm(told)
        written.writestr(MANIFEST, json.dumps(told))
        written.writestr("../outside.txt", "x")
    with Store(tmp_path / "workspace") as store:
        with pytest.raises(WorkspaceError, match="no evidence of runs"):
            import_evidence(store, path)
        assert store.list_runs() == ()
    assert not (tmp_path / "outside.txt").exists()


def test_a_damaged_file_is_refused_in_a_line(evidence: Path, tmp_path: Path) -> None:
    path, content = tmp_path / "damaged.zip", bytearray(evidence.read_bytes())
    with zipfile.ZipFile(evidence) as archive:
        start = archive.getinfo(MANIFEST).header_offset + 30 + len(MANIFEST)
    content[start : start + 8] = b"\xff" * 8  # no block of deflate begins like this: zlib.error
    path.write_bytes(content)
    for read in (list_evidence, lambda path: import_evidence(store, path)):
        with Store(tmp_path / "workspace") as store, pytest.raises(WorkspaceError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("fault", ["damaged", "full"])
def test_of_several_runs_all_are_taken_or_none(
    evidence: Path, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(evidence) as given, zipfile.ZipFile(path, "w") as written:
        told = json.loads(given.read(MANIFEST))
        second = {**told["runs"][0], "id": "20250101-000000-abcdef"}
        told["runs"].append(second)
        written.writestr(MANIFEST, json.dumps(told))
        for run in told["runs"]:
            written.writestr(f"runs/{run['id']}/review.json", f'"notes on {run["id"]}"')
    (kept := store.run_folder(second["id"])).mkdir(parents=True)
    sound = path.read_bytes()
    if fault == "damaged":
        path.write_bytes(
            sound.replace(f"notes on {second['id']}".encode(), f"NOTES on {second['id']}".encode())
        )
    else:
        monkeypatch.setattr(store, "take_runs", lambda _: (_ for _ in ()).throw(WorkspaceError("full")))
    with pytest.raises(WorkspaceError, match="cannot be read" if fault == "damaged" else "full"):
        import_evidence(store, path)
    assert store.list_runs() == ()
    assert [folder.name for folder in kept.parent.iterdir()] == [kept.name]  # it was there before
    monkeypatch.undo()
    path.write_bytes(sound)
    assert import_evidence(store, path) == ([run["id"] for run in told["runs"]], [])


def test_other_files_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.zip"
    path.write_bytes(b"no zip")
    assert main(["import", str(path), "--workspace", str(tmp_path / "other")]) == 2
    assert "this evidence cannot be read; got notes.zip" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "none.zip"), "--workspace", str(tmp_path / "other")]) == 2
