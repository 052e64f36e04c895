"""Operations against PyTorch's own layers: what they compute, their shapes, their rows and their counts."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qaf_core.network.modules.operation import (
    LINEAR,
    Operation,
    convolution,
    pointwise,
    same_padding,
    sizes_of,
)

MODULES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 4), (2, 3, 6)),
    (nn.Conv1d(4, 6, 5, stride=2, padding=3, dilation=2), (2, 4, 17)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 9, 8)),
    (nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
    (nn.Conv2d(4, 6, 1, stride=2, padding=1), (2, 4, 5, 5)),
    (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    (nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1), stride=(1, 2, 1)), (2, 2, 3, 4, 5)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 6)),
    (nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=(1, 2)), (2, 4, 5, 6)),
    (nn.ConvTranspose3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 3, 3, 3)),
]
PLAIN = [
    row for row in MODULES if isinstance(row[0], nn.Linear) or (row[0].groups == 1 and not row[0].transposed)
]


def operation_of(module: Any) -> Operation:
    if isinstance(module, nn.Linear):
        return LINEAR
    geometry: dict[str, Any] = {
        "stride": module.stride, "padding": module.padding, "dilation": module.dilation,
        "groups": module.groups, "transposed": module.transposed,
    }  # fmt: skip
    if module.transposed:
        geometry["output_padding"] = module.output_padding
    return convolution(module.weight.ndim - 2, **geometry)


def values_for(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=str)
@torch.no_grad()
def test_an_operation_computes_what_the_layer_does(module: Any, shape: tuple[int, ...]) -> None:
    operation, values = operation_of(module), values_for(shape)
    expected = module(values)
    assert torch.equal(operation.apply(values, module.weight, module.bias), expected)
    rows = operation.by_rows(module.weight)
    assert operation.output_shape(shape, rows.shape) == list(expected.shape)
    assert len(rows) == expected.shape[operation.channel_axis]
    assert torch.equal(operation.as_stored(rows), module.weight)
    # Rows are output channels: one of them scaled scales one channel.
    factors = torch.rand(len(rows)) + 0.5
    scaled = rows * factors.reshape(-1, *(1,) * (rows.ndim - 1))
    found = operation.apply(values, operation.as_stored(scaled), None)
    wanted = operation.apply(values, module.weight, None) * operation.per_channel(factors)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("module", "shape"), PLAIN, ids=str)
@torch.no_grad()
def test_rows_of_patches_times_rows_of_weights_are_outputs(module: Any, shape: tuple[int, ...]) -> None:
    operation, values = operation_of(module), values_for(shape)
    rows = operation.by_rows(module.weight)
    patches = operation.patch_rows(values, rows.shape[2:])
    found = patches @ rows.flatten(1).T + module.bias
    torch.testing.assert_close(found, operation.output_rows(module(values)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("module", "shape"), MODULES, ids=str)
@torch.no_grad()
def test_every_multiplication_is_counted(module: Any, shape: tuple[int, ...]) -> None:
    """A weight of ones on an input of ones adds one for each; those on padding are counted too."""
    operation, rows = operation_of(module), operation_of(module).by_rows(module.weight)
    output = operation.apply(torch.ones(shape), torch.ones_like(module.weight), None)
    counted = operation.macs(rows.shape, shape, output.shape)
    done = int(output.sum())
    inside = operation.transposed and (any(operation.padding) or any(operation.output_padding))
    if any(operation.padding):
        assert counted > done
    else:
        assert counted == done
    assert not inside or counted == prod(shape) * rows.shape[0] * prod(rows.shape[2:])


def test_kinds() -> None:
    assert LINEAR.kind == "linear"
    assert [convolution(dims).kind for dims in (1, 2, 3)] == ["conv1d", "conv2d", "conv3d"]
    assert convolution(2, transposed=True).kind == "conv_transpose2d"
    assert LINEAR.channel_axis == -1
    assert convolution(2).channel_axis == -3


def test_other_forms_of_an_operation() -> None:
    operation = convolution(2, stride=2, padding=(1, 0), groups=2, transposed=True)
    assert operation.pointwise() == pointwise(2) == convolution(2)
    assert pointwise(0) == LINEAR
    assert hash(convolution(1, stride=3)) == hash(convolution(1, stride=(3,)))


@pytest.mark.parametrize(("value", "sizes"), [(3, (3, 3)), ([3], (3, 3)), ((1, 2), (1, 2))])
def test_a_single_number_stands_for_all(value: Any, sizes: tuple[int, ...]) -> None:
    assert sizes_of(value, 2) == sizes


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding"),
    [((3,), (1,), ((1,), (1,))), ((4, 2), (1, 3), ((1, 1), (2, 2))), ((1, 5), (2, 2), ((0, 4), (0, 4)))],
)
def test_padding_that_keeps_the_size(kernel: Any, dilation: Any, padding: Any) -> None:
    assert same_padding(kernel, dilation) == padding
