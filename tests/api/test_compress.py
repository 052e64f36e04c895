"""The door for Python: networks of a user's own through it, and what it refuses."""

from __future__ import annotations

import copy
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from qaf_core import LayerPlan, Plan, QafError, SolverOptions, load
from qaf_core.api.compress import Compressed, compress
from qaf_core.network.modules.quantized import Link

README = Path(__file__).parents[2] / "README.md"
QUICK = SolverOptions(iterations=2)


class Own(nn.Module):
    """Scores among other outputs, and numbers that its code draws each time it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, stride=2)
        self.head = nn.Linear(8, 4)
        self.drawn = torch.randn(1, 8, 1, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        values = self.norm(self.first(images)).relu() + self.drawn
        return {"logits": self.head(self.second(values).relu().mean((2, 3))), "features": values}


IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4
FOREIGN = Plan(model="x", layers=(LayerPlan(name="a", structure="cp"),))


@pytest.fixture(scope="module")
def own() -> tuple[Own, Compressed]:
    torch.manual_seed(1)
    model = Own().train()
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=10)
    return model, compress(model, loader, ratio=2, bits=4, seed=3, options=QUICK)


def test_the_readmes_example_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = re.search(r"## From Python\n[^#]*?\n((?:    .*\n|\n)+)", README.read_text())
    assert found is not None
    lines = "\n".join(line.removeprefix("    ") for line in found.group(1).splitlines())
    exec(lines, names := dict[str, Any]())
    printed = capsys.readouterr().out
    assert "features.3    cp" in printed
    assert "top1 0.9" in printed
    images = names["sample"].images
    assert torch.equal(names["network"](images), names["small"].network(images))
    assert (tmp_path / "small.onnx").is_file()


def test_a_network_of_a_users_own_is_compressed_and_left_as_it_was(own: tuple[Own, Compressed]) -> None:
    model, small = own
    assert model.training
    assert isinstance(model.first, nn.Conv2d)
    assert [(row.name, row.structure) for row in small.plan.layers] == [
        ("first", "dense"), ("second", "cp"), ("head", "dense"),
    ]  # fmt: skip
    assert (small.plan.model, small.plan.seed, small.plan.activation_bits) == ("Own", 3, 8)
    assert torch.equal(small.calibration, IMAGES)
    assert set(small.network(IMAGES)) == {"logits", "features"}
    assert small.cost.size_bytes < small.baseline_cost.size_bytes
    assert "Own: " in str(small)
    assert "second  cp " in repr(small)


def test_the_report_has_the_command_lines_keys(own: tuple[Own, Compressed]) -> None:
    report = json.loads(json.dumps(own[1].report()))
    assert report["model"] == "Own"
    assert {"plan", "cost", "baseline_cost", "layers", "seconds", "file"} <= report.keys()
    assert [row["name"] for row in report["layers"]] == ["first", "second", "head"]
    assert report["plan"]["options"]["iterations"] == 2


def test_a_file_is_opened_with_the_network_built_anew(own: tuple[Own, Compressed], tmp_path: Path) -> None:
    _, small = own
    path = tmp_path / "small.safetensors"
    assert small.save(str(path)) == path.stat().st_size == len(small.content)
    torch.manual_seed(7)
    other = Own()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    opened = load(path, other)
    assert torch.equal(opened(IMAGES)["features"], small.network(IMAGES)["features"])
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    with pytest.raises(QafError, match="user's own code.*test_compress:Own.*load.path, model"):
        load(path)
    with pytest.raises(QafError, match="for another network"):
        load(path, nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_an_export_is_compared_on_the_images_given(own: tuple[Own, Compressed], tmp_path: Path) -> None:
    small = own[1]
    report = small.export(tmp_path / "small.onnx", IMAGES[:7], precision="fp32")
    assert report.written
    assert report.agreement is not None
    assert (report.agreement.share, report.agreement.images) == (1.0, 7)
    with pytest.raises(QafError, match="unknown precision; got int4"):
        small.export(tmp_path / "small.onnx", precision="int4")


def test_a_plan_file_does_the_same_and_progress_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 3))
    with caplog.at_level(logging.INFO, logger="qaf_core"):
        small = compress(model, IMAGES, bits=8, method="dense")
    assert "calibrating: 2" in [record.getMessage() for record in caplog.records if record.name == "qaf_core"]
    path = tmp_path / "plan.json"
    path.write_text(small.plan.to_json())
    again = compress(model, IMAGES.numpy(), plan=str(path), method="dense", seed=5)
    assert again.plan == replace(small.plan, seed=5)
    codes = [
        [module.codes for module in net.modules() if isinstance(module, Link)]
        for net in (small.network, again.network)
    ]
    assert len(codes[0]) == 2
    assert all(torch.equal(first, second) for first, second in zip(*codes, strict=True))


@pytest.mark.parametrize(
    ("images", "given", "message"),
    [
        (IMAGES, {}, "nothing says how to compress.*plan=PLAN, or ratio=R and bits=B"),
        (IMAGES, {"method": "dense"}, "or bits=B"),
        (IMAGES, {"ratio": 2, "bits": 9}, "weight bits out of range; got 9"),
        (IMAGES, {"ratio": 2, "bits": 4, "activation_bits": 4}, "8 bits or not at all"),
        (IMAGES, {"ratio": 2, "bits": 4, "method": "best"}, "unknown method; got best"),
        (IMAGES, {"ratio": 2, "bits": 4, "structure": "tt"}, "unknown structure; got tt"),
        (IMAGES, {"ratio": 2, "bits": 4, "options": {"speed": 1}}, "unknown options; got speed"),
        (IMAGES, {"plan": "no.json"}, "the plan cannot be read; got no.json"),
        (IMAGES, {"plan": "no.json", "bits": 4}, "a plan stands alone"),
        (IMAGES, {"ratio": 2, "bits": 4, "budget": 3}, "no such argument; got budget; expected plan, ratio"),
        (IMAGES, {"plan": {"layers": []}}, "this is no plan; got dict"),
        (
            IMAGES,
            {"plan": FOREIGN},
            "unknown layers a",
        ),
        (IMAGES, {"ratio": "2", "bits": 4}, "ratio out of range; got '2'"),
        (IMAGES, {"ratio": 2, "bits": 4, "options": 5}, "these are no options; got int"),
        (IMAGES[:0], {"ratio": 2, "bits": 4}, "no calibration images"),
        (IMAGES[:, :2], {"ratio": 2, "bits": 4}, r"does not run on an input of shape \(1, 2, 12, 12\)"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(images: Any, given: Any, message: str) -> None:
    with pytest.raises(QafError, match=message):
        compress(Own(), images, **given)


def test_a_plan_that_factorizes_is_no_matter_of_rounding(own: tuple[Own, Compressed]) -> None:
    model, small = own
    with pytest.raises(QafError, match="rounds weights as they are, and the plan factorizes some; got cp"):
        compress(model, IMAGES, plan=small.plan, method="dense")


def test_options_left_at_their_defaults_do_not_undo_the_plans(own: tuple[Own, Compressed]) -> None:
    plan = replace(own[1].plan, options={"iterations": 3, "starts": 1})
    small = compress(own[0], IMAGES, plan=plan, options=SolverOptions(iterations=2))
    assert small.plan.options == {"iterations": 2, "starts": 1}


def test_double_precision_is_taken_as_single(own: tuple[Own, Compressed]) -> None:
    small = compress(copy.deepcopy(own[0]).double(), IMAGES, bits=8, method="dense")
    with torch.no_grad():
        before, taken = own[0].eval()(IMAGES), small.original(IMAGES)
    assert torch.allclose(taken["logits"], before["logits"], rtol=1e-4, atol=1e-5)


def test_a_network_without_numbers_is_refused() -> None:
    with torch.device("meta"):
        model = Own()
    with pytest.raises(QafError, match="weights are not loaded"):
        compress(model, IMAGES, ratio=2, bits=4)


def test_a_models_name_is_no_network() -> None:
    name: Any = "digits/cnn"
    with pytest.raises(QafError, match="this is no network; got str; expected an nn.Module"):
        compress(name, IMAGES, ratio=2, bits=4)
