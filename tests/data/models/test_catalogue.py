"""Model sources: found by name, built with the right weights, and every way weights can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qaf_core.data.load import load_images, to_batches
from qaf_core.data.models import catalogue
from qaf_core.data.models.architectures import CifarBlock, build_architecture
from qaf_core.data.models.catalogue import build_model, build_network, find_model, list_models, load_inventory
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.torchvision_names import (
    TORCHVISION_DETECTION,
    TORCHVISION_MODELS,
    TORCHVISION_SEGMENTATION,
)
from qaf_core.errors import ModelError, WeightsError
from qaf_core.network.graph.inventory import take_inventory
from tests.model_sources import fed

SHIPPED = (
    "digits/cnn",
    "inspection/resnet20",
    "inspection/resnet18",
    "inspection/vgg",
    "inspection/unet",
    "inspection/detector",
)
REAL_DATA = os.environ.get("QAF_REAL_DATA")


# --- Finding


def test_the_list_holds_every_family_once() -> None:
    names = [source.id for source in list_models()]
    assert len(names) == len(set(names))
    assert set(SHIPPED) == {source.id for source in list_models() if source.shipped}
    assert {"cifar/resnet20", "cifar/resnet110", "torchvision/resnet18", "torchvision/vit_b_16"} <= set(names)


def test_listing_models_loads_no_torch() -> None:
    code = (
        "import sys; from qaf_core.data.models.catalogue import list_models, find_model, load_inventory\n"
        "from qaf_core.data.load import load_images\n"
        "list_models(); load_inventory(find_model('digits/cnn')); find_model('cifar/resnet20')\n"
        "load_images('builtin', find_model('inspection/resnet20'), split='calibration', limit=8)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("asked", "suggested"),
    [
        ("resnet18", "inspection/resnet18, torchvision/resnet18"),
        ("inspection/resnet21", "inspection/resnet20"),
        ("Digits/CNN", "digits/cnn"),
        ("torchvision/resnet5", "torchvision/resnet50"),
        ("cifar/resnet21", "cifar/resnet20"),
    ],
)
def test_an_unknown_model_names_close_matches(asked: str, suggested: str) -> None:
    with pytest.raises(ModelError, match=f"unknown model; got {asked}") as caught:
        find_model(asked)
    assert suggested in str(caught.value)


@pytest.mark.parametrize("asked", ["", "qqqqqqqq", "/", "../../etc/passwd"])
def test_a_hopeless_name_points_to_the_list(asked: str) -> None:
    with pytest.raises(ModelError, match="qaf models"):
        find_model(asked)


def test_the_listed_torchvision_names_are_torchvisions() -> None:
    import torchvision.models

    known = set(torchvision.models.list_models(module=torchvision.models))
    assert set(TORCHVISION_MODELS) <= known
    assert set(TORCHVISION_SEGMENTATION) <= set(
        torchvision.models.list_models(module=torchvision.models.segmentation)
    )
    assert set(TORCHVISION_DETECTION) <= set(
        torchvision.models.list_models(module=torchvision.models.detection)
    )


@pytest.mark.parametrize(
    ("name", "task", "classes", "parameters"),
    # torchvision's own counts for its public weights, with the 53,120 that BatchNorm of ResNet-50 holds where
    # they freeze it.
    [
        ("deeplabv3_resnet50", "segmentation", 21, 42_004_074),
        ("fcn_resnet50", "segmentation", 21, 35_322_218),
        ("lraspp_mobilenet_v3_large", "segmentation", 21, 3_221_538),
        ("ssdlite320_mobilenet_v3_large", "detection", 91, 3_440_060),
        ("ssd300_vgg16", "detection", 91, 35_641_826),
        ("fasterrcnn_resnet50_fpn", "detection", 91, 41_755_286 + 53_120),
        ("fcos_resnet50_fpn", "detection", 91, 32_269_600 + 53_120),
        ("maskrcnn_resnet50_fpn", "detection", 91, 44_401_393 + 53_120),
        ("retinanet_resnet50_fpn", "detection", 91, 34_014_999 + 53_120),
    ],
)
def test_segmentation_and_detection_networks_hold_what_the_public_weights_hold(
    name: str, task: str, classes: int, parameters: int
) -> None:
    source = find_model(f"torchvision/{name}")
    assert (source.task, len(source.classes)) == (task, classes)
    with torch.device("meta"):
        network = build_architecture(source.architecture, classes)
    assert sum(value.numel() for value in network.parameters()) == parameters


# --- Architectures


@pytest.mark.parametrize(
    ("name", "epsilon"),
    # torchvision sets the epsilon to zero when it loads the first three; PyTorch's own is left to the other.
    [("fasterrcnn", 1e-12), ("maskrcnn", 1e-12), ("retinanet", 1e-12), ("fcos", 1e-5)],
)
def test_a_detector_has_the_batchnorm_of_its_public_weights(name: str, epsilon: float) -> None:
    with torch.device("meta"):
        network = build_architecture(f"torchvision.{name}_resnet50_fpn", 91)
    assert {norm.eps for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)} == {epsilon}


def test_torchvisions_networks_bear_the_names_of_what_they_tell_apart() -> None:
    classes = find_model("torchvision/resnet18").classes
    assert (classes[0], classes[1], classes[999], len(set(classes))) == (
        "tench",
        "goldfish",
        "toilet tissue",
        1000,
    )
    assert find_model("torchvision/lraspp_mobilenet_v3_large").classes[15] == "person"
    assert find_model("torchvision/ssd300_vgg16").classes[:3] == ("__background__", "person", "bicycle")


@pytest.mark.parametrize(
    ("name", "parameters"),
    # He et al. 2016, table 6: 0.27, 0.46, 0.66, 0.85 and 1.7 M
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_cifar_resnets_have_the_published_size(name: str, parameters: int) -> None:
    network = build_network(find_model(f"cifar/{name}"))
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == int(name[6:]) - 1


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros() -> None:
    block = CifarBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    features = torch.rand(1, 2, 4, 4)
    result = block(features)
    torch.testing.assert_close(result[:, 1:3], features[:, :, ::2, ::2])
    assert result[:, [0, 3]].abs().max() == 0


def test_sizes_keep_the_promises_of_the_readme() -> None:
    def count(model_id: str) -> int:
        return sum(value.numel() for value in build_network(find_model(model_id)).parameters())

    assert count("inspection/vgg") <= 2_500_000
    assert count("digits/cnn") == 90_090
    vgg = build_architecture("narrow_vgg", 8)
    linear = sum(module.weight.numel() for module in vgg.modules() if isinstance(module, nn.Linear))
    assert linear > 1_500_000


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72), (37, 50)])
def test_the_unet_scores_every_pixel(height: int, width: int) -> None:
    network = build_architecture("unet", 5).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, height, width)).shape == (2, 5, height, width)


def test_the_detector_is_torchvisions_and_finds_boxes_inside_the_image() -> None:
    from torchvision.models.detection import FCOS

    network = build_model(find_model("inspection/detector"))
    assert isinstance(network, FCOS)
    images = load_images("builtin", find_model("inspection/detector"), split="calibration", limit=8)
    (pixels, _labels) = next(to_batches(images, find_model("inspection/detector")))
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1, "it normalises its images itself"
    with torch.no_grad():
        found = network(pixels)
    assert len(found) == 8
    boxes = torch.cat([row["boxes"] for row in found])
    assert len(boxes)
    assert 0 <= float(boxes.min()) <= float(boxes.max()) <= 64
    assert int(torch.cat([row["labels"] for row in found]).min()) >= 1, "class 0 is the background"


# --- Shipped models


@pytest.mark.parametrize("model_id", SHIPPED)
def test_a_shipped_model_comes_with_weights_and_an_honest_card(model_id: str) -> None:
    source = find_model(model_id)
    card = source.card
    assert source.weights is not None
    assert source.weights.stat().st_size == card["weights"]["size_bytes"]
    assert (tuple(card["classes"]), tuple(card["input_shape"])) == (source.classes, source.input_shape)
    assert (tuple(card["mean"]), tuple(card["std"])) == (source.preprocessing.mean, source.preprocessing.std)
    low, high = card["metric"]["ci95"]
    assert low < card["metric"]["value"] < high
    network = build_model(source)
    assert not network.training
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert card["weights"]["parameters"] == sum(value.numel() for value in network.parameters())
    assert load_inventory(source) == tuple(take_inventory(network, source.input_shape))


@pytest.mark.parametrize(
    ("model_id", "limit"),
    [
        ("digits/cnn", None),
        ("inspection/resnet20", 120),
        ("inspection/resnet18", 120),
        ("inspection/vgg", 120),
    ],
)
def test_a_shipped_model_does_as_well_as_its_card_says(model_id: str, limit: int | None) -> None:
    source = find_model(model_id)
    value = measure(build_model(source), source, limit)
    stated = source.card["metric"]["value"]
    tolerance = 0.0 if limit is None else 4 * (stated * (1 - stated) / limit) ** 0.5
    assert value == pytest.approx(stated, abs=tolerance + 1e-6)


def test_the_inspection_task_is_neither_trivial_nor_hopeless() -> None:
    assert 0.92 <= find_model("inspection/resnet18").card["metric"]["value"] <= 0.97


def test_all_sample_models_together_stay_small() -> None:
    total = sum(file.stat().st_size for file in catalogue.SAMPLE_MODELS.iterdir() if file.is_file())
    assert total <= 45e6


def measure(network: nn.Module, source: ModelSource, limit: int | None, data: str = "builtin") -> float:
    images = load_images(data, source, split="evaluation", limit=limit)
    hits = 0
    with torch.no_grad():
        for pixels, labels in to_batches(images, source):
            hits += int((network(pixels).argmax(1) == labels).sum())
    return hits / len(images)


@pytest.mark.skipif(not REAL_DATA, reason="QAF_REAL_DATA names no folder with real checkpoints and images")
@pytest.mark.parametrize(("name", "top1"), [("resnet20", 0.9035), ("resnet32", 0.9215)])
def test_real_checkpoints_reach_their_published_accuracy(name: str, top1: float) -> None:
    folder = Path(REAL_DATA or "")
    source = find_model(f"cifar/{name}", weights=folder / f"cifar10_{name}.safetensors")
    assert measure(build_model(source), source, None, str(folder / "cifar10_eval_2000.npz")) == top1


def test_a_network_whose_constructor_reads_values_is_inspected_all_the_same() -> None:
    assert sum(row.params for row in load_inventory(find_model("torchvision/regnet_y_400mf"))) == 4_344_144


READING = """
from torch import nn

class Reading(nn.Module):
    input_shape, classes = (3, 8, 8), ("a", "b")

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)
        {constructor}

    def forward(self, x):
        x = self.first(x).mean((2, 3))
        {forward}
        return self.head(x)
"""


@pytest.mark.parametrize(
    ("constructor", "forward", "names"),
    [
        ("self.scale = float(self.first.weight.abs().max())", "x = x / self.scale", ["first", "head"]),
        # Captured in parts, each of them a single layer: these bear the whole names of their weights.
        ("pass", "x = x if float(x.sum()) < 1e9 else -x", ["first.weight", "head.weight"]),
    ],
)
def test_a_network_of_ones_own_may_read_its_weights_or_decide_by_values(
    constructor: str, forward: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "reading_in_" + ("constructor" if constructor != "pass" else "forward")
    (tmp_path / f"{module}.py").write_text(READING.format(constructor=constructor, forward=forward))
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = load_inventory(find_model(f"{module}:Reading"))
    assert [row.name for row in rows if row.eligible] == names


# --- Weights


def test_without_weights_a_model_can_be_inspected_but_not_evaluated() -> None:
    for model_id, origin in (("cifar/resnet20", "akamaster"), ("torchvision/resnet18", "pytorch.org")):
        source = find_model(model_id)
        with pytest.raises(
            WeightsError, match=f"{model_id} comes without trained weights.*--weights FILE.*{origin}"
        ):
            build_model(source)
    assert len(load_inventory(find_model("cifar/resnet20"))) > 20


def test_a_missing_weights_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"weights file not found: nowhere\.safetensors"):
        find_model("cifar/resnet20", weights="nowhere.safetensors")
    for path in (tmp_path, "x" * 5000, "~no_such_user_here/w.pth"):
        with pytest.raises(WeightsError, match="not found"):
            find_model("cifar/resnet20", weights=path)
    gone = tmp_path / "gone.safetensors"
    monkeypatch.setattr(catalogue, "weights_path", lambda model_id: gone)
    source = catalogue._shipped("digits/cnn", "Digits", "digits_cnn", "digits")
    with pytest.raises(WeightsError, match=r"python sample_models/train\.py digits/cnn"):
        build_model(source)


def test_a_damaged_card_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_model("digits/cnn")
    copy = catalogue.replace(source, weights=tmp_path / "w.safetensors")
    for text, expected in (("{", "cannot be read"), (json.dumps({"schema_version": 99}), "another version")):
        (tmp_path / "w.json").write_text(text)
        catalogue._read_card.cache_clear()
        with pytest.raises(ModelError, match=expected):
            catalogue._with_card(copy)


def test_shipped_models_are_built_apart_and_at_the_size_that_is_asked_for() -> None:
    source = find_model("digits/cnn")
    first, second = build_model(source), build_model(source)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert bool(next(second.parameters()).any())
    assert bool(next(build_model(source).parameters()).any())
    net = find_model("inspection/resnet20")
    for shape in (net.input_shape, (3, 48, 48)):
        (images,) = build_model(fed(net, crop=shape[1:])).main_program.inputs
        assert tuple(images.meta["val"].shape[1:]) == shape
