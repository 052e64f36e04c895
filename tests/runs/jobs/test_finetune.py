"""Fine-tuning as a run: it begins with another run's file; it is told, stored and measured like any."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import begun_run

from qaf_core.cli.entry import main
from qaf_core.data.formats import builtin
from qaf_core.data.models.catalogue import find_model, load_inventory
from qaf_core.deploy.packed.read import read_index, verify_packed
from qaf_core.errors import PlanError, WorkspaceError
from qaf_core.network.plan.rules import plan_for_ratio
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.pipeline.finetune.options import FinetuneOptions
from qaf_core.runs.jobs import images
from qaf_core.runs.jobs.finetune import finetune_request
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store
from qaf_core.runs.store.workspace import PACKED_NAME
from qaf_core.runs.worker.execute import execute_job

SHORT = {"starts": 1, "start_iterations": 5, "iterations": 2, "rounding_rounds": 2, "output_fit": False}
LITTLE = FinetuneOptions(epochs=2)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace with a finished run of few bits, with something left to learn, and the run's id."""
    folder = tmp_path_factory.mktemp("first") / "workspace"
    inventory = load_inventory(find_model("digits/cnn"))
    plan = plan_for_ratio(inventory, model="digits/cnn", ratio=3.0, bits=3).to_dict()
    request = RunRequest(model="digits/cnn", plan={**plan, "options": SHORT}, images=100, name="first")
    with Store(folder) as store:
        run_id = begun_run(store, request)
        execute_job(store, run_id)
    return folder, run_id


@pytest.fixture
def store(first_run: tuple[Path, str], workspace: Path) -> Iterator[Store]:
    """The store of a copy of that workspace."""
    shutil.copytree(first_run[0], workspace)
    with Store(workspace) as opened:
        yield opened


@pytest.fixture
def parent(first_run: tuple[Path, str]) -> str:
    """The finished run."""
    return first_run[1]


def start(store: Store, parent: str, options: FinetuneOptions = LITTLE) -> str:
    request = finetune_request(store, store.run(parent), options, name="second")
    return begun_run(store, request)


@pytest.mark.parametrize("trains", ["scales", "codes"])
def test_a_fine_tuned_network_is_a_run_of_its_own(store: Store, parent: str, trains: str) -> None:
    told: list[RunEvent] = []
    run_id = start(store, parent, FinetuneOptions(trains=trains, epochs=6, time_limit_seconds=None))
    result = execute_job(store, run_id, Progress(told.append))
    before, after = store.run(parent), store.run(run_id)
    assert after.status == result["status"] == "completed"
    assert after.request.finetune is not None
    assert after.request.finetune["run"] == parent
    points = [event.data for event in told if event.kind == "finetune"]
    assert [point["epoch"] for point in points] == list(range(7))
    stages = [event.data["stage"] for event in told if event.kind == "stage"]
    assert list(dict.fromkeys(stages)) == ["loading", "finetuning", "saving", "evaluating"]
    gained = result["finetune"]
    assert gained["run"] == parent
    assert gained["after"] < gained["before"]
    assert gained["after"] == pytest.approx(min(point["held_back"] for point in points if point["on_grid"]))
    assert after.cost == before.cost
    assert after.layers == before.layers
    assert result["seconds"]["finetune"] > 0
    file = store.run_folder(run_id) / PACKED_NAME
    assert file.stat().st_size == result["file"]["size_bytes"]
    first = read_index(store.run_folder(parent) / PACKED_NAME)
    second = verify_packed(file)
    assert {key: second[key] for key in ("layers", "folded")} == {
        key: first[key] for key in ("layers", "folded")
    }
    assert abs(file.stat().st_size - (store.run_folder(parent) / PACKED_NAME).stat().st_size) < 200
    same = [
        store.layer_details(parent, row.name) == store.layer_details(run_id, row.name) for row in after.layers
    ]
    assert all(same) or trains == "codes"


def test_batchnorm_folded_by_the_first_run_stays_folded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network with BatchNorm: what the second file holds computes what was trained."""
    monkeypatch.setattr(images, "CALIBRATION_IMAGES", 64)  # what is proved does not need more
    monkeypatch.setitem(builtin.DEFAULT_COUNTS, "train", 64)
    inventory = load_inventory(find_model("inspection/resnet20"))
    plan = plan_for_ratio(inventory, model="inspection/resnet20", ratio=1.0, bits=8, method="dense")
    options = {"descent_sweeps": 0, "output_fit": False}
    request = RunRequest(
        model=plan.model, plan={**plan.to_dict(), "options": options}, method="dense", images=64
    )
    parent = begun_run(store, request)
    first = execute_job(store, parent)
    second = execute_job(store, start(store, parent, FinetuneOptions(epochs=1, time_limit_seconds=1.0)))
    assert first["compressed"]["value"] == pytest.approx(second["compressed"]["value"], abs=0.04)
    assert second["compressed"]["value"] > 0.85
    index = read_index(store.workspace / second["file"]["path"])
    assert len(index["folded"]) == 19


def test_a_stop_keeps_the_best_and_measures_it(store: Store, parent: str) -> None:
    heard: list[RunEvent] = []
    run_id = start(store, parent, FinetuneOptions(epochs=500))
    result = execute_job(
        store, run_id, Progress(heard.append, lambda: sum(event.kind == "finetune" for event in heard) > 2)
    )
    assert result["status"] == "cancelled"
    assert result["compressed"]["n"] == 100
    assert result["finetune"]["status"] == "cancelled"
    assert 1 <= result["finetune"]["epochs"] < 500


def test_a_fine_tuned_run_can_be_fine_tuned_again(store: Store, parent: str) -> None:
    second = start(store, parent)
    execute_job(store, second)
    third = execute_job(store, start(store, second))
    assert third["finetune"]["run"] == second
    assert third["status"] == "completed"


def test_a_run_without_a_network_is_refused(seeded_store: Store) -> None:
    failed = next(run for run in seeded_store.list_runs() if run.status == "failed")
    with pytest.raises(WorkspaceError, match="no compressed network to fine-tune"):
        finetune_request(seeded_store, failed, LITTLE)


def test_the_request_comes_back_from_the_store(store: Store, parent: str) -> None:
    options = FinetuneOptions(trains="codes", epochs=7, time_limit_seconds=9.0, seed=3)
    request = finetune_request(store, store.run(parent), options, data="builtin", labels=False)
    again = RunRequest.from_json(request.to_json())
    assert again == request
    with pytest.raises(PlanError, match="scales or codes"):
        FinetuneOptions(trains="all")


def test_the_command_prints_one_object(store: Store, parent: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--train", "codes", "--minutes", "0.01", "--no-labels", "--flips"]
    assert main(["finetune", parent[:20], *asked, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    told = printed["finetune"]
    assert (told["trains"], told["labelled"], told["flips"], told["images"]) == ("codes", False, True, 998)
    assert printed["status"] == "completed"
    assert main(["finetune", parent, "--epochs", "0"]) == 2
    assert "epochs out of range" in capsys.readouterr().err
    assert main(["finetune", "nothing"]) == 2
    assert "no such run" in capsys.readouterr().err
