"""What the pages know of models: a user's own are looked into as they are given, and torch stays outside."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import streamlit as st

from dashboard.state import catalogue
from dashboard.state.overrides import Overrides, keep_class_names
from qaf_core.data.models.catalogue import find_model
from qaf_core.errors import QafError
from qaf_core.runs.jobs.models import inspect_model
from qaf_core.runs.store import kinds
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import InspectRequest
from qaf_core.runs.store.store import Store

from .conftest import ROOT


@pytest.fixture
def fresh(store: Store) -> None:
    """Nothing is known from earlier tests."""
    st.cache_resource.clear()
    st.cache_data.clear()


@pytest.fixture
def asked(fresh: None, served: Callable[..., list[JobRecord]]) -> list[JobRecord]:
    """Jobs are answered at once, each with another number of inputs."""
    row = next(r for r in find_model("digits/cnn").card["inventory"] if r["kind"] == "linear")
    count = itertools.count(1)
    return served(lambda _: {"layers": [{**row, "weight_shape": [10, next(count)]}]})


def ten_class_resnet18(path: Path) -> Path:
    """The state of a ResNet-18 fine-tuned on ten classes."""
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=10).state_dict(), path)
    return path


def test_own_weights_are_planned_with_their_own_outputs(
    tmp_path: Path, workspace: Path, fresh: None, served: Callable[..., Any]
) -> None:
    served(lambda job: inspect_model(job.request, workspace))
    weights = ten_class_resnet18(tmp_path / "ten.pth")
    plain = catalogue.open_model("torchvision/resnet18", workspace)
    given = Overrides(weights=str(weights))
    own = catalogue.open_model("torchvision/resnet18", workspace, given)
    shapes = [
        {info.name: info.weight_shape for info in inventory}["fc"]
        for inventory in (
            catalogue.inventory_of(own, workspace, given), catalogue.inventory_of(plain, workspace),
        )
    ]  # fmt: skip
    assert shapes == [(10, 512), (1000, 512)]


def test_whatever_is_given_is_asked_for_and_kept_apart(
    tmp_path: Path, workspace: Path, asked: list[JobRecord]
) -> None:
    weights = tmp_path / "ten.pth"
    shipped = find_model("digits/cnn").weights
    assert shipped is not None
    weights.write_bytes(shipped.read_bytes())
    names = keep_class_names(workspace, "\n".join(f"kind {number}" for number in range(10)))
    source = find_model("cifar/resnet20")
    plain = Overrides(weights=str(weights))
    full = Overrides(weights=str(weights), classes=names, preprocessing={"channel_order": "bgr"})
    catalogue.inventory_of(source, workspace, plain)
    catalogue.inventory_of(source, workspace, full)
    catalogue.inventory_of(source, workspace, full)
    assert len(asked) == 2
    assert asked[-1].request == InspectRequest(
        model="cifar/resnet20", weights=str(weights), classes=names, preprocessing={"channel_order": "bgr"}
    )
    # Another file under the same name is another network.
    os.utime(weights, ns=(1, 1))
    catalogue.inventory_of(source, workspace, full)
    assert len(asked) == 3


def test_what_another_version_has_found_is_asked_for_anew(
    workspace: Path, asked: list[JobRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, given = find_model("cifar/resnet20"), Overrides(weights=str(find_model("digits/cnn").weights))
    catalogue.inventory_of(source, workspace, given)
    monkeypatch.setattr(kinds, "_installation", lambda: ("another version",))
    catalogue.inventory_of(source, workspace, given)
    assert len(asked) == 2


def test_a_refusal_is_not_asked_for_again_at_every_click(
    workspace: Path, fresh: None, served: Callable[..., Any]
) -> None:
    def refuse(_: object) -> dict[str, Any]:
        raise QafError("torchvision publishes no weights NONE for resnet18")

    asked = served(refuse)
    for _click in range(3):
        with pytest.raises(QafError, match="no weights NONE"):
            catalogue.open_model("torchvision/resnet18", workspace, Overrides(weights="NONE"))
    assert len(asked) == 1


def test_a_network_of_timm_is_known_from_the_list_and_told_by_another_process(
    workspace: Path, fresh: None, served: Callable[..., Any]
) -> None:
    rows = find_model("digits/cnn").card["inventory"]
    told = {
        "title": "vit_tiny_patch16_224, timm",
        "architecture": "timm.vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "classes": ["a", "b"],
        "input_shape": [3, 224, 224],
        "preprocessing": {"resize": 248, "crop": [224, 224], "mean": [0.5] * 3, "std": [0.5] * 3},
        "accuracy": None,
        "weights": None,
        "weights_url": None,
    }
    asked = served(lambda _: {"source": told, "layers": rows})
    listed = catalogue.listed_model("timm/vit_tiny_patch16_224", workspace)
    assert (listed.input_shape, listed.preprocessing.mean, asked) == ((3, 224, 224), (0.5, 0.5, 0.5), [])
    source = catalogue.open_model("timm/vit_tiny_patch16_224", workspace)
    assert (source.architecture, source.classes, source.weights) == (told["architecture"], ("a", "b"), None)
    assert source.preprocessing is not None
    assert source.preprocessing.resize == 248
    assert len(catalogue.inventory_of(source, workspace)) == len(rows)
    assert len(asked) == 1
    given = Overrides(weights="DEFAULT")
    catalogue.inventory_of(
        catalogue.open_model("timm/vit_tiny_patch16_224", workspace, given), workspace, given
    )
    assert len(asked) == 2
    assert asked[1].request == InspectRequest(model="timm/vit_tiny_patch16_224", weights="DEFAULT")


def test_the_picker_shows_timms_networks_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert not [name for name in catalogue.other_models() if name.startswith("timm/")]
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    assert "timm/convnext_tiny" in catalogue.other_models()


def test_the_dashboard_never_imports_torch(tmp_path: Path) -> None:
    """Neither for what is shipped, nor for a user's file, nor for the name of published weights."""
    weights = ten_class_resnet18(tmp_path / "ten.pth")
    code = f"""
import sys
from pathlib import Path
from types import ModuleType
import dashboard.app, dashboard.state.catalogue as c
from dashboard.state.overrides import Overrides
import subprocess
from qaf_core.runs.worker import supervisor as supervision
workspace = Path({str(tmp_path / "workspace")!r})
real, idle = supervision.start_worker, [sys.executable, "-c", "import time; time.sleep(600)"]
supervision.start_worker = lambda folder, *light: real(folder, *light) if light else subprocess.Popen(idle)
supervisor = supervision.Supervisor(workspace)
c.shipped_models()
c.sample_strip("digits/cnn", 6)
assert len(c.open_model("torchvision/resnet18", workspace, Overrides(weights={str(weights)!r})).classes) == 10
given = Overrides(weights="DEFAULT")
source = c.open_model("torchvision/resnet18", workspace, given)
assert (source.classes[0], source.accuracy > 0.6) == ("tench", True)
assert {{row.name: row.weight_shape for row in c.inventory_of(source, workspace, given)}}["fc"] == (1000, 512)
assert str(source.weights).startswith(str(workspace)), source.weights
supervisor.stop()
assert "torch" not in sys.modules, [m for m in sys.modules if "torch" in m][:3]
"""
    environment = {**os.environ, "TORCH_HOME": str(tmp_path / "empty")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
