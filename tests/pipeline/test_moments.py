"""Second moments of what reaches a layer, against patches written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from qaf_core.pipeline import moments
from qaf_core.pipeline.moments import collect_moments, patch_rows


def images(count: int = 6, channels: int = 3, size: int = 7) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


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
    layer, values = nn.Conv2d(3, 5, **geometry, bias=False), images()
    with torch.no_grad():
        rows = patch_rows(layer, values) @ layer.weight.reshape(5, -1).mT
        expected = layer(values).movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


def test_per_position_moments_predict_the_mean_square_of_every_output() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2)).eval()
    found = collect_moments(model, ["0", "2"], batches_of(images()), per_position=True)
    with torch.no_grad():
        for name, reached in (("0", images()), ("2", functional.relu(model[0](images())))):
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            weight = layer.weight.reshape(len(layer.weight), -1)
            outputs = layer(reached)
            if layer.bias is not None:
                outputs = outputs - layer.bias[:, None, None]
            assert found[name].shape == (weight.shape[1],) * 2
            predicted = (weight @ found[name] * weight).sum(dim=1)
            torch.testing.assert_close(predicted, outputs.square().mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_channel_moments_are_means_over_images_and_positions() -> None:
    model, values = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).eval(), images()
    found = collect_moments(model, ["0"], batches_of(values), per_position=False)["0"]
    expected = torch.einsum("nchw,ndhw->cd", values, values) / (len(values) * 49)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8), (6, 5, 8)])
def test_linear_layers_with_and_without_positions(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(8, 2)).eval()
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found = collect_moments(model, ["0"], batches_of(values), per_position=True)["0"]
    rows = values.reshape(-1, 8)
    torch.testing.assert_close(found, rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-6)


def test_batches_of_unequal_size_count_by_their_images() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    values = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]])
    found = collect_moments(model, ["0"], batches_of(values), per_position=True)["0"]
    torch.testing.assert_close(found, torch.diag(torch.tensor([0.8, 0.2])))


def test_layers_that_run_twice_see_both_inputs() -> None:
    layer = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(layer, layer).eval()
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        rows = torch.cat([values, layer(values)])
    found = collect_moments(model, ["0"], [values], per_position=True)["0"]
    torch.testing.assert_close(found, rows.mT @ rows / 10)


def test_grouped_convolutions_are_left_out_and_hooks_are_gone_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1)).eval()
    found = collect_moments(model, ["0", "1"], [images(channels=4)], per_position=True)
    assert list(found) == ["1"]
    assert found["1"].shape == (4, 4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_are_gone_after_a_fault() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).eval()
    with pytest.raises(RuntimeError):
        collect_moments(model, ["0"], [torch.zeros(2, 4)], per_position=True)
    assert not model[0]._forward_pre_hooks


def test_large_patches_fall_back_to_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "LARGEST_PATCH", 26)
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    assert collect_moments(model, ["0"], [images()], per_position=True)["0"].shape == (3, 3)


def test_a_sample_of_the_positions_gives_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), images(64, size=32)
    exact = collect_moments(model, ["0"], batches_of(values, 16), per_position=False)["0"]
    monkeypatch.setattr(moments, "POSITIONS", 8000)
    sampled = collect_moments(model, ["0"], batches_of(values, 16), per_position=False)["0"]
    assert float((sampled - exact).norm() / exact.norm()) < 0.05
    assert not torch.equal(sampled, exact)
