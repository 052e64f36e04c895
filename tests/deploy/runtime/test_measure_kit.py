"""Times taken in turns, ratios with their intervals, and the memory an inference needs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qaf_core.deploy.runtime.measure_kit import (
    LEAST_ROUNDS,
    WARM_UP_ROUNDS,
    Load,
    compare,
    describe_machine,
    measure_peak_memory,
    open_session,
    ratio_of,
    summarise,
    time_interleaved,
    time_models,
)


def write_convolution(path: Path, channels: int, side: int) -> Path:
    """A 1×1 convolution from 3 to ``channels`` channels and the mean of what it puts out."""
    weight = numpy_helper.from_array(np.ones((channels, 3, 1, 1), np.float32), "weight")
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["wide"]),
        helper.make_node("Sigmoid", ["wide"], ["bent"]),
        helper.make_node("GlobalAveragePool", ["bent"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, side, side))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_every_round_runs_each_once_in_changing_order() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = time_interleaved(runs, rounds=20)
    rounds = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert len(rounds) == 20 + WARM_UP_ROUNDS
    assert all(sorted(seen) == ["a", "b", "c"] for seen in rounds)
    assert len(set(rounds)) > 3
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 20)
    again: list[str] = []
    time_interleaved({name: lambda name=name: again.append(name) for name in "abc"}, rounds=20)
    assert again == order


def test_a_time_limit_ends_the_rounds_but_leaves_some() -> None:
    times = time_interleaved({"a": lambda: None}, rounds=10**6, seconds=0.0)
    assert len(times["a"]) == LEAST_ROUNDS


def test_summaries_and_ratios_of_known_times() -> None:
    times = np.arange(101, dtype=float)
    told = summarise(times)
    assert (told.median_ms, told.p5_ms, told.p95_ms, told.n) == (50.0, 5.0, 95.0, 101)
    assert told.to_dict()["n"] == 101
    noise = np.random.default_rng(0).normal(1.0, 0.01, 400)
    ratio = ratio_of(0.5 * noise, noise)
    assert ratio.value == pytest.approx(0.5)
    assert ratio.low == pytest.approx(0.5)  # the same rounds are drawn for both
    slower = np.random.default_rng(1).normal(2.0, 0.2, 400)
    ratio = ratio_of(slower, noise)
    assert ratio.low < 2.0 < ratio.high
    assert ratio.high - ratio.low < 0.2


def test_models_are_timed_on_the_same_images(tmp_path: Path) -> None:
    models = {
        "small": write_convolution(tmp_path / "small.onnx", 2, 64),
        "large": write_convolution(tmp_path / "large.onnx", 512, 64),
    }
    images = np.zeros((1, 3, 64, 64), np.float32)
    times = time_models(models, images, threads=1, rounds=15)
    assert ratio_of(times["large"], times["small"]).low > 3.0
    assert open_session(models["small"], threads=1).get_session_options().intra_op_num_threads == 1


def test_wide_intermediates_show_in_the_memory(tmp_path: Path) -> None:
    images = np.zeros((1, 3, 256, 256), np.float32)
    narrow, wide = (
        measure_peak_memory(write_convolution(tmp_path / f"{n}.onnx", n, 256), images, threads=1)
        for n in (4, 128)
    )
    assert narrow is not None
    assert wide is not None
    planned = (128 - 4) * 256 * 256 * 4
    assert 0.8 * planned < wide - narrow < 4 * planned


def test_a_model_that_cannot_run_has_no_memory_figure(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert measure_peak_memory(broken, np.zeros((1, 3, 8, 8), np.float32), threads=1) is None


def test_the_machine_is_described() -> None:
    told = describe_machine(3)
    assert told["threads"] == 3
    assert told["onnxruntime"]
    assert told["processor"]


def test_disturbed_rounds_give_an_interval_that_holds_what_their_parts_say() -> None:
    generator = np.random.default_rng(0)
    quiet, other = (generator.normal(mean, 0.02, 300) for mean in (1.4, 1.0))
    busy = quiet.copy()
    busy[200:] *= 1.25  # someone else came
    told = ratio_of(busy, other)
    assert told.high - told.low < 0.02
    honest = ratio_of(busy, other, disturbed=True)
    assert honest.value == told.value
    assert honest.low < 1.41
    assert honest.high > 1.7
    still = ratio_of(quiet, other, disturbed=True)
    assert still.high - still.low < 0.05, "what is the same all along stays narrow"


def test_a_busy_machine_is_told_with_the_times() -> None:
    rising = np.linspace(0.5, 1.0, 300)
    times = {"dense_int8": np.ones(300), "factorized_int8": rising}
    for share, wide in ((None, False), (0.05, False), (0.4, True)):
        found = compare(times, share)
        assert found["others_share"] == share
        ratio = found["ratio_to_dense_int8"]
        assert (ratio["high"] - ratio["low"] > 0.3) == wide


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system does not tell")
def test_the_load_of_others_leaves_our_own_out() -> None:
    load = Load()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    share = load.others_share()
    assert share is not None
    assert 0.0 <= share <= 1.0
