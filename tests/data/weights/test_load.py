"""Weights: read in every form people save them, matched by name, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qaf_core.data.models.architectures import build_architecture
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.weights.entries import TensorEntry, WeightLimits, WeightsHeader
from qaf_core.data.weights.header import read_header
from qaf_core.data.weights.load import count_outputs, load_weights, read_weights
from qaf_core.data.weights.tensor_names import rename
from qaf_core.errors import QafError, WeightsError

pytestmark = pytest.mark.usefixtures("uncaptured")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """A sound state dict of cifar/resnet20."""
    torch.manual_seed(0)
    return {
        name: value.clone() for name, value in build_architecture("cifar_resnet20", 10).state_dict().items()
    }


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "data_parallel", "half", "no counters"])
def test_the_usual_ways_to_save_weights_are_all_read(
    tmp_path: Path, state: dict[str, torch.Tensor], wrapping: str
) -> None:
    if wrapping == "half":
        save_file({name: value.half() for name, value in state.items()}, tmp_path / "w.safetensors")
    elif wrapping == "no counters":
        kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        save_file(kept, tmp_path / "w.safetensors")
    elif wrapping == "data_parallel":
        torch.save(
            {"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth"
        )
    else:
        torch.save({"state_dict": state} if wrapping == "state_dict" else state, tmp_path / "w.pth")
    file = next(tmp_path.glob("w.*"))
    network = build_model(find_model("cifar/resnet20", weights=file))
    assert network.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(network.conv1.weight.data, state["conv1.weight"], rtol=1e-3, atol=1e-4)


def test_damaged_or_foreign_weights_are_told_in_one_line(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    def message(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, tmp_path / "w.safetensors")
        with pytest.raises(QafError) as caught:
            build_model(find_model("cifar/resnet20", weights=tmp_path / "w.safetensors"))
        assert isinstance(caught.value, WeightsError)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    renamed = {name.replace("layer1.0", "block1"): value for name, value in state.items()}
    assert "for another network than cifar/resnet20; got 8 unknown tensors (block1." not in message(renamed)
    assert "unknown tensors (block1." in message(renamed)
    lacking = {name: value for name, value in state.items() if name != "bn1.running_mean"}
    assert "expected 1 more tensors (bn1.running_mean)" in message(lacking)
    wide = {**state, "conv1.weight": torch.zeros(16, 3, 5, 5)}
    assert (
        "conv1.weight in w.safetensors has the wrong shape; got (16, 3, 5, 5); expected (16, 3, 3, 3)"
        in message(wide)
    )
    sick = {**state, "linear.bias": torch.full((10,), float("nan"))}
    assert "linear.bias in w.safetensors holds NaN" in message(sick)
    assert "unknown tensors" in message({"a": torch.zeros(1)})


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"PK\x03\x04 cut off"])
def test_files_that_hold_no_weights_are_told_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights file {name}") as caught:
        build_model(find_model("cifar/resnet20", weights=tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.model."]
)
@pytest.mark.parametrize("kind", ["w.safetensors", "w.pth"])
def test_prefixes_of_wrappers_are_taken_off(
    tmp_path: Path, state: dict[str, torch.Tensor], prefix: str, kind: str
) -> None:
    wrapped = {prefix + name: value for name, value in state.items()}
    if kind == "w.pth":
        torch.save({"ema": {**wrapped, "n_averaged": torch.tensor(7)}}, tmp_path / kind)
    else:
        save_file(wrapped, tmp_path / kind)
    network = build_model(find_model("cifar/resnet20", weights=tmp_path / kind))
    assert torch.equal(network.linear.bias, state["linear.bias"])


def test_prefixes_the_network_has_itself_stay_or_are_put_on() -> None:
    assert rename(["model.a", "model.b"], ["model.a", "model.b"]) == {
        "model.a": "model.a",
        "model.b": "model.b",
    }
    assert rename(["module.model.a"], ["model.a"]) == {"module.model.a": "model.a"}
    assert rename(["a", "b"], ["backbone.a", "backbone.b"]) == {"a": "backbone.a", "b": "backbone.b"}
    assert rename(["backbone.a", "head.b"], ["backbone.a", "head.b"])["head.b"] == "head.b"
    assert rename([], ["a"]) == {}


def test_weights_that_are_tied_need_to_be_there_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3, bias=False)
            self.second = nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

    for name in ("first.weight", "second.weight"):
        network = Tied()
        save_file({name: torch.eye(3)}, tmp_path / "w.safetensors")
        load_weights(network, read_weights(tmp_path / "w.safetensors"), "w.safetensors", "tied")
        assert network.first.weight is network.second.weight
        assert torch.equal(network.first.weight, torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["w.safetensors", "w.pth"])
def test_other_precisions_are_cast(
    tmp_path: Path, state: dict[str, torch.Tensor], dtype: torch.dtype, kind: str
) -> None:
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    save_file(cast, tmp_path / kind) if kind == "w.safetensors" else torch.save(cast, tmp_path / kind)
    network = build_model(find_model("cifar/resnet20", weights=tmp_path / kind))
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert torch.equal(network.conv1.weight, cast["conv1.weight"].float())


def test_numbers_that_are_no_weights_are_refused(state: dict[str, torch.Tensor]) -> None:
    network = build_architecture("cifar_resnet20", 10)
    for value, told in (
        (torch.zeros(10, dtype=torch.int8), "has the wrong type; got int8"),
        (torch.zeros(10, dtype=torch.complex64), "has the wrong type; got complex64"),
        (torch.full((10,), 1e300, dtype=torch.float64), "holds numbers beyond float32; got float64"),
        (torch.full((10,), float("inf")), "holds NaN or infinite"),
    ):
        with pytest.raises(WeightsError, match=told):
            load_weights(network, {**state, "linear.bias": value}, "w.pth", "it")


@pytest.mark.parametrize("kind", ["w.safetensors", "w.pth", "old.pth"])
def test_finetuned_weights_bring_their_own_number_of_classes(tmp_path: Path, kind: str) -> None:
    state = build_architecture("cifar_resnet20", 3).state_dict()
    if kind == "w.safetensors":
        save_file(state, tmp_path / kind)
    else:
        torch.save({"model": state}, tmp_path / kind, _use_new_zipfile_serialization=kind == "w.pth")
    source = find_model("cifar/resnet20", weights=tmp_path / kind)
    assert source.classes == ("class 0", "class 1", "class 2")
    assert build_model(source).get_parameter("linear.weight").shape[0] == 3


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "squeezenet1_0", "densenet121", "convnext_tiny", "maxvit_t", "vit_b_16"]
)
def test_the_classifier_is_found_in_every_family(name: str) -> None:
    with torch.device("meta"):
        state = build_architecture(f"torchvision.{name}", 7).state_dict()
    entries = {key: TensorEntry(dtype="F32", shape=tuple(value.shape)) for key, value in state.items()}
    assert count_outputs(WeightsHeader(tensors=entries)) == 7
    wrapped = WeightsHeader(tensors={f"module.{key}": value for key, value in entries.items()})
    assert count_outputs(wrapped) == 7
    assert count_outputs(WeightsHeader(tensors={"x": entries[next(iter(entries))]})) is None


def test_a_file_over_the_limit_is_never_loaded(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="is too large; got 1,"):
        read_weights(tmp_path / "w.safetensors", WeightLimits(file_bytes=10**6))
    assert read_header(tmp_path / "w.safetensors").tensors.keys() == state.keys()
