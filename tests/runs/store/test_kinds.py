"""What tells one job from another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qaf_core.data.models.catalogue import find_model
from qaf_core.data.workspace.registry import add_model
from qaf_core.runs.store import kinds
from qaf_core.runs.store.kinds import KINDS, digest_request, kind_of
from qaf_core.runs.store.request import (
    CheckRequest,
    DeviceKitRequest,
    ExportRequest,
    InspectRequest,
    PlanRequest,
    RunRequest,
)


def test_every_kind_is_done_by_a_function_that_is_there() -> None:
    import importlib

    for kind in KINDS.values():
        module, _, name = kind.work.partition(":")
        assert callable(getattr(importlib.import_module(f"qaf_core.runs.{module}"), name))


def test_fine_tuning_is_a_kind_of_its_own() -> None:
    assert kind_of(RunRequest(model="digits/cnn")).name == "compress"
    assert kind_of(RunRequest(model="digits/cnn", finetune={"run": "a"})).name == "finetune"
    assert kind_of(PlanRequest(model="digits/cnn")).name == "plan"


def test_the_same_request_has_the_same_digest_and_another_another(workspace: Path) -> None:
    requests = [
        InspectRequest(model="digits/cnn"),
        InspectRequest(model="inspection/vgg"),
        InspectRequest(model="digits/cnn", preprocessing={"channel_order": "bgr"}),
        CheckRequest(model="digits/cnn"),
        CheckRequest(model="digits/cnn", images=10),
        ExportRequest(run="a", format="onnx"),
        ExportRequest(run="b", format="onnx"),
    ]
    digests = [digest_request(request, workspace) for request in requests]
    assert len(set(digests)) == len(requests)
    assert digests == [digest_request(request, workspace) for request in requests]


def test_another_content_of_a_file_is_another_job(workspace: Path, tmp_path: Path) -> None:
    weights, images = tmp_path / "mine.pth", tmp_path / "images"
    (images / "good").mkdir(parents=True)
    weights.write_bytes(b"a")
    request = CheckRequest(model="cifar/resnet20", weights=f"{weights}#ema", data=str(images))
    seen = {digest_request(request, workspace)}
    os.utime(weights, ns=(1, 1))
    seen.add(digest_request(request, workspace))
    (images / "good" / "a.png").write_bytes(b"a")
    seen.add(digest_request(request, workspace))
    (images / "good" / "a.png").write_bytes(b"bb")
    seen.add(digest_request(request, workspace))
    assert len(seen) == 4
    # A look at the layers reads no images.
    looked = InspectRequest(model="cifar/resnet20", weights=str(weights))
    before = digest_request(looked, workspace)
    (images / "good" / "b.png").write_bytes(b"c")
    assert digest_request(looked, workspace) == before


def test_another_network_of_a_run_or_under_a_registered_name_is_another_job(
    workspace: Path, tmp_path: Path
) -> None:
    kit, look = DeviceKitRequest(run="a"), InspectRequest(model="my/parts")
    before = digest_request(kit, workspace), digest_request(look, workspace)
    (workspace / "runs" / "a").mkdir(parents=True)
    (workspace / "runs" / "a" / "model.safetensors").write_bytes(b"packed")
    weights = find_model("inspection/resnet20").weights
    add_model(workspace, model_id="my/parts", base="cifar/resnet20", weights=weights)
    assert digest_request(kit, workspace) != before[0]
    assert digest_request(look, workspace) != before[1]


def test_another_version_of_the_product_is_another_job(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest_request(InspectRequest(model="digits/cnn"), workspace)
    monkeypatch.setattr(kinds, "_installation", lambda: ("another",))
    assert digest_request(InspectRequest(model="digits/cnn"), workspace) != before


def test_names_that_are_no_paths_are_no_fault(workspace: Path) -> None:
    for data in ("builtin", "torchvision:MNIST", "~nobody-here/images", "a\0b"):
        assert digest_request(CheckRequest(model="digits/cnn", weights="DEFAULT", data=data), workspace)
