"""The layers of a captured network by name, the tensors that stay, and what is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.network.graph.canonical import FIXED
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of, layers_in, norms_in
from qaf_core.network.graph.program import put
from qaf_core.network.modules.quantized import Layer

SHAPE = (4, 6)


class Net(nn.Module):
    """Parameters by name, and what is done with them."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, values: Tensor) -> Tensor:
        return self._forward(self, values)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def test_a_layer_is_named_after_its_weight() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 4)))
    assert set(layers_in(capture(model, SHAPE))) == {"0", "1.0"}


def test_a_bare_parameter_is_a_layer_of_its_name() -> None:
    network = capture(Net(lambda net, x: x @ net.matrix, matrix=parameter(6, 3)), SHAPE)
    assert set(layers_in(network)) == {"matrix"}
    assert layer_of(network, "matrix").rows.shape == (3, 6)


def test_a_matrix_that_is_read_beside_keeps_its_name() -> None:
    model = Net(lambda net, x: x @ net.matrix + net.matrix.mean(), matrix=parameter(6, 3))
    network = capture(model, SHAPE)
    (name,) = layers_in(network)
    assert name == "matrix_matrix"
    assert dict(network.named_parameters())["matrix"] is model.matrix


@pytest.mark.parametrize("turned", [False, True])
def test_a_transposed_matrix_is_the_matrix_itself(turned: bool) -> None:
    """``x @ W.T`` is a linear map by W: with another one by W it is one layer."""
    model = Net(
        lambda net, x: (
            functional.linear(x, net.line.weight) + x @ (net.line.weight.T if turned else net.line.weight)
        ),
        line=nn.Linear(6, 6, bias=False),
    )
    network = capture(model, SHAPE)
    assert set(layers_in(network)) == ({"line"} if turned else {"line", "line_2"})


def test_a_bias_that_only_one_of_two_places_adds_stays_a_tensor() -> None:
    model = Net(
        lambda net, x: functional.linear(net.line(x), net.line.weight), line=nn.Linear(6, 6)
    )  # fmt: skip
    network = capture(model, SHAPE)
    layer = layer_of(network, "line.weight")
    assert layer.bias is None
    assert len(layer.operations) == 1
    assert dict(network.named_parameters())["line.bias"] is model.line.bias


def test_a_bias_added_by_hand_stays_a_tensor() -> None:
    model = Net(lambda net, x: functional.linear(x, net.line.weight) + net.line.bias, line=nn.Linear(6, 5))
    network = capture(model, SHAPE)
    assert layer_of(network, "line.weight").bias is None
    assert dict(network.named_parameters())["line.bias"] is model.line.bias


def test_a_weight_of_another_geometry_is_another_operation() -> None:
    weight = parameter(3, 4, 3)
    model = Net(
        lambda net, x: (
            functional.conv1d(x, net.kernel, padding=1)
            + functional.conv1d(x, net.kernel, padding=2, dilation=2)
        ),
        kernel=weight,
    )
    network = capture(model, SHAPE)
    layer = layer_of(network, "kernel")
    assert [operation.dilation for operation in layer.operations] == [(1,), (2,)]
    assert [node.kwargs for node in network.main_program.calls["kernel"]] == [{}, {"site": 1}]


def test_a_computed_weight_is_computed_once_and_its_parts_are_gone() -> None:
    model = Net(
        lambda net, x: functional.linear(x, net.left @ net.right), left=parameter(5, 2), right=parameter(2, 6)
    )
    network = capture(model, SHAPE)
    assert [node.op for node in network.main_program.steps] == ["call_module"]
    assert [tensor.shape for tensor in network.parameters()] == [(5, 6)]
    assert not network.absent_parameters  # both are used


def test_parameters_no_prediction_reads_are_told() -> None:
    model = Net(lambda net, x: net.line(x), line=nn.Linear(6, 5), spare=nn.Linear(2, 3))
    assert capture(model, SHAPE).absent_parameters == {"spare.weight": (3, 2), "spare.bias": (3,)}


def test_what_the_code_alone_says_is_a_buffer() -> None:
    model = Net(lambda net, x: net.line(x) * torch.arange(5).float(), line=nn.Linear(6, 5))
    network = capture(model, SHAPE)
    ((name, values),) = network.named_buffers()
    assert name.startswith(f"{FIXED}.")
    assert values.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_integers_are_no_weights() -> None:
    """A product with a table of whole numbers is no layer."""
    model = Net(lambda net, x: (x > 0).long() @ net.table + net.line(x)[..., :2].long(), line=nn.Linear(6, 5))
    model.register_buffer("table", torch.arange(12).reshape(6, 2))
    assert set(layers_in(capture(model, SHAPE))) == {"line"}


def test_a_norm_is_named_after_its_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4, affine=False)))
    network = capture(model, SHAPE)
    assert set(norms_in(network)) == {"0", "1.0"}
    assert norms_in(network)["0"].running_mean is model[0].running_mean


def test_modules_and_tensors_are_put_by_their_paths() -> None:
    root, layer = nn.Module(), nn.Linear(2, 2)
    put(root, "a.b.layer", layer)
    put(root, "a.scale", nn.Parameter(torch.ones(1)))
    put(root, "a.table", torch.ones(1))
    assert root.get_submodule("a.b.layer") is layer
    assert [name for name, _ in root.named_parameters()] == ["a.scale", "a.b.layer.weight", "a.b.layer.bias"]
    assert [name for name, _ in root.named_buffers()] == ["a.table"]
    assert not isinstance(root.get_submodule("a"), Layer)
