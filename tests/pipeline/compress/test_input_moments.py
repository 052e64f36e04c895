"""Second moments of what reaches a layer, against patches written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.errors import ModelError
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.network import layer_of, networks_in
from qaf_core.pipeline.compress import input_moments
from qaf_core.pipeline.compress.input_moments import collect_moments
from qaf_core.pipeline.compress.walk import Walk


def images(count: int = 6, channels: int = 3, size: int = 7) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def captured(*layers: nn.Module, shape: tuple[int, ...] = (3, 7, 7)) -> nn.Module:
    """Layers one after the other, captured for inputs of a shape."""
    return capture(nn.Sequential(*layers), shape)


def batches_of(values: Tensor, size: int = 4) -> list[Tensor]:
    return [values[first : first + size] for first in range(0, len(values), size)]


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": (1, 5), "padding": (0, 2), "stride": (1, 2)},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_patch_rows_times_the_weight_is_the_convolution(geometry: dict[str, Any]) -> None:
    convolution, values = nn.Conv2d(3, 5, **geometry, bias=False), images()
    model = captured(convolution)
    layer = layer_of(model, "0")
    with torch.no_grad():
        (segment,) = Walk(model, [values]).segments()
        (reached,) = segment.reach("0", 0)  # a padding of its own kind has been added by then
        rows = layer.operation.patch_rows(reached, layer.rows.shape[2:]) @ layer.rows.reshape(5, -1).mT
        expected = convolution(values).movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


def test_per_position_moments_predict_the_mean_square_of_every_output() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2)).eval()
    model = capture(plain, (3, 7, 7))
    found = collect_moments(model, ["0", "2"], batches_of(images()), per_position=True)
    with torch.no_grad():
        for name, reached in (("0", images()), ("2", functional.relu(plain[0](images())))):
            layer = plain.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            weight = layer.weight.reshape(len(layer.weight), -1)
            outputs = layer(reached)
            if layer.bias is not None:
                outputs = outputs - layer.bias[:, None, None]
            assert found[name].shape == (weight.shape[1],) * 2
            predicted = (weight @ found[name] * weight).sum(dim=1)
            torch.testing.assert_close(predicted, outputs.square().mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_channel_moments_are_means_over_images_and_positions() -> None:
    model, values = captured(nn.Conv2d(3, 4, 3, padding=1)), images()
    found = collect_moments(model, ["0"], batches_of(values), per_position=False)["0"]
    expected = torch.einsum("nchw,ndhw->cd", values, values) / (len(values) * 49)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8), (6, 5, 8)])
def test_linear_layers_with_and_without_positions(shape: tuple[int, ...]) -> None:
    model = captured(nn.Linear(8, 2), shape=shape[1:])
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found = collect_moments(model, ["0"], batches_of(values), per_position=True)["0"]
    rows = values.reshape(-1, 8)
    torch.testing.assert_close(found, rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_batches_of_unequal_size_count_by_their_images() -> None:
    model = captured(nn.Linear(2, 2), shape=(2,))
    values = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]])
    found = collect_moments(model, ["0"], batches_of(values), per_position=True)["0"]
    torch.testing.assert_close(found, torch.diag(torch.tensor([0.8, 0.2])))


def test_layers_that_run_twice_see_both_inputs() -> None:
    layer = nn.Linear(3, 3, bias=False)
    model = captured(layer, layer, shape=(3,))
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        rows = torch.cat([values, layer(values)])
    found = collect_moments(model, ["0"], [values], per_position=True)["0"]
    torch.testing.assert_close(found, rows.mT @ rows / 10)


def test_grouped_convolutions_are_left_out_and_nobody_looks_on_afterwards() -> None:
    model = captured(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1), shape=(4, 7, 7))
    found = collect_moments(model, ["0", "1"], [images(channels=4)], per_position=True)
    assert list(found) == ["1"]
    assert found["1"].shape == (4, 4)
    assert all(network.step_observer is None for network in networks_in(model).values())


def test_nobody_looks_on_after_a_fault() -> None:
    model = captured(nn.Linear(3, 3), shape=(3,))
    with pytest.raises(ModelError, match="inputs of this size"):
        collect_moments(model, ["0"], [torch.zeros(2, 4)], per_position=True)
    assert all(network.step_observer is None for network in networks_in(model).values())


def test_transposed_convolutions_have_moments_over_channels() -> None:
    values = images(channels=4, size=5)
    model = captured(nn.ConvTranspose2d(4, 3, 3, stride=2), shape=(4, 5, 5))
    found = collect_moments(model, ["0"], batches_of(values), per_position=False)["0"]
    expected = torch.einsum("nchw,ndhw->cd", values, values) / (len(values) * 25)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(4, 3, 3, stride=2, dilation=2), nn.Conv3d(4, 3, (2, 1, 2))], ids=str
)
def test_moments_of_one_and_three_dimensions(layer: nn.Conv1d | nn.Conv3d) -> None:
    shape = (4, 9) if isinstance(layer, nn.Conv1d) else (4, 3, 4, 5)
    values = torch.randn(6, *shape, generator=torch.Generator().manual_seed(3))
    found = collect_moments(captured(layer, shape=shape), ["0"], batches_of(values), per_position=True)["0"]
    with torch.no_grad():
        weight = layer.weight.reshape(3, -1)
        outputs = (layer(values).movedim(1, -1) - layer.bias).reshape(-1, 3)  # type: ignore[operator]
    predicted = (weight @ found * weight).sum(dim=1)
    torch.testing.assert_close(predicted, outputs.square().mean(dim=0), rtol=1e-4, atol=1e-6)


def test_large_patches_fall_back_to_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_moments, "LARGEST_PATCH", 26)
    model = captured(nn.Conv2d(3, 4, 3))
    assert collect_moments(model, ["0"], [images()], per_position=True)["0"].shape == (3, 3)


def test_a_sample_of_the_positions_gives_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = captured(nn.Conv2d(3, 4, 3), shape=(3, 32, 32)), images(64, size=32)
    exact = collect_moments(model, ["0"], batches_of(values, 16), per_position=False)["0"]
    monkeypatch.setattr(input_moments, "POSITIONS", 8000)
    sampled = collect_moments(model, ["0"], batches_of(values, 16), per_position=False)["0"]
    assert float((sampled - exact).norm() / exact.norm()) < 0.05
    assert not torch.equal(sampled, exact)
