"""timm's networks: against a small stand-in everywhere, and against timm itself where it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.zoo_networks import TIMM_NETWORKS
from qaf_core.cli.entry import main
from qaf_core.data.images.decode import fit_picture
from qaf_core.data.models import timm_networks
from qaf_core.data.models.catalogue import build_model, find_model, list_models, load_inventory, search_models
from qaf_core.data.models.preprocessing import from_timm
from qaf_core.data.models.timm_names import TIMM_MODELS, has_timm, looks_like_tag, timm_version
from qaf_core.data.workspace.registry import add_model
from qaf_core.errors import ModelError, WeightsError, WorkspaceError
from qaf_core.files import write_file

CONFIG = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "interpolation": "bicubic",
    "crop_pct": 0.8,
    "crop_mode": "center",
    "num_classes": 1000,
    "classifier": "fc",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {**CONFIG, "tag": "a1_in1k"},
    "tiny.a1_in1k": {**CONFIG, "tag": "a1_in1k"},
    "tiny.b2_in1k": {**CONFIG, "tag": "b2_in1k", "input_size": (3, 48, 48), "crop_mode": "squash"},
    "tiny.features": {**CONFIG, "tag": "features", "num_classes": 0},
    "tiny_large": {**CONFIG, "num_classes": 3},
    "backbone": {**CONFIG, "num_classes": 0},
    "framed": {**CONFIG, "crop_mode": "border"},
}


class Tiny(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).mean((2, 3)))


class StandIn(ModuleType):
    """As much of timm as is asked for."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.fetched: list[str] = []
        self.fault: Exception | None = None

    def list_models(
        self, filter: str = "", pretrained: bool = False, include_tags: bool = False
    ) -> list[str]:
        plain = [name for name in CONFIGS if "." not in name and filter in ("", name)]
        tagged = [name for name in CONFIGS if "." in name and name.partition(".")[0] in plain]
        return [*tagged, *(name for name in plain if name != "tiny")] if include_tags else plain

    def get_pretrained_cfg(self, name: str) -> Any:
        class Config:
            def to_dict(self) -> dict[str, Any]:
                return CONFIGS[name]

        return Config()

    def create_model(self, name: str, pretrained: bool = False, num_classes: int = 1000) -> nn.Module:
        if self.fault is not None and (pretrained or isinstance(self.fault, RuntimeError)):
            raise self.fault
        if pretrained:
            self.fetched.append(name)
            torch.manual_seed(7)
        return Tiny(num_classes)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in for timm, as if it were installed."""
    data = ModuleType("timm.data")
    data.resolve_data_config = lambda pretrained_cfg: pretrained_cfg  # type: ignore[attr-defined]
    data.infer_imagenet_subset = lambda config: None  # type: ignore[attr-defined]
    package = StandIn()
    monkeypatch.setitem(sys.modules, "timm", package)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    timm_networks._names_of.cache_clear()
    return package


@pytest.fixture
def no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)


# --- Without it


def test_without_timm_nothing_is_listed_and_the_remedy_is_told(
    no_timm: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not has_timm()
    assert timm_version() is None
    assert not [source.id for source in list_models() if source.id.startswith("timm/")]
    assert search_models("timm/") == ()
    with pytest.raises(ModelError, match=r"timm is not installed; .*pip install 'qaf\[zoo\]'"):
        find_model("timm/resnet50")
    assert main(["inspect", "timm/resnet50", "--workspace", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("timm is not installed")
    assert told.count("\n") == 1
    assert main(["models", "--workspace", str(tmp_path)]) == 0
    assert "pip install 'qaf[zoo]'" in capsys.readouterr().out


def test_a_registered_network_is_listed_without_timm(
    timm: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "classes.txt").write_text("good\nbad\n")
    save_file(Tiny(2).state_dict(), tmp_path / "w.safetensors")
    made = add_model(
        tmp_path,
        model_id="my/part",
        base="timm/tiny.b2_in1k",
        weights=str(tmp_path / "w.safetensors"),
        classes=tmp_path / "classes.txt",
    )
    assert (made.architecture, made.input_shape, made.classes) == (
        "timm.tiny.b2_in1k",
        (3, 48, 48),
        ("good", "bad"),
    )
    assert build_model(made)(torch.zeros(1, 3, 48, 48)).shape == (1, 2)
    chosen = add_model(tmp_path, model_id="my/other", base="timm/tiny", weights="b2_in1k")
    assert (chosen.architecture, chosen.weights_url) == ("timm.tiny.b2_in1k", "timm:tiny.b2_in1k")
    with pytest.raises(WorkspaceError, match="always here"):
        add_model(tmp_path, model_id="timm/mine", base="timm/tiny")
    monkeypatch.setitem(sys.modules, "timm", None)
    assert [source.id for source in list_models(tmp_path)[:2]] == ["my/part", "my/other"]
    assert find_model("my/part", workspace=tmp_path) == made
    with pytest.raises(ModelError, match="timm is not installed"):
        build_model(made)


def test_listing_imports_no_timm() -> None:
    code = (
        "import sys; from qaf_core.data.models.catalogue import list_models\n"
        "from qaf_core.data.models.timm_names import timm_version\n"
        "list_models(); timm_version()\n"
        "assert not {'timm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- With a stand-in


def test_a_network_is_fed_as_timm_feeds_it(timm: StandIn) -> None:
    source = find_model("timm/tiny")
    assert (source.architecture, source.input_shape) == ("timm.tiny", (3, 32, 32))
    assert source.classes[1] == "goldfish"
    assert source.preprocessing is not None
    assert source.preprocessing.to_dict() == {
        "resize": 40, "crop": [32, 32], "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25], "channel_order": "rgb", "scale": 255.0,
    }  # fmt: skip
    squashed = find_model("timm/tiny.b2_in1k")
    assert squashed.preprocessing is not None
    assert (squashed.preprocessing.resize, squashed.input_shape) == ((60, 60), (3, 48, 48))
    assert [row.name for row in load_inventory(source)] == ["conv", "fc"]
    assert find_model("timm/tiny_large").classes == ("class 0", "class 1", "class 2")
    assert len(find_model("timm/backbone").classes) == 1000
    with pytest.raises(WeightsError, match="comes without trained weights.*--weights DEFAULT"):
        build_model(source)


def test_what_timm_does_not_have_names_what_is_close(timm: StandIn) -> None:
    with pytest.raises(ModelError, match="unknown model; got timm/tinny.*did you mean timm/tiny?"):
        find_model("timm/tinny")
    with pytest.raises(ModelError, match=r"got timm/tiny\.c3; expected one of timm/tiny\.a1_in1k"):
        find_model("timm/tiny.c3")
    for hopeless in ("timm/", "timm/*", "timm/qqqqqqqq"):
        with pytest.raises(ModelError, match="qaf models --find TEXT"):
            find_model(hopeless)
    with pytest.raises(ModelError, match="cuts pictures .* not understood; got border, 32×32 pixels"):
        find_model("timm/framed")
    timm.fault = RuntimeError("no such layer")
    with pytest.raises(ModelError, match="timm cannot build tiny; got RuntimeError: no such layer"):
        build_model(find_model("timm/tiny"), with_weights=False)


def test_names_are_searched(timm: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"timm/tiny", "timm/tiny_large"} <= {source.id for source in search_models("TIN")}
    assert [source.id for source in search_models("timm/back")] == ["timm/backbone"]
    assert main(["models", "--find", "backb", "--workspace", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["timm/backbone", "backbone,", "timm", "--weights", "3×32×32"]


def test_published_weights_are_fetched_once_by_timm(timm: StandIn, tmp_path: Path) -> None:
    source = find_model("timm/tiny", "DEFAULT", workspace=tmp_path)
    assert source.architecture == "timm.tiny.a1_in1k"
    assert source.weights == tmp_path / "cache" / "weights" / "timm-tiny.a1_in1k.safetensors"
    network = build_model(source)
    build_model(source)
    assert timm.fetched == ["tiny.a1_in1k"]
    assert torch.equal(network.fc.weight, load_file(source.weights)["fc.weight"])
    other = find_model("timm/tiny", "b2_in1k", workspace=tmp_path)
    assert (other.architecture, other.input_shape) == ("timm.tiny.b2_in1k", (3, 48, 48))
    assert find_model("timm/tiny.b2_in1k", "DEFAULT", workspace=tmp_path).weights == other.weights


def test_weights_that_are_not_there_are_told_in_one_line(timm: StandIn, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights c3 .* for tiny; .*a1_in1k, b2_in1k, DEFAULT"):
        find_model("timm/tiny", "c3")
    with pytest.raises(WeightsError, match="no weights features with a classifier"):
        find_model("timm/tiny", "features")
    with pytest.raises(WeightsError, match="with a classifier for backbone; .*expected a file"):
        find_model("timm/backbone", "DEFAULT")
    with pytest.raises(WeightsError, match="weights file not found: nowhere.pth"):
        find_model("timm/tiny", "nowhere.pth")
    source = find_model("timm/tiny", "DEFAULT", workspace=tmp_path)
    timm.fault = OSError("the hub\nsays nothing")
    with pytest.raises(WeightsError, match="cannot be fetched; got the hub says nothing; fetch tiny"):
        build_model(source)
    timm.fault = None
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    (tmp_path / "settings.json").write_text('{"schema_version": 1, "limits": {"weights_bytes": 1000}}')
    with pytest.raises(WeightsError, match="published weights tiny.a1_in1k are too large; got 20,"):
        build_model(find_model("timm/tiny", "DEFAULT", workspace=tmp_path))
    assert list((tmp_path / "cache" / "weights").iterdir()) == []


def test_a_hub_that_cannot_be_reached_is_told_at_once(
    timm: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = ModuleType("huggingface_hub")
    hub.try_to_load_from_cache = lambda repository, file: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(CONFIGS, "tiny.a1_in1k", {**CONFIG, "hf_hub_id": "timm/tiny.a1_in1k"})
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    source = find_model("timm/tiny", "DEFAULT", workspace=tmp_path)
    with pytest.raises(WeightsError, match="got 127.0.0.1: .*; fetch timm/tiny.a1_in1k elsewhere"):
        build_model(source)
    assert timm.fetched == []
    hub.try_to_load_from_cache = lambda repository, file: "kept"  # type: ignore[attr-defined]
    build_model(source)
    assert timm.fetched == ["tiny.a1_in1k"]


def test_the_number_of_outputs_is_read_off_the_weights(timm: StandIn, tmp_path: Path) -> None:
    save_file(Tiny(5).state_dict(), tmp_path / "five.safetensors")
    source = find_model("timm/tiny", tmp_path / "five.safetensors")
    assert source.classes == tuple(f"class {index}" for index in range(5))
    assert build_model(source).get_parameter("fc.weight").shape[0] == 5


def test_a_file_is_no_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_file(tmp_path / "weights", b"")
    given = ("a1_in1k", "weights", "./weights", "w.pth", "a/b", "")
    assert [looks_like_tag(each) for each in given] == [True, False, False, False, False, False]


# --- With timm itself


@pytest.fixture
def real() -> Any:
    return pytest.importorskip("timm")


def test_the_listed_networks_are_timms(real: Any) -> None:
    for name, entry in TIMM_MODELS.items():
        found = find_model(f"timm/{name}")
        assert (found.input_shape, found.preprocessing.mean, found.preprocessing.std) == (
            (3, entry.side, entry.side),
            entry.mean,
            entry.std,
        )
        assert len(found.classes) == 1000, name


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vit_tiny_patch16_224", "dm_nfnet_f0", "dla34"])
@pytest.mark.parametrize("size", [(640, 427), (200, 333)])
def test_pictures_are_prepared_as_timm_prepares_them(real: Any, name: str, size: tuple[int, int]) -> None:
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config(pretrained_cfg=real.get_pretrained_cfg(name).to_dict())
    noise = np.random.default_rng(0).integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    steps = from_timm(config)
    ours = torch.from_numpy(fit_picture(picture, steps).copy()).permute(2, 0, 1) / steps.scale
    ours = (ours - torch.tensor(steps.mean)[:, None, None]) / torch.tensor(steps.std)[:, None, None]
    torch.testing.assert_close(ours, create_transform(**config)(picture))


def test_the_networks_of_the_benchmark_are_timms(real: Any) -> None:
    assert len(TIMM_NETWORKS) >= 40
    assert not set(TIMM_NETWORKS) - set(real.list_models())


def test_a_real_network_is_found_and_inspected(real: Any) -> None:
    source = find_model("timm/mobilenetv3_small_100", "DEFAULT")
    assert source.architecture == f"timm.{real.get_pretrained_cfg('mobilenetv3_small_100').architecture}." + (
        real.get_pretrained_cfg("mobilenetv3_small_100").tag
    )
    assert source.classes[0] == "tench"
    rows = load_inventory(find_model("timm/mobilenetv3_small_100"))
    assert sum(row.params for row in rows) == 2_542_856


def test_classes_of_larger_sets_are_timms(real: Any) -> None:
    from timm.data.imagenet_info import _NUM_CLASSES_TO_SUBSET

    for count in _NUM_CLASSES_TO_SUBSET:
        names = timm_networks._names_of(count)
        assert len(set(names)) == count
    assert "class 0" not in timm_networks._names_of(21841)


def test_networks_of_every_tag_can_be_described(real: Any) -> None:
    refused = []
    for name in real.list_models(include_tags=True):
        try:
            find_model(f"timm/{name}")
        except ModelError as error:
            refused.append(str(error))
    assert all("not understood" in told for told in refused)
    assert len(refused) < 12


def test_a_name_of_before_points_to_its_own(real: Any) -> None:
    with pytest.raises(ModelError, match="unknown model"):
        find_model("timm/tv_resnet50")
