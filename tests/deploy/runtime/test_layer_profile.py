"""Time by layer from profiles, and the table that compares models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qaf_core.deploy.runtime.layer_profile import OTHER, compare_layers, profile_layers, sum_by_layer


def event(name: str, microseconds: float, category: str = "Node") -> dict[str, object]:
    return {"name": name, "dur": microseconds, "cat": category}


def test_medians_of_a_layers_nodes_are_added_up() -> None:
    events = [
        *(event("block.conv.0/Conv_token_3_kernel_time", value) for value in (10, 900, 12)),
        *(event("block.conv.1/Relu_7_nchwc_kernel_time", value) for value in (5, 5, 5)),
        event("fused head.0/Gemm_kernel_time", 7),
        event("node_add_kernel_time", 2),
        event("block.conv.0/Conv_token_3_fence_before", 50),
        event("model_run", 5000, "Session"),
    ]
    found = sum_by_layer(events, ["block.conv", "head", "idle"])
    assert found == pytest.approx({"block.conv": 0.017, "head": 0.007, "idle": 0.0, OTHER: 0.002})


@pytest.mark.parametrize(("whole", "added"), [(None, 0.0), (0.020, 0.002), (0.030, 0.0)])
def test_what_the_profile_adds_is_taken_off_every_node_alike(whole: float | None, added: float) -> None:
    events = [
        event("a.0/Conv_kernel_time", 10),
        event("a.1/Conv_kernel_time", 9),
        event("add_kernel_time", 7),
    ]
    found = sum_by_layer(events, ["a"], model_ms=whole)
    assert found == pytest.approx({"a": 0.019 - 2 * added, OTHER: 0.007 - added})


@pytest.mark.parametrize("whole", [0.001, 0.005, 0.09, 0.095, 0.103])
def test_nodes_add_up_to_the_whole_and_none_is_below_zero(whole: float) -> None:
    events = [event(f"a.{place}/Conv_kernel_time", dur) for place, dur in enumerate((100, 1, 1, 1))]
    found = sum_by_layer([*events, event("add_kernel_time", 0)], ["a"], model_ms=whole)
    assert found["a"] + found[OTHER] == pytest.approx(whole)
    assert found["a"] > 0 <= found[OTHER]


def test_a_real_profile_finds_the_heavier_layer(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.ones((channels, 8, 5, 5), np.float32), name)
        for name, channels in (("light", 8), ("heavy", 256))
    ]
    nodes = [
        helper.make_node("Conv", ["images", "light"], ["a.0/Conv"], name="a.0/Conv", pads=[2] * 4),
        helper.make_node("Conv", ["a.0/Conv", "heavy"], ["b.0/Conv"], name="b.0/Conv", pads=[2] * 4),
        helper.make_node("ReduceMean", ["b.0/Conv"], ["scores"], name="mean", keepdims=0),
    ]
    shape = (1, 8, 32, 32)
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "two.onnx")
    models = {"here": tmp_path / "two.onnx"}
    found = profile_layers(models, np.ones(shape, np.float32), ["a", "b"], threads=1, rounds=10)["here"]
    assert found["b"] > 3 * found["a"] > 0
    assert found[OTHER] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["two.onnx"]  # profiles are tidied away


def test_the_table_says_which_layer_is_slower() -> None:
    profiles = {
        "dense_int8": {"a": 1.0, "b": 1.0, "c": 1.0, OTHER: 0.5},
        "factorized_int8": {"a": 0.5, "b": 1.5, "c": 1.1, OTHER: 0.5},
    }
    plan = [
        {"name": "a", "structure": "cp", "rank": 16},
        {"name": "b", "structure": "tucker2", "rank": [16, 16]},
        {"name": "c", "structure": "dense", "rank": None},
    ]
    rows = compare_layers(profiles, plan)
    assert [(row["layer"], row["slower_than_dense"]) for row in rows] == [
        ("a", False),
        ("b", True),
        ("c", None),
        (OTHER, None),
    ]
    assert rows[1] == {
        "layer": "b",
        "structure": "tucker2",
        "rank": [16, 16],
        "dense_int8_ms": 1.0,
        "factorized_int8_ms": 1.5,
        "slower_than_dense": True,
    }
