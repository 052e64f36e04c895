"""Class scores are found in whatever a network puts out, or it is said what stands in the way."""

from __future__ import annotations

import collections
import copy
import dataclasses
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qaf_core.cli.entry import main
from qaf_core.data.models.catalogue import build_model, find_model
from qaf_core.data.models.outputs import attach_reading, count_classes, plain_scores, scores_in
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError
from qaf_core.pipeline.divergence import divergence

Named = collections.namedtuple("Named", ["logits", "features"])


@dataclasses.dataclass
class Output:
    """As networks for text give it."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class Network(nn.Module):
    """One linear layer, whose scores come out in some form."""

    def __init__(self, form: Callable[[Tensor], Any], outputs: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, outputs)
        self.form = form

    def forward(self, images: Tensor) -> Any:
        return self.form(self.linear(images.flatten(1)))


class Pixels(nn.Module):
    """One convolution, whose scores come out in some form."""

    def __init__(self, form: Callable[[Tensor], Any], outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, outputs, 1)
        self.form = form

    def forward(self, images: Tensor) -> Any:
        return self.form(self.convolution(images))


def source_for(classes: int, task: str = "classification", output: str | None = None) -> ModelSource:
    return ModelSource(
        id="own/net", title="net", architecture="own:net",
        preprocessing=Preprocessing(crop=(2, 2), mean=(0.0,) * 3, std=(1.0,) * 3),
        classes=tuple(map(str, range(classes))), task=task, output=output,
    )  # fmt: skip


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda z: z,
    "map of 1×1": lambda z: z[:, :, None, None],
    "squeezed": lambda z: z.squeeze(),
    "dict of one": lambda z: {"anything": z},
    "dict with a known key": lambda z: {"logits": z, "auxiliary": z + 1, "labels": z.argmax(1)},
    "nested dict": lambda z: {"head": {"scores of it": z}},
    "tuple of one": lambda z: (z,),
    "list of one": lambda z: [z],
    "scores and features": lambda z: (z, z.new_ones(len(z), 7)),
    "features and scores": lambda z: (z.new_ones(len(z), 7, 5), z),
    "scores and their classes": lambda z: (z, z.argmax(1)),
    "named tuple": lambda z: Named(z, z.new_ones(len(z), 4)),
    "dataclass": lambda z: Output(z, (z, z)),
    "object": lambda z: types.SimpleNamespace(logits=z, features=z),
    "ordered dict with None": lambda z: collections.OrderedDict(loss=None, logits=z, attentions=(z, z)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 4, 5])
def test_scores_are_found_where_their_meaning_is_clear(form: str, count: int) -> None:
    network = Network(FORMS[form]).eval()
    attach_reading(network, source_for(4))
    expected = network.linear(images(count).flatten(1))
    assert torch.equal(network(images(count)), expected)
    assert torch.equal(copy.deepcopy(network)(images=images(count)), expected)


def test_networks_that_put_out_plain_scores_stay_as_they_are() -> None:
    for network, source in [(Network(FORMS["tensor"]), source_for(4)),
                            (Pixels(FORMS["tensor"], 4), source_for(4, "segmentation"))]:  # fmt: skip
        attach_reading(network.eval(), source)
        assert not network._forward_hooks


ONE: dict[str, Callable[[Tensor], Any]] = {
    "column": lambda z: z,
    "row": lambda z: z[:, 0],
    "squeezed": lambda z: z.squeeze(),
    "dict": lambda z: {"out": z},
}


@pytest.mark.parametrize("form", ONE)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("end", ["logit", "sigmoid", "hardsigmoid", "module"])
def test_one_output_tells_two_classes_apart(form: str, count: int, end: str) -> None:
    ends: dict[str, Callable[[Tensor], Tensor]] = {
        "logit": lambda z: z, "sigmoid": torch.sigmoid, "module": nn.Sigmoid(),
        "hardsigmoid": lambda z: nn.functional.hardsigmoid(3 * z),
    }  # fmt: skip
    network = Network(lambda z: ONE[form](ends[end](z)), outputs=1).eval()
    attach_reading(network, source_for(2))
    logit = network.linear(images(count).flatten(1))[:, 0]
    with torch.inference_mode():
        scores = network(images(count))
    assert scores.shape == (count, 2)
    assert torch.equal(scores.argmax(dim=1) == 1, logit > 0)
    if end != "hardsigmoid":
        torch.testing.assert_close(scores.softmax(dim=1)[:, 1], torch.sigmoid(logit), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [lambda z: z, lambda z: z[:, 0], lambda z: {"out": z}])
def test_one_output_a_pixel_tells_two_classes_apart(form: Callable[[Tensor], Any]) -> None:
    network = Pixels(form, 1).eval()
    attach_reading(network, source_for(2, "segmentation"))
    scores = network(images(3))
    assert scores.shape == (3, 2, 2, 2)
    assert torch.equal(scores.argmax(dim=1) == 1, network.convolution(images(3))[:, 0] > 0)


@pytest.mark.parametrize(
    ("network", "classes", "words"),
    [
        (Network(FORMS["tensor"], 5), 4, "another number of outputs than of classes; got 5 outputs and 4 "
         "names;.*name every output with --classes.*background"),
        (Network(FORMS["dict of one"], 3), 4, "got 3 outputs and 4 names.*only the classes that have"),
        (Network(FORMS["tensor"], 1), 3, "got 1 outputs and 3 names"),
        (Network(FORMS["tensor"], 1), 1, "tells no classes apart; got one output and one class.*name both"),
        (Network(lambda z: (z, 2 * z)), 4, r"several tensors that may be .*got 0 \(1, 4\), 1 \(1, 4\); say "
         'which: output = "0" on the model factory, or OUTPUT'),
        (Network(lambda z: {"logits": z, "out": z}), 4, "got logits .*, out "),
        (Network(lambda z: z.argmax(1)), 4, "not put out one row of class scores.*got int64.*not the best"),
        (Network(lambda z: "four"), 4, "one row of class scores per image; got str"),
        (Network(lambda z: None), 4, "one row of class scores per image; got NoneType"),
        (Network(lambda z: z.expand(2, 3, *z.shape)), 4, r"row of class scores per image; got \(2, 3, 1, 4"),
    ],
)  # fmt: skip
def test_what_is_unclear_is_refused_in_words(network: nn.Module, classes: int, words: str) -> None:
    with pytest.raises(DataError, match=f"own/net .*{words}"):
        attach_reading(network.eval(), source_for(classes))


def test_pixels_without_scores_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="got 21 outputs and 4 names"):
        attach_reading(Pixels(FORMS["tensor"], 21).eval(), source_for(4, "segmentation"))
    with pytest.raises(DataError, match="class scores for every pixel"):
        attach_reading(Network(FORMS["tensor"], 4).eval(), source_for(4, "segmentation"))


@pytest.mark.parametrize(("output", "factor"), [("0", 1), ("1", 2), ("2.deep", 3)])
def test_the_user_says_which_output_counts(output: str, factor: int) -> None:
    network = Network(lambda z: (z, 2 * z, {"deep": 3 * z})).eval()
    attach_reading(network, source_for(4, output=output))
    assert torch.equal(network(images(3)), factor * network.linear(images(3).flatten(1)))
    other = Network(lambda z: (z, 2 * z)).eval()
    attach_reading(other, source_for(4, task="a task of one's own", output="1"))
    assert torch.equal(other(images(3)), 2 * other.linear(images(3).flatten(1)))
    with pytest.raises(DataError, match="no such output; got logits; expected 0, 1"):
        attach_reading(Network(lambda z: (z, z)).eval(), source_for(4, output="logits"))


def test_networks_that_do_not_run_and_other_tasks_are_left_to_others() -> None:
    broken = Network(lambda z: z.reshape(7, 7)).eval()
    attach_reading(broken, source_for(4))
    detector = Network(lambda z: [{"boxes": z}]).eval()
    attach_reading(detector, source_for(4, "detection"))
    assert not broken._forward_hooks
    assert not detector._forward_hooks


@pytest.mark.parametrize(
    ("form", "outputs", "count"), [("tensor", 4, 4), ("tensor", 1, 2), ("dict of one", 3, 3)]
)
def test_outputs_tell_how_many_classes_there_are(form: str, outputs: int, count: int) -> None:
    assert count_classes(Network(FORMS[form], outputs), (3, 2, 2), "classification", None) == count
    assert count_classes(Network(FORMS[form], outputs), (3, 2, 2), "detection", None) is None
    assert count_classes(Network(lambda z: "four"), (3, 2, 2), "classification", None) is None


def test_a_network_of_which_nothing_is_known_is_never_constant() -> None:
    with pytest.raises(DataError, match="one row of class scores"):
        plain_scores(torch.ones(3, 1), 3, by_pixel=False)
    assert plain_scores({"logits": torch.ones(3, 2), "x": torch.ones(3)}, 3, by_pixel=False).shape == (3, 2)
    column = scores_in(torch.tensor([[-1.0], [2.0]]))
    assert column is not None
    assert column.argmax(dim=1).tolist() == [0, 1]
    assert scores_in([{"boxes": torch.zeros(2, 4), "scores": torch.zeros(2)}]) is None
    first, other = Network(FORMS["tensor"], 1), Network(FORMS["tensor"], 1)
    nn.init.ones_(other.linear.weight)
    assert divergence(first, other, [images(4)]) > 0.01


FACTORY = """
import torch
from torch import nn
INPUT_SHAPE, MEAN, STD, CLASSES = (1, 8, 8), (0.3,), (0.4,), ("a", "b", "c")
class Net(nn.Module):
    def __init__(self, outputs, form):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.form = nn.Conv2d(1, 8, 3), nn.Linear(288, outputs), form
    def forward(self, x):
        return self.form(self.linear(self.conv(x).relu().flatten(1)))
def more(): return Net(4, lambda z: z)
def fewer(): return Net(2, lambda z: {"logits": z})
def several(): return Net(3, lambda z: (z, z))
def best(): return Net(3, lambda z: z.argmax(1))
def single(): return Net(1, lambda z: z)
single.classes = ("only",)
def chosen(): return Net(3, lambda z: (-z, z))
chosen.output = 1
def logit(): return Net(1, lambda z: {"logit": z.squeeze()})
logit.classes = ("off", "on")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Path) -> str:
    name = f"outputs_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    generator = np.random.default_rng(0)
    for count in (2, 3):
        pixels = generator.integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
        np.savez(tmp_path / f"{count}.npz", x=pixels, y=np.arange(300) % count)
    return name


@pytest.mark.parametrize("factory", ["more", "fewer", "several", "best", "single"])
def test_every_command_refuses_alike(
    own: str, factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path / "2.npz")]
    if factory == "single":  # of one class there are no labels that tell anything
        np.savez(tmp_path / "2.npz", x=np.zeros((300, 8, 8, 1), np.uint8), y=np.zeros(300, int))
    told = set()
    for command in (["check"], ["compress", "--ratio", "2", "--bits", "4"],
                    ["compress", "--bits", "8", "--structure", "auto"]):  # fmt: skip
        assert main([command[0], f"{own}:{factory}", *command[1:], *data]) == 2
        told.add(capsys.readouterr().err.splitlines()[-1])
    assert len(told) == 1
    assert f"{own}:{factory} " in told.pop()


def test_a_factory_says_which_output_counts_and_one_logit_runs_through(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build_model(find_model(f"{own}:chosen"))
    image = torch.ones(2, 1, 8, 8)
    assert torch.equal(network(image), network.linear(network.conv(image).relu().flatten(1)))
    data = ["--data", str(tmp_path / "2.npz")]
    command = ["compress", f"{own}:logit", "--ratio", "2", "--bits", "2", *data, "--no-check", "--json"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert '"status": "completed"' in told
    assert '"agreement": 1.0' not in told, "a single output is not a constant"


def test_the_choice_stays_with_a_registered_model(own: str, tmp_path: Path, workspace: Path) -> None:
    assert main(["models", "--add", "own/chosen", "--factory", f"{own}:chosen"]) == 0
    assert find_model("own/chosen", workspace=workspace).output == "1"
    assert main(["models", "--add", "own/logit", "--factory", f"{own}:logit"]) == 0
    assert build_model(find_model("own/logit", workspace=workspace))(torch.ones(1, 1, 8, 8)).shape == (1, 2)


def test_weights_with_one_output_are_for_two_classes(tmp_path: Path, workspace: Path) -> None:
    state = build_model(find_model("cifar/resnet20"), with_weights=False).state_dict()
    state["linear.weight"], state["linear.bias"] = state["linear.weight"][:1], state["linear.bias"][:1]
    torch.save(state, tmp_path / "one.pth")
    source = find_model("cifar/resnet20", tmp_path / "one.pth")
    assert source.classes == ("class 0", "class 1")
    network = build_model(source)
    assert network.get_parameter("linear.weight").shape[0] == 1
    assert network(torch.zeros(3, 3, 32, 32)).shape == (3, 2)
    (tmp_path / "names.txt").write_text("off\non\n")
    assert find_model("cifar/resnet20", tmp_path / "one.pth", classes=tmp_path / "names.txt").classes == (
        "off",
        "on",
    )
    (tmp_path / "names.txt").write_text("off\n")
    with pytest.raises(DataError, match="got 1 names; expected 2, for its single output"):
        find_model("cifar/resnet20", tmp_path / "one.pth", classes=tmp_path / "names.txt")
    arguments = ["models", "--add", "own/one", "--model", "cifar/resnet20"]
    assert main([*arguments, "--weights", str(tmp_path / "one.pth")]) == 0
    assert build_model(find_model("own/one", workspace=workspace))(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
