"""``qaf check``: as people read it and as programs do."""

from __future__ import annotations

import io
import json
import os
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qaf_core.cli.entry import main
from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model
from qaf_core.runs.store.request import CheckRequest, LatencyRequest
from qaf_core.runs.store.store import Store


def test_a_sound_model_is_told_to_be_so(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    assert main(["check", "digits/cnn"]) == 0
    shown = capsys.readouterr().out
    assert "98.3 % of 350 images are right" in shown
    assert "0 to 255, not normalised" in shown
    assert "Nothing is wrong with class order" in shown
    assert main(["check", "digits/cnn", "--json", "--preview", "--images", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() >= {
        "model",
        "data",
        "plausible",
        "value",
        "ci95",
        "n",
        "findings",
        "trials",
        "preview",
    }
    assert (found["plausible"], found["n"], found["findings"]) == (True, 64, [])
    assert len(found["preview"]) == 9
    assert found["preview"][0].keys() >= {"image", "label", "predicted", "right", "confidence"}


def test_a_fault_is_told_with_its_remedy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path
) -> None:
    images = load_images("builtin", find_model("digits/cnn"), split="calibration")
    np.savez(tmp_path / "own.npz", x=images.images, y=(images.labels + 1) % 10)
    arguments = ["check", "digits/cnn", "--data", str(tmp_path / "own.npz")]
    assert main(arguments) == 0
    assert "FAULT: The outputs seem to be in another order than the classes" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not found["plausible"]
    order = found["findings"][0]["evidence"]["order"]
    (tmp_path / "classes.txt").write_text("\n".join(order))
    # The classes named as told, and the labels numbered by name as a data set would: all is well.
    names = np.array([order.index(str((label + 1) % 10)) for label in images.labels])
    np.savez(tmp_path / "named.npz", x=images.images, y=names, classes=np.array(order))
    named = [
        "check",
        "digits/cnn",
        "--data",
        str(tmp_path / "named.npz"),
        "--classes",
        str(tmp_path / "classes.txt"),
    ]
    assert main([*named, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plausible"]


def test_preparation_is_given_by_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path
) -> None:
    (tmp_path / "steps.json").write_text('{"mean": [0], "std": [1]}')
    assert main(["check", "digits/cnn", "--preprocessing", str(tmp_path / "steps.json"), "--json"]) == 0
    finding = json.loads(capsys.readouterr().out)["findings"][0]
    assert (finding["kind"], finding["serious"]) == ("normalisation", True)
    (tmp_path / "steps.json").write_text(json.dumps(finding["evidence"]["preprocessing"]))
    assert main(["check", "digits/cnn", "--preprocessing", str(tmp_path / "steps.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_masks_are_checked_by_their_metric_and_colours_that_do_not_show_are_told(
    capsys: pytest.CaptureFixture[str], workspace: Path
) -> None:
    assert main(["check", "inspection/unet", "--images", "24"]) == 0
    shown = capsys.readouterr().out
    assert "miou" in shown.splitlines()[0]
    assert "images: the part that calibrates is looked at; runs are evaluated on the other one." in shown
    assert "Cannot tell whether red and blue are exchanged: this network answers the same with" in shown
    assert "Only whether red and blue are exchanged is not known" in shown.splitlines()[-1]
    assert main(["check", "inspection/unet", "--images", "24", "--json", "--preview"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["plausible"]) == ("miou", True)
    assert [row["task"] for row in found["preview"]] == ["segmentation"] * 9
    assert found["cannot_tell"] in shown
    assert found["summary"] in shown
    assert main(["--lang", "ja", "check", "inspection/unet", "--images", "24"]) == 0
    shown = capsys.readouterr().out
    assert "赤と青を入れ替えた場合（" in shown
    assert "red and blue" not in shown


def test_images_left_out_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path
) -> None:
    images = load_images("builtin", find_model("digits/cnn"), split="calibration", limit=120)
    for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
        (tmp_path / "own" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(tmp_path / "own" / str(label) / f"{number}.png")
    (tmp_path / "own" / "3" / "broken.png").write_bytes(b"no picture")
    arguments = ["check", "digits/cnn", "--data", str(tmp_path / "own")]
    assert main(arguments) == 0
    assert (
        "1 image is left out, unreadable: 3/broken.png (no picture of a known format)"
        in capsys.readouterr().out
    )
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["skipped_count"], found["split"]) == (1, "")
    assert found["skipped"] == [{"name": "3/broken.png", "reason": "no picture of a known format"}]


def test_a_registered_model_brings_its_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path
) -> None:
    images = load_images("builtin", find_model("digits/cnn"), split="calibration", limit=60)
    np.savez(tmp_path / "own.npz", x=images.images, y=images.labels)
    add = ["models", "--add", "own", "--model", "digits/cnn", "--data", str(tmp_path / "own.npz")]
    assert main(add) == 0
    capsys.readouterr()
    assert main(["check", "own", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"].startswith("own.npz")


def test_a_zip_is_unpacked_in_the_workspace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path
) -> None:
    images = load_images("builtin", find_model("digits/cnn"), split="calibration", limit=40)
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            stream = io.BytesIO()
            Image.fromarray(pixels[..., 0]).save(stream, "PNG")
            archive.writestr(f"good/{label}/{number}.png", stream.getvalue())
    assert main(["check", "digits/cnn", "--data", str(tmp_path / "good.zip"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["plausible"]) == (40, True)
    assert len(list((workspace / "cache" / "archives").iterdir())) == 1


def test_a_check_takes_its_turn_and_pages_find_its_result(
    capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    speed = store.ask(LatencyRequest(run="a", threads=1))
    assert store.claim_next(os.getpid()) == speed
    threading.Timer(0.5, store.finish, (speed, "completed", {})).start()
    assert main(["check", "digits/cnn", "--images", "64", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "Waiting until other work in this workspace has ended. Press Ctrl-C to leave.\n"
    kept = store.find_job(CheckRequest(model="digits/cnn", images=64))
    assert kept is not None
    assert {key: value for key, value in kept.result.items() if key != "stored"} == json.loads(captured.out)


def test_a_check_needs_no_workspace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in (("check", "digits/cnn", "--images", "64"), ("inspect", "digits/cnn")):
        assert main([*command, "--workspace", str(tmp_path / "file")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cifar/resnet20",), "no built-in images|without trained weights"),
        (("torchvision/fcn_resnet50", "--data", "x.npz"), "data not found"),
        (("digits/cnn", "--data", "nowhere"), "data not found"),
        (("digits/cnn", "--preprocessing", "nowhere.json"), "preprocessing cannot be read"),
        (("digits/cnn", "--images", "0"), "images"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], workspace: Path, arguments: tuple[str, ...], told: str
) -> None:
    import re

    assert main(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error)
    assert error.count("\n") == 1
