"""Malformed inputs of the command line: plans, models, images, checkpoints, masks, texts and options."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save

from qaf_core.data.models.catalogue import find_model, load_inventory, weights_path
from qaf_core.network.plan.rules import plan_for_ratio

MODEL = "digits/cnn"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, 1e308, float("nan"), float("inf"), 10**9, 2**64, 10**400, "", "x",
    "\ud800", "../../etc/passwd", "\x1b[31m", "\u202e", "a" * 5000, [], {}, [[]], [1, "x"], {"a": {}},
    [None] * 3,
)  # fmt: skip
ODD_NUMBERS = (
    "-1",
    "0",
    "1e309",
    "nan",
    "inf",
    "99999999999999999999999999",
    "3.5",
    "x",
    "",
    "²",
    "0x10",
    "1_0",
)
# Never as an output: "/dev/null" may be written over by who may do anything.
ODD_PATHS = ("", ".", "/", "/nowhere/x", "/dev/null", "/dev/zero", "~nobody/x", "a\0b", "x" * 300, "-")


def altered(value: Any, chance: random.Random) -> Any:
    """Plain data with one thing changed, lost or added, anywhere in it."""
    changed = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def walk(inside: Any) -> None:
        keys = (
            inside.keys()
            if isinstance(inside, dict)
            else range(len(inside))
            if isinstance(inside, list)
            else ()
        )
        for key in list(keys):
            places.append((inside, key))
            walk(inside[key])

    walk(changed)
    if not places:
        return chance.choice(ODD)
    # As likely in what holds much as in what holds little.
    holder, key = chance.choice(places)
    match chance.randrange(4):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[str(chance.choice(ODD))] = holder[key]
        case _:
            holder[key] = chance.choice(ODD)
    return changed


def spoilt(content: bytes, chance: random.Random) -> bytes:
    """Bytes cut off, overwritten, turned or emptied."""
    at = chance.randrange(max(1, min(len(content), chance.choice((64, 512, len(content) + 1)))))
    match chance.randrange(6):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + chance.randbytes(8) + content[at + 8 :]
        case 2:
            return (
                content[:at]
                + bytes([content[at] ^ (1 << chance.randrange(8))] if at < len(content) else [])
                + content[at + 1 :]
            )
        case 3:
            return chance.choice((b"", b"\0" * 100, b"{" * 5000, b"\xef\xbb\xbf" + content, b"\x80\x02}q\0."))
        case 4:
            return content + chance.randbytes(20)
        case _:
            return content[: at // 2] + content[at:]


class Inputs:
    """Makes one malformed input after another, each as the words of a command.

    Args:
        folder: Files are written there.
        chance: Everything drawn comes from it.
        workspace: Of the commands; holds a finished run.
        run_id: That run.
    """

    def __init__(self, folder: Path, chance: random.Random, workspace: Path, run_id: str) -> None:
        self._folder, self._chance, self._workspace, self._run = folder, chance, workspace, run_id
        self._written = 0
        inventory = load_inventory(find_model(MODEL))
        self._plan = plan_for_ratio(inventory, model=MODEL, ratio=2.0, bits=4).to_dict()
        self._plan["options"] = {"starts": 1, "iterations": 2, "rounding_rounds": 1}
        self._packed = (workspace / "runs" / run_id / "model.safetensors").read_bytes()
        self._kinds: tuple[Callable[[], list[str]], ...] = (
            self._plans, self._plans, self._options, self._options, self._weights, self._images, self._masks,
            self._texts, self._settings, self._exports,
        )  # fmt: skip

    def next(self) -> list[str]:
        """The next command."""
        (self._workspace / "settings.json").unlink(missing_ok=True)
        (self._workspace / "runs" / self._run / "model.safetensors").write_bytes(self._packed)
        command = self._chance.choice(self._kinds)()
        return [*command, "--workspace", str(self._workspace)]

    def _file(self, content: bytes, suffix: str) -> str:
        self._written += 1
        path = self._folder / f"{self._written}{suffix}"
        path.write_bytes(content)
        return str(path)

    def _json(self, value: Any) -> str:
        content = json.dumps(value).encode()
        return self._file(spoilt(content, self._chance) if self._chance.random() < 0.2 else content, ".json")

    def plan_with(self, **options: Any) -> str:
        """A sound plan but for some of the solver's options."""
        return self._file(json.dumps({**self._plan, "options": options}).encode(), ".json")

    def array_as_npz(self) -> str:
        """One array, named as if it were an archive."""
        stream = io.BytesIO()
        np.save(stream, np.zeros((6, 8, 8, 1), np.uint8))
        return self._file(stream.getvalue(), ".npz")

    def _plans(self) -> list[str]:
        plan = self._json(altered(self._plan, self._chance))
        if self._chance.random() < 0.7:
            return ["cost", MODEL, "--plan", plan]
        return ["compress", MODEL, "--plan", plan, "--images", "8", "--no-check"]

    def _options(self) -> list[str]:
        number, path = self._chance.choice(ODD_NUMBERS), self._chance.choice(ODD_PATHS)
        out = self._chance.choice([odd for odd in ODD_PATHS if not odd.startswith("/dev")])
        usual = ["--ratio", "2", "--bits", "4"]
        return self._chance.choice(
            [
                ["cost", MODEL, "--ratio", number, "--bits", "4"],
                ["cost", MODEL, "--ratio", "2", "--bits", number],
                ["cost", MODEL, *usual, "--act-bits", number],
                ["cost", MODEL, *usual, "--convention", path],
                ["compress", MODEL, *usual, "--seed", number, "--images", "8", "--no-check"],
                ["compress", MODEL, *usual, "--images", number, "--data", "/nowhere"],
                ["compress", MODEL, *usual, "--method", path],
                ["compress", MODEL, *usual, "--structure", path],
                ["compress", MODEL, *usual, "--data", path],
                ["compress", MODEL, *usual, "--calibration", path],
                ["compress", MODEL, *usual, "--classes", path],
                ["compress", MODEL, *usual, "--weights", path],
                ["compress", MODEL, *usual, "--preprocessing", path],
                ["compress", MODEL, "--plan", path],
                ["compress", MODEL, *usual, "--name", "n" * 500],
                [
                    "inspect",
                    self._chance.choice(
                        (path, "x:y", ":", "a:", "timm/", "torchvision/x", "../x", "os:getcwd")
                    ),
                ],
                ["plan", MODEL, *usual, "--out", out],
                ["check", MODEL, "--images", number],
                ["check", MODEL, "--data", path],
                ["show", self._chance.choice((path, "%", "_", number))],
                ["export", self._run, "--format", "packed", "--out", out],
                ["export", self._run, "--format", path, "--out", "x"],
                ["export", self._run, "--format", "onnx", "--precision", path, "--out", "x"],
                ["latency", self._run, "--threads", number, "--images", "0", "--seconds", "0"],
                ["latency", path],
                ["device-kit", self._run, "--out", out, "--batch", number],
                ["device-kit", self._run, "--result", path],
                ["finetune", self._run, "--epochs", number],
                ["models", "--add", path, "--model", MODEL],
                ["models", "--remove", path],
                ["models", "--trust", path],
                ["models", "--find", path],
                [path or "''"],
            ]
        )

    def _weights(self) -> list[str]:
        chance = self._chance
        tensors = {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}
        content = chance.choice((save(tensors), weights_path(MODEL).read_bytes()))
        suffix = chance.choice((".safetensors", ".pth", ".pt", ".bin"))
        match chance.randrange(4):
            case 0:
                length = int.from_bytes(content[:8], "little")
                header = json.dumps(altered(json.loads(content[8 : 8 + length]), chance)).encode()
                content = struct.pack("<Q", len(header)) + header + content[8 + length :]
            case 1:
                stream = io.BytesIO()
                with zipfile.ZipFile(stream, "w") as archive:
                    archive.writestr(
                        "archive/data.pkl", spoilt(b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", chance)
                    )
                    archive.writestr("archive/version", "3")
                content = stream.getvalue()
            case _:
                content = spoilt(content, chance)
        part = chance.choice(("", "", "#ema", "#", "#x#y"))
        path = self._file(content, suffix) + part
        return chance.choice(
            (
                ["check", MODEL, "--weights", path, "--images", "8"],
                ["inspect", "cifar/resnet20", "--weights", path],
                ["models", "--add", "my/model", "--model", MODEL, "--weights", path],
            )
        )

    def _arrays(self, **arrays: Any) -> bytes:
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        return stream.getvalue()

    def _images(self) -> list[str]:
        chance = self._chance
        x, y = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 10
        odd = chance.choice(
            (
                {"x": x}, {"y": y}, {"x": x, "y": y[:3]}, {"x": x, "y": y - 5}, {"x": x, "y": y * 1.5},
                {"x": x, "y": y.astype(object)}, {"x": x.astype(object), "y": y}, {"x": x[0], "y": y},
                {"x": x.astype(np.float64) * np.nan, "y": y}, {"x": x[:0], "y": y[:0]},
                {"x": np.zeros((6, 0, 8, 1), np.uint8), "y": y}, {"x": x, "y": y + 2**40},
                {"x": np.zeros((6, 8, 8, 7), np.uint8), "y": y},
                {"x": x, "y": y, "classes": np.array(["a", "a"])}, {"x": x, "y": y.astype("S2")},
                {"x": x, "y": y, "classes": np.array([["a"]])}, {"x": x.astype(np.complex64), "y": y},
            )
        )  # fmt: skip
        content, suffix = self._arrays(**odd), ".npz"
        match chance.randrange(4):
            case 0:
                content = spoilt(self._arrays(x=x, y=y), chance)
            case 1:
                stream = io.BytesIO()
                np.save(stream, x)
                content = chance.choice((stream.getvalue(), spoilt(stream.getvalue(), chance)))
            case 2:
                suffix, stream = ".zip", io.BytesIO()
                picture = io.BytesIO()
                Image.fromarray(x[0, ..., 0]).save(picture, "PNG")
                with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                    for name in chance.choice(
                        (("../a/b.png",), ("/a/b.png", "b/c.png"), ("0/a.png", "1/b.png"), ())
                    ):
                        archive.writestr(
                            name, chance.choice((picture.getvalue(), spoilt(picture.getvalue(), chance)))
                        )
                content = chance.choice((stream.getvalue(), spoilt(stream.getvalue(), chance)))
        path = self._file(content, suffix)
        return chance.choice(
            (
                ["check", MODEL, "--data", path],
                ["compress", MODEL, "--bits", "8", "--method", "dense", "--data", path],
                [
                    "compress",
                    MODEL,
                    "--bits",
                    "8",
                    "--method",
                    "dense",
                    "--calibration",
                    path,
                    "--images",
                    "8",
                ],
            )
        )

    def _masks(self) -> list[str]:
        x, y = np.zeros((4, 32, 32, 3), np.uint8), np.zeros((4, 32, 32), np.uint8)
        odd = self._chance.choice(
            (
                {"x": x, "y": y + 200}, {"x": x, "y": y[:, :5]}, {"x": x, "y": y[..., None]},
                {"x": x, "y": y - 1.0},
                {"x": x, "y": np.where(np.eye(32) > 0, 255, y)}, {"x": x, "y": y.astype(np.int64) - 7},
            )
        )  # fmt: skip
        path = self._file(self._arrays(**odd), ".npz") + self._chance.choice(("", "#255=1", "#255=x", "#"))
        return ["check", "inspection/unet", "--data", path, "--images", "2"]

    def _texts(self) -> list[str]:
        steps = {
            "crop": [8, 8],
            "mean": [0.3],
            "std": [0.4],
            "resize": 8,
            "scale": 255.0,
            "channel_order": "rgb",
        }
        if self._chance.random() < 0.5:
            path = self._json(altered(steps, self._chance))
            return ["check", MODEL, "--preprocessing", path, "--images", "8"]
        names = "\n".join(
            map(str, self._chance.choice((range(3), range(10), range(100_000), [""] * 10, ["a"] * 10)))
        )
        path = self._file(self._chance.choice((names.encode(), spoilt(names.encode(), self._chance))), ".txt")
        return ["check", MODEL, "--classes", path, "--images", "8"]

    def _settings(self) -> list[str]:
        entry = {
            "id": "my/model", "title": "t", "base": MODEL, "input_shape": [1, 8, 8],
            "classes": list("0123456789"),
            "preprocessing": {"crop": [8, 8], "mean": [0.3], "std": [0.4]}, "task": "classification",
        }  # fmt: skip
        settings = altered(
            {"schema_version": 1, "limits": {"weights_bytes": 10**9}, "models": [entry]}, self._chance
        )
        content = json.dumps(settings).encode()
        content = spoilt(content, self._chance) if self._chance.random() < 0.2 else content
        (self._workspace / "settings.json").write_bytes(content)
        return self._chance.choice((["models"], ["inspect", "my/model"], ["models", "--remove", "my/model"]))

    def _exports(self) -> list[str]:
        (self._workspace / "runs" / self._run / "model.safetensors").write_bytes(
            spoilt(self._packed, self._chance)
        )
        out = str(self._folder / "out")
        return ["export", self._run, "--format", "packed", "--out", out]
