"""What tests share: an empty workspace, and one that holds runs as a user would have left them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from qaf_core.pipeline.events import RunEvent
from qaf_core.runs.jobs import images
from qaf_core.runs.store.request import RunRequest
from qaf_core.runs.store.store import Store

pytest_plugins = ["packed_networks"]

# The same examples on every machine, and no fault for a machine that is busy.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")

SEEDED_LAYERS = ("layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1")


@pytest.fixture(scope="session", autouse=True)
def _no_workspace_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that names no workspace does not use that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QAF_WORKSPACE", str(tmp_path_factory.mktemp("unnamed") / "workspace"))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_calibration_images() -> Iterator[None]:
    """As many images as a fit needs at least: what jobs do with them does not depend on their number."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CALIBRATION_IMAGES", "CALIBRATION_IMAGES_GIVEN"):
            patch.setattr(images, name, 128)
        yield


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace that is also the default one."""
    folder = tmp_path / "workspace"
    monkeypatch.setenv("QAF_WORKSPACE", str(folder))
    return folder


@pytest.fixture
def store(workspace: Path) -> Iterator[Store]:
    """The store of ``workspace``, empty."""
    with Store(workspace) as opened:
        yield opened


@pytest.fixture
def seeded_store(store: Store) -> Store:
    """A store with a finished run of each method, a stopped one and a failed one."""
    for method, ratio, value in (
        ("joint", 2.0, 0.921),
        ("joint", 3.0, 0.897),
        ("paper", 2.0, 0.842),
        ("sequential", 2.0, 0.713),
        ("dense", 1.0, 0.931),
    ):
        seed_finished_run(store, method=method, ratio=ratio, value=value)
    stopped = seed_finished_run(store, method="joint", ratio=1.5, value=0.91, status="cancelled", done=2)
    assert store.run(stopped).status == "cancelled"
    failed = store.create_run(RunRequest(model="inspection/resnet20", plan=seed_plan("cp", 2.0)))
    store.finish(failed, "failed", error="weights hold NaN; got layer1.0.conv1; train the model again.")
    return store


def seed_plan(structure: str, ratio: float) -> dict[str, Any]:
    """A plan over ``SEEDED_LAYERS`` as plain data."""
    rank = None if structure == "dense" else max(1, int(40 / ratio))
    layers = [{"name": name, "structure": structure, "rank": rank, "bits": 4} for name in SEEDED_LAYERS]
    return {
        "schema_version": 1,
        "model": "inspection/resnet20",
        "layers": layers,
        "activation_bits": 8,
        "options": {},
        "seed": 0,
    }


def seed_finished_run(
    store: Store,
    *,
    method: str = "joint",
    ratio: float = 2.0,
    value: float = 0.92,
    status: str = "completed",
    done: int = len(SEEDED_LAYERS),
) -> str:
    """Write a run with its events, layers and result, as ``execute_job`` would; the run's id."""
    structure = "dense" if method == "dense" else "cp"
    plan = seed_plan(structure, ratio)
    run_id = store.create_run(
        RunRequest(model="inspection/resnet20", plan=plan, method=method, name=f"{method} {ratio:g}")
    )
    store.append_event(
        run_id, RunEvent(kind="stage", data={"stage": "loading", "fraction": 0.0, "message": "Loading"})
    )
    rows = [_seed_layer(store, run_id, index, plan["layers"][index], ratio) for index in range(done)]
    baseline = {"metric": "top1", "value": 0.942, "n": 2000, "ci95": [0.931, 0.951]}
    compressed = {"metric": "top1", "value": value, "n": 2000, "ci95": [value - 0.012, value + 0.011]}
    for which, evaluation in (("original", baseline), ("compressed", compressed)):
        store.append_event(
            run_id, RunEvent(kind="evaluated", data={"which": which, **evaluation}, elapsed_seconds=30.0)
        )
    drop = baseline["value"] - value
    cost = {
        "params": int(270_000 / ratio),
        "size_bytes": int(150_000 / ratio),
        "macs": int(160e6 / ratio),
        "bops": int(160e6 * 32 / ratio),
        "peak_activation_bytes": 262_144,
        "energy_joules": 2.1e-4 / ratio,
    }
    original = {
        "params": 270_000,
        "size_bytes": 1_080_000,
        "macs": 160_000_000,
        "bops": 163_840_000_000,
        "peak_activation_bytes": 524_288,
        "energy_joules": 1.1e-3,
    }
    result = {
        "run_id": run_id,
        "status": status,
        "model": "inspection/resnet20",
        "method": method,
        "plan": plan,
        "baseline": baseline,
        "compressed": compressed,
        "drop": drop,
        "drop_ci95": [drop - 0.008, drop + 0.008],
        "cost": cost,
        "baseline_cost": original,
        "layers": rows,
        "seconds": {"factorize": 21.0, "calibrate": 6.0, "evaluate": 4.0, "total": 33.0},
        "peak_memory_bytes": 900_000_000,
        "environment": {"python": "3.11.7", "torch": "2.14.1", "platform": "Linux", "threads": 2},
    }
    store.finish(run_id, status, result)
    return run_id


def _seed_layer(store: Store, run_id: str, index: int, plan: dict[str, Any], ratio: float) -> dict[str, Any]:
    name, began, floor = plan["name"], 3.0 * index, 0.2 + 0.02 * index
    started = {
        "index": index,
        "total": len(SEEDED_LAYERS),
        **{key: plan[key] for key in ("structure", "rank", "bits")},
    }
    store.append_event(
        run_id, RunEvent(kind="layer_started", layer=name, data=started, elapsed_seconds=began)
    )
    for iteration in range(1, 21):
        decay = math.exp(-iteration / 5)
        data = {
            "iteration": iteration,
            "float_error": floor * (0.8 + decay),
            "quantized_error": floor * (1 + 2 * decay),
            "primal_residual": decay,
            "dual_residual": 0.5 * decay,
            "rho": 1.0,
        }
        moment = began + 0.1 * iteration
        store.append_event(run_id, RunEvent(kind="iteration", layer=name, data=data, elapsed_seconds=moment))
    row = {
        **{key: plan[key] for key in ("name", "structure", "rank", "bits")},
        "relative_error": floor * ratio / 2,
        "float_relative_error": 0.8 * floor * ratio / 2,
        "status": "converged",
        "iterations": 20,
        "seconds": 2.0,
        "output_error": 0.1 * floor,
    }
    finished = {
        **{key: value for key, value in row.items() if key != "name"},
        "explanation": "The error stopped changing: more iterations would not lower it.",
    }
    store.append_event(
        run_id, RunEvent(kind="layer_finished", layer=name, data=finished, elapsed_seconds=began + 2.0)
    )
    bell = [int(1000 * math.exp(-(((i - 7.5) / 4) ** 2))) for i in range(16)]
    histograms: dict[str, Any] = {"weight": {"edges": [-0.4 + 0.05 * i for i in range(17)], "counts": bell}}
    for factor in ("A", "B", "C"):
        histograms[factor] = {"codes": list(range(-8, 8)), "counts": bell, "bits": 4}
    store.put_layer(run_id, index, row, {"histograms": histograms})
    return row
