"""Latencies as bars and words."""

from __future__ import annotations

import pytest

from qaf_core.deploy.runtime.measure_kit import Latency, Ratio
from qaf_core.deploy.runtime.model_files import ModelFile
from qaf_core.review.speed import latency_figure, model_labels, speed_sentence

ROW = Latency(median_ms=2.0, p5_ms=1.5, p95_ms=3.0, n=100)


@pytest.mark.parametrize("dark", [False, True])
def test_each_model_is_a_bar_with_its_range(dark: bool) -> None:
    figure = latency_figure(dict.fromkeys(reversed(ModelFile), ROW), dark=dark)
    (bar,) = figure.data
    assert list(bar.y) == [model_labels()[name] for name in ModelFile]
    assert list(bar.x) == [2.0] * len(ModelFile)
    assert list(bar.error_x.array) == [1.0] * len(ModelFile)
    assert list(bar.error_x.arrayminus) == [0.5] * len(ModelFile)


def test_models_that_were_not_measured_are_left_out() -> None:
    assert list(latency_figure({"dense_int8": ROW}).data[0].y) == [model_labels()["dense_int8"]]
    assert latency_figure({}).data[0].x == ()


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Ratio(value=0.5, low=0.45, high=0.55), "2× faster"),
        (Ratio(value=1.4, low=1.3, high=1.5), "Slower than the original in 8 bits, by 1.40×"),
        (Ratio(value=0.99, low=0.9, high=1.1), "As fast as"),
    ],
)
def test_the_sentence_says_which_is_faster(ratio: Ratio, said: str) -> None:
    assert said in speed_sentence(ratio)
