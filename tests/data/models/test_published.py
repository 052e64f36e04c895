"""Published weights: what their names mean without a network, and fetching them from a server of our own."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision import models as torchvision_models
from torchvision.models._api import Weights, WeightsEnum, register_model
from torchvision.transforms._presets import ImageClassification

from qaf_core.data.models.catalogue import build_model, find_model, replace
from qaf_core.data.models.overrides import choose_weights
from qaf_core.data.models.published import describe_published, fetch_weights, is_published_name
from qaf_core.data.models.torchvision_names import (
    TORCHVISION_DETECTION,
    TORCHVISION_MODELS,
    TORCHVISION_SEGMENTATION,
)
from qaf_core.data.weights.entries import WeightLimits
from qaf_core.errors import WeightsError, WorkspaceError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address a real server gives it at."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def publish(folder: Path, name: str, value: object) -> str:
    """Serve a state dict under a name that ends in its checksum; the name."""
    content = io.BytesIO()
    torch.save(value, content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    (folder / f"{name}-{digest[:8]}.pth").write_bytes(content.getvalue())
    return f"{name}-{digest[:8]}.pth"


def test_every_published_name_is_described_without_a_network() -> None:
    for network in (*TORCHVISION_MODELS, *TORCHVISION_SEGMENTATION, *TORCHVISION_DETECTION):
        published = describe_published(network, "DEFAULT", (320, 320))
        assert published.classes == find_model(f"torchvision/{network}").classes
        assert published.file_name.endswith(".pth")
        if network in TORCHVISION_MODELS:
            assert len(published.classes) == 1000
            assert published.preprocessing.resize
            assert published.accuracy is not None
            assert 0.5 < published.accuracy < 0.9


def test_a_name_brings_classes_and_preprocessing() -> None:
    source = find_model("torchvision/efficientnet_v2_s", "DEFAULT")
    assert source.classes[:2] == ("tench", "goldfish")
    assert source.input_shape == (3, 384, 384)
    assert source.preprocessing.mean == (0.485, 0.456, 0.406)
    assert source.preprocessing is not None
    assert (source.preprocessing.resize, source.preprocessing.crop) == (384, (384, 384))
    assert source.accuracy == pytest.approx(0.84228)
    assert find_model("torchvision/vit_b_16", "IMAGENET1K_SWAG_E2E_V1").input_shape == (3, 384, 384)
    segments = find_model("torchvision/fcn_resnet50", "DEFAULT")
    assert (segments.classes[1], segments.input_shape) == ("aeroplane", (3, 520, 520))
    assert find_model("torchvision/ssdlite320_mobilenet_v3_large", "DEFAULT").preprocessing.mean == (
        0.0,
        0.0,
        0.0,
    )


def test_a_name_torchvision_does_not_know_is_told() -> None:
    with pytest.raises(
        WeightsError, match="no weights IMAGENET1K_V9 for resnet50; .*IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        find_model("torchvision/resnet50", "IMAGENET1K_V9")
    with pytest.raises(WeightsError, match="no weights IMAGENET1K_FEATURES"):
        find_model("torchvision/vgg16", "IMAGENET1K_FEATURES")
    with pytest.raises(WeightsError, match="weights file not found: DEFAULT"):
        find_model("cifar/resnet20", "DEFAULT")
    assert [is_published_name(name) for name in ("DEFAULT", "w.pth", "./DEFAULT", "default", "")] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_weights_are_fetched_once_with_progress(
    tmp_path: Path, served: tuple[Path, str], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, address = served

    class Own_Weights(WeightsEnum):  # as torchvision declares the weights of a network
        IMAGENET1K_V1 = Weights(
            url=f"{address}/{publish(folder, 'own', torchvision_models.squeezenet1_1().state_dict())}",
            transforms=partial(ImageClassification, crop_size=96),
            meta={"categories": [f"kind {number}" for number in range(1000)]},
        )
        DEFAULT = IMAGENET1K_V1

    def own_squeezenet(
        *, weights: Own_Weights | None = None, progress: bool = True, **options: object
    ) -> object:
        return torchvision_models.squeezenet1_1(**options)

    own_squeezenet.__annotations__["weights"] = Own_Weights  # the class itself: torchvision looks for it
    register_model(name="own_squeezenet")(own_squeezenet)
    try:
        listed = replace(find_model("torchvision/squeezenet1_1"), architecture="torchvision.own_squeezenet")
        source = choose_weights(listed, "DEFAULT", None, tmp_path)
        assert (source.input_shape, source.classes[7]) == ((3, 96, 96), "kind 7")
        assert source.weights is not None
        assert source.weights.parent == tmp_path / "cache" / "weights"
        network = build_model(source)
        assert "100.0%" in capfd.readouterr().err
        for file in folder.iterdir():
            file.unlink()
        assert torch.equal(
            *(made.get_parameter("classifier.1.bias") for made in (network, build_model(source)))
        )
        assert "%" not in capfd.readouterr().err
    finally:
        del torchvision_models._api.BUILTIN_MODELS["own_squeezenet"]


def test_a_mirror_that_serves_something_else_is_found_out(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    monkeypatch.setenv("QAF_WEIGHTS_MIRROR", address + "/")
    source = find_model("torchvision/resnet18", "DEFAULT", workspace=tmp_path)
    assert source.weights is not None
    with pytest.raises(
        WeightsError, match=r"not at their address; got HTTP 404; download resnet18-f37072fd\.pth"
    ):
        build_model(source)
    (folder / source.weights.name).write_bytes(b"something else")
    with pytest.raises(WeightsError, match="arrived damaged or changed.*pass --weights FILE"):
        build_model(source)
    assert list(source.weights.parent.iterdir()) == []


@pytest.mark.parametrize(
    "mirror", ["http://127.0.0.1:9", "http://weights.invalid/models", "ftp://127.0.0.1:9"]
)
def test_without_a_network_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("QAF_WEIGHTS_MIRROR", mirror)
    source = find_model("torchvision/resnet18", "IMAGENET1K_V1", workspace=tmp_path)
    with pytest.raises(WeightsError) as caught:
        build_model(source)
    text = str(caught.value)
    assert text.startswith("torchvision's published weights cannot be reached; got ")
    assert "download resnet18-f37072fd.pth elsewhere (https://" in text
    assert text.endswith("and pass --weights FILE.")


def test_fetching_keeps_the_limit_and_says_what_else_is_wrong(
    tmp_path: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = served
    name = publish(folder, "own", {"w": torch.zeros(1000)})
    with pytest.raises(WeightsError, match=f"published weights {name} are too large; got 5,"):
        fetch_weights(f"{address}/{name}", tmp_path / name, WeightLimits(file_bytes=1000))
    with pytest.raises(WeightsError, match="without a checksum"):
        fetch_weights(f"{address}/own.pth", tmp_path / "own.pth")
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="cannot be kept"):
        fetch_weights(f"{address}/{name}", tmp_path / "file" / name)
    fetch_weights((folder / name).as_uri(), tmp_path / name)
    assert torch.load(tmp_path / name, weights_only=True)["w"].shape == (1000,)
    monkeypatch.setenv("QAF_WEIGHTS_MIRROR", "not an address")
    with pytest.raises(WeightsError, match="QAF_WEIGHTS_MIRROR is no address"):
        fetch_weights(f"{address}/{name}", tmp_path / name)


def test_a_copy_torch_already_has_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    kept = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    kept.parent.mkdir(parents=True)
    torch.save(torchvision_models.squeezenet1_1().state_dict(), kept)
    source = find_model("torchvision/squeezenet1_1", "DEFAULT", workspace=tmp_path)
    assert source.weights == kept
    assert build_model(source).get_parameter("classifier.1.weight").shape[0] == 1000
