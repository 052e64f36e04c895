"""``qaf models``: listing, registering and removing, by the command line as people type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qaf_core.cli.entry import main
from qaf_core.data.models.architectures import build_architecture


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_model_is_registered_used_and_removed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(build_architecture("cifar_resnet20", 3).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "classes.txt").write_text("good\nbad\nunsure\n")
    added = run_json(
        capsys, "models", "--add", "my/part", "--model", "cifar/resnet20", "--weights", "w.safetensors",
        "--classes", "classes.txt", "--title", "Part",
    )["added"]  # fmt: skip
    assert (added["id"], added["classes"], added["has_weights"]) == (
        "my/part",
        ["good", "bad", "unsure"],
        True,
    )
    assert run_json(capsys, "models")["models"][0] == added
    layers = run_json(capsys, "inspect", "my/part")["layers"]
    assert layers[-1]["weight_shape"] == [3, 64]
    assert run_json(capsys, "cost", "my/part", "--ratio", "2", "--bits", "4")["model"] == "my/part"
    assert run_json(capsys, "models", "--remove", "my/part") == {"removed": "my/part", "deleted": []}
    assert main(["inspect", "my/part"]) == 2
    assert "unknown model; got my/part" in capsys.readouterr().err
    assert (workspace / "settings.json").is_file()


def test_people_read_a_line(capsys: pytest.CaptureFixture[str], workspace: Path) -> None:
    assert main(["models", "--add", "own", "--model", "digits/cnn"]) == 0
    assert "Registered own." in capsys.readouterr().out
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "own"
    assert main(["models", "--remove", "own"]) == 0
    assert capsys.readouterr().out == "Removed own.\n"
    images = workspace / "data" / "parts-1234"
    images.mkdir(parents=True)
    assert main(["models", "--add", "own", "--model", "digits/cnn", "--data", str(images)]) == 0
    assert main(["models", "--remove", "own"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"Removed own; deleted, as nothing else uses it: {images}"
    assert not images.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--add", "a", "--remove", "b"), "--add, --remove and --trust stand alone"),
        (("--add", "a"), "nothing says which network to register"),
        (("--add", "a", "--model", "digits/cnn", "--factory", "x:y"), "--model and --factory stand alone"),
        (("--add", "my/n", "--model", "digits/cnn", "--data", "/nowhere/x"), "data not found: /nowhere/x"),
        (("--add", "a", "--model", "x:y"), "code cannot be registered here"),
        (("--add", "digits/mine", "--model", "digits/cnn"), "always here"),
        (("--remove", "none"), "no such registered model; got none"),
        (("--weights", "w.pth"), "nothing says what to register"),
        (("--add", "a", "--factory", "no_such_module_here:f"), "cannot import no_such_module_here"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], workspace: Path, arguments: tuple[str, ...], told: str
) -> None:
    assert main(["models", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_published_weights_are_named_and_bad_names_told(
    capsys: pytest.CaptureFixture[str], workspace: Path
) -> None:
    rows = run_json(capsys, "inspect", "torchvision/squeezenet1_1", "--weights", "DEFAULT")["layers"]
    assert rows[-1]["weight_shape"][0] == 1000
    assert main(["inspect", "torchvision/squeezenet1_1", "--weights", "IMAGENET1K_V7"]) == 2
    assert "publishes no weights IMAGENET1K_V7" in capsys.readouterr().err
