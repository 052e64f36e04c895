"""Of several sets of weights in one file it is said which is taken, and the user may choose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qaf_core.cli.entry import main
from qaf_core.data.models.architectures import build_architecture
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.weights.checkpoints import pick_weights, split_part
from qaf_core.data.weights.load import load_weights, read_weights
from qaf_core.data.weights.tensor_names import rename
from qaf_core.errors import WeightsError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def raw() -> State:
    torch.manual_seed(0)
    return build_architecture("cifar_resnet20", 10).state_dict()


@pytest.fixture(scope="module")
def averaged(raw: State) -> State:
    return {name: value + 1 if value.is_floating_point() else value for name, value in raw.items()}


def led(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def without_buffers(state: State) -> State:
    return {name: value for name, value in state.items() if "running" not in name and "num_b" not in name}


BESIDE: dict[str, Callable[[State, State], dict[str, Any]]] = {
    "timm": lambda raw, ema: {"epoch": 3, "state_dict": raw, "state_dict_ema": ema, "args": {"lr": 0.1}},
    "model": lambda raw, ema: {"model": led("module.", raw), "model_ema": led("module.", ema)},
    "basicsr": lambda raw, ema: {"params": raw, "params_ema": ema},
    "nested": lambda raw, ema: {"model": raw, "ema": {"module": ema, "decay": 0.999}},
    "shadow": lambda raw, ema: {"state_dict": raw, "ema": {"shadow": without_buffers(ema), "updates": 7}},
    "own names": lambda raw, ema: {"net": led("module.", raw), "net_ema_state": without_buffers(ema)},
    "flat": lambda raw, ema: {**raw, "ema": ema},
    "optimizer": lambda raw, ema: {
        "model": raw, "ema_state_dict": ema, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
    },
    "prefixes": lambda raw, ema: {"state_dict": {**led("model.", raw), **led("ema_model.", ema)}},
    "wrapped": lambda raw, ema: {**led("model.", raw), **led("model_ema.module.", ema)},
    "partly": lambda raw, ema: {**led("net.", raw), **led("ema.net.", without_buffers(ema))},
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.usefixtures("uncaptured")
def test_averaged_weights_are_taken_and_raw_ones_on_request(
    tmp_path: Path, raw: State, averaged: State, kind: str
) -> None:
    path = tmp_path / "w.pth"
    torch.save(BESIDE[kind](raw, averaged), path)
    for ending, state in (("", averaged), ("#ema", averaged), ("#raw", raw)):
        source = find_model("cifar/resnet20", f"{path}{ending}")
        network = build_model(source)
        assert torch.equal(network.linear.bias, state["linear.bias"]), ending
        assert torch.equal(network.conv1.weight, state["conv1.weight"]), ending
        buffers = raw if kind in ("shadow", "own names", "partly") else state  # those are not averaged there
        assert torch.equal(network.bn1.running_mean, buffers["bn1.running_mean"]), ending
        note = source.weights_note
        assert (note is not None) == (ending == "")
        assert note is None or ("w.pth" in note and "averaged" in note and "#raw" in note), note


@pytest.mark.usefixtures("uncaptured")
def test_prefixes_tell_sets_apart_in_safetensors_too(tmp_path: Path, raw: State, averaged: State) -> None:
    path = tmp_path / "w.safetensors"
    both = {**led("model.", raw), **led("ema_model.", averaged)}
    save_file({name: value.clone() for name, value in both.items()}, path)
    for ending, state in (("", averaged), ("#raw", raw), ("#ema_model", averaged)):
        network = build_model(find_model("cifar/resnet20", f"{path}{ending}"))
        assert torch.equal(network.linear.bias, state["linear.bias"])
    with pytest.raises(
        WeightsError, match="no weights of this name; got #other; expected #ema_model, #model"
    ):
        find_model("cifar/resnet20", f"{path}#other")


@pytest.mark.usefixtures("uncaptured")
def test_two_networks_in_one_file_are_asked_for(tmp_path: Path, raw: State, averaged: State) -> None:
    path = tmp_path / "w.pth"
    torch.save({"student": raw, "teacher": averaged, "dino_loss": {"center": torch.ones(1)}}, path)
    with pytest.raises(
        WeightsError,
        match="w.pth holds several sets of weights; got student, teacher.*say which: w.pth#student",
    ):
        find_model("cifar/resnet20", path)
    network = build_model(find_model("cifar/resnet20", f"{path}#teacher"))
    assert torch.equal(network.linear.bias, averaged["linear.bias"])
    torch.save({**led("student.", raw), **led("teacher.", averaged)}, path)
    with pytest.raises(WeightsError, match="several sets of weights; got student, teacher"):
        build_model(find_model("cifar/resnet20", path))
    network = build_model(find_model("cifar/resnet20", f"{path}#student"))
    assert torch.equal(network.linear.bias, raw["linear.bias"])
    torch.save({"ema_1": raw, "ema_2": averaged}, path)
    with pytest.raises(WeightsError, match="several sets of weights; got ema_1, ema_2"):
        find_model("cifar/resnet20", path)


@pytest.mark.usefixtures("uncaptured")
@pytest.mark.parametrize("part", ["ema", "other", "state_dict_ema"])
def test_a_part_that_is_not_there_is_told(tmp_path: Path, raw: State, part: str) -> None:
    for saved in ({"state_dict": raw}, raw):
        torch.save(saved, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=f"w.pth holds no weights of this name; got #{part}"):
            find_model("cifar/resnet20", f"{tmp_path}/w.pth#{part}")
        assert build_model(find_model("cifar/resnet20", f"{tmp_path}/w.pth#raw"))


@pytest.mark.usefixtures("uncaptured")
def test_averaged_weights_without_names_are_told(tmp_path: Path, raw: State) -> None:
    shadow = [value for name, value in raw.items() if "weight" in name]
    torch.save({"model": raw, "ema": {"decay": 0.9, "shadow_params": shadow}}, tmp_path / "w.pth")
    source = find_model("cifar/resnet20", tmp_path / "w.pth")
    assert source.weights_note is not None
    assert "averaged weights without names (shadow_params)" in source.weights_note
    assert torch.equal(build_model(source).linear.bias, raw["linear.bias"])


def test_a_file_may_have_a_number_sign_in_its_name(tmp_path: Path, raw: State) -> None:
    for name in ("a#raw", "b.pth"):
        torch.save(raw, tmp_path / name)
    assert split_part(tmp_path / "a#raw") == (tmp_path / "a#raw", None)
    assert split_part(f"{tmp_path}/b.pth#ema") == (tmp_path / "b.pth", "ema")
    assert split_part("/data#1/w.pth") == (Path("/data#1/w.pth"), None)
    with pytest.raises(WeightsError, match="not found: gone.pth#ema"):
        find_model("cifar/resnet20", "gone.pth#ema")


# --- what stands beside the weights


FOREIGN = {
    "criterion.weight": torch.ones(3), "loss_fn.pos_weight": torch.ones(1), "total_ops": torch.zeros(1),
    "train_acc.total": torch.zeros(1), "metrics.0.sum": torch.zeros(2),
}  # fmt: skip


@pytest.mark.usefixtures("uncaptured")
@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "student.encoder.", "ema_model."])
def test_prefixes_come_off_beside_what_is_no_weight(tmp_path: Path, raw: State, prefix: str) -> None:
    counted = {f"{prefix}layer1.0.total_params": torch.zeros(1), f"{prefix}criterion.weight": torch.ones(3)}
    saved = {"epoch": 7, **led(prefix, raw), **FOREIGN, **counted, "optimizer": {"state": {}}, "best": 0.5}
    torch.save(saved, tmp_path / "w.pth")
    network = build_model(find_model("cifar/resnet20", tmp_path / "w.pth"))
    assert torch.equal(network.linear.bias, raw["linear.bias"])


def test_other_tensors_are_still_refused(tmp_path: Path, raw: State) -> None:
    for name in ("model.head.weight", "head.weight"):
        torch.save({**led("model.", raw), name: torch.ones(3)}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="1 unknown tensors .*head.weight"):
            build_model(find_model("cifar/resnet20", tmp_path / "w.pth"))


def test_the_number_of_classes_is_found_beside_what_is_no_weight(tmp_path: Path) -> None:
    state = build_architecture("cifar_resnet20", 3).state_dict()
    torch.save({**led("model.", state), **led("ema_model.", state), **FOREIGN}, tmp_path / "w.pth")
    assert len(find_model("cifar/resnet20", tmp_path / "w.pth").classes) == 3


def test_names_of_a_loss_that_the_network_knows_stay() -> None:
    names = ["net.weight", "loss.weight", "ema.net.weight"]
    assert rename(names, names) == {name: name for name in names}
    assert rename(["m.loss.weight", "m.net.weight"], ["loss.weight", "net.weight"]) == {
        "m.loss.weight": "loss.weight",
        "m.net.weight": "net.weight",
    }


# --- complex and whole numbers


class Mixed(nn.Module):
    """Parameters and buffers of many types."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("table", torch.tensor([2**40, -1, 7]))
        self.register_buffer("small", torch.tensor([1, 2], dtype=torch.int16))
        self.register_buffer("on", torch.tensor([True, False]))
        self.register_buffer("phase", torch.randn(2, dtype=torch.complex128))

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_complex_and_whole_numbers_are_kept_exactly(tmp_path: Path) -> None:
    first, second = Mixed(), Mixed()
    second.table.zero_()
    for suffix, save in ((".pth", torch.save), (".safetensors", save_file)):
        state = first.state_dict()
        if suffix == ".safetensors":
            del state["phase"]  # the format has no complex128
        path = tmp_path / f"w{suffix}"
        save(state, path)
        load_weights(second, {**first.state_dict(), **read_weights(path)}, path.name, "mixed")
        second.float()
        for name, value in first.state_dict().items():
            assert second.state_dict()[name].dtype == value.dtype
            assert torch.equal(second.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("table", torch.tensor([0.5, 1, 2]), "wrong type; got float32 that int64 does not hold"),
        ("small", torch.tensor([2**20, 1]), "wrong type; got int64 that int16 does not hold"),
        ("on", torch.tensor([2, 0]), "wrong type; got int64 that bool does not hold"),
        ("table", torch.zeros(3, dtype=torch.complex64), "wrong type; got complex64"),
        ("spectrum", torch.tensor([1, 2, 3]), "wrong type; got int64; expected complex numbers"),
        ("spectrum", torch.full((3,), complex(0, float("nan"))), "holds NaN"),
        ("weight", torch.zeros(3, dtype=torch.complex64), "wrong type; got complex64; expected floating"),
    ],
)
def test_numbers_that_would_change_are_refused(name: str, value: Tensor, message: str) -> None:
    network = Mixed()
    with pytest.raises(WeightsError, match=f"tensor {name} .*{message}"):
        load_weights(network, {**network.state_dict(), name: value}, "w.pth", "mixed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("table", torch.tensor([1.0, 2.0, 3.0])),
        ("small", torch.tensor([5, -5])),
        ("on", torch.tensor([1, 0], dtype=torch.uint8)),
        ("spectrum", torch.tensor([1.0, 2.0, 3.0])),
    ],
)
def test_the_same_numbers_in_another_type_come_over(name: str, value: Tensor) -> None:
    network = Mixed()
    load_weights(network, {**network.state_dict(), name: value}, "w.pth", "mixed")
    assert torch.equal(network.state_dict()[name], value.to(network.state_dict()[name].dtype))


# --- commands


def test_commands_say_which_weights_are_taken(
    tmp_path: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = build_model(find_model("digits/cnn")).state_dict()
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "w.pth")
    weights = ["--weights", str(tmp_path / "w.pth")]
    assert main(["check", "digits/cnn", *weights]) == 0
    assert "note: w.pth holds several sets of weights: the averaged ones" in capsys.readouterr().out
    assert main(["check", "digits/cnn", *weights, "--json"]) == 0
    assert "state_dict_ema" in json.loads(capsys.readouterr().out)["weights_note"]
    assert main(["check", "digits/cnn", "--weights", str(tmp_path / "w.pth#raw"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights_note"] is None
    command = ["compress", "digits/cnn", *weights, "--method", "dense", "--bits", "8", "--no-check"]
    assert main(command) == 0
    assert "note: w.pth holds several sets" in capsys.readouterr().err


def test_a_registered_model_keeps_the_part(
    tmp_path: Path, workspace: Path, raw: State, averaged: State
) -> None:
    torch.save({"model": raw, "model_ema": averaged}, tmp_path / "w.pth")
    arguments = ["models", "--add", "own/net", "--model", "cifar/resnet20"]
    assert main([*arguments, "--weights", str(tmp_path / "w.pth#raw")]) == 0
    source = find_model("own/net", workspace=workspace)
    assert (source.weights, source.weights_part) == (tmp_path / "w.pth", "raw")
    assert torch.equal(build_model(source).linear.bias, raw["linear.bias"])


@pytest.mark.parametrize("content", [[1], {}, {"a": 1}, {"state_dict": {}}, None, {"x": {"y": {"z": 1}}}])
def test_what_holds_no_weights_is_left_as_it_is(content: Any) -> None:
    assert pick_weights(content, None, "w").state == content
