"""What a measurement says in words, and that it survives being written and read."""

from __future__ import annotations

from typing import Any

import pytest

from qaf_core.deploy.runtime.measure_kit import Latency, Ratio
from qaf_core.deploy.runtime.speed_report import (
    HERE,
    FileAccuracy,
    LayerTime,
    Machine,
    SpeedReport,
)
from qaf_core.text.catalogue import translator

FAST, EXACT = "factorized_int8", "factorized_int8_exact"
MACHINE = Machine(processor="A processor", onnxruntime="1.26.0", threads=2)


def make_report(**fields: Any) -> SpeedReport:
    times = {FAST: Latency(median_ms=2.0, p5_ms=1.5, p95_ms=3.0, n=100)}
    return SpeedReport(
        **{"source": HERE, "threads": 2, "batch": 1, "latencies": times, "machine": MACHINE, **fields}
    )


def words(*, fast: tuple[float, float, float] | None = None, **fields: Any) -> str:
    ratios = {} if fast is None else {FAST: Ratio(value=fast[0], low=fast[1], high=fast[2])}
    return " ".join(map(str, make_report(**{"ratios": ratios, **fields}).sentences()))


def test_the_file_a_slower_one_and_its_slower_layers_are_named() -> None:
    rows = (
        LayerTime(layer="a", slower_than_dense=True),
        LayerTime(layer="b", slower_than_dense=False),
        LayerTime(layer="c"),
    )
    slower = words(fast=(1.4, 1.3, 1.5), layers=rows)
    assert slower.startswith("The fast file (int8-fast) is slower than dense INT8: it takes 1.40 times")
    assert slower.endswith("In the fast file slower than those they replace: a.")
    assert "is faster than dense INT8: it takes 0.50 times" in words(fast=(0.5, 0.4, 0.6))
    assert "is as fast as dense INT8" in words(fast=(1.0, 0.9, 1.1))
    assert words(fast=(1.0, 0.9, 1.1), layers=rows[2:]).endswith("No layer is factorized.")
    many = tuple(LayerTime(layer=f"l{place}", slower_than_dense=True) for place in range(8))
    assert "l4 and 3 more." in words(fast=(1.4, 1.3, 1.5), layers=many)


def test_both_files_are_told_and_what_the_fast_one_changes() -> None:
    both = {FAST: Ratio(value=0.5, low=0.4, high=0.6), EXACT: Ratio(value=1.2, low=1.1, high=1.3)}
    assert "The fast file (int8-fast) is faster than dense INT8: it takes 0.50 times" in words(ratios=both)
    assert "The exact file (int8) is slower than dense INT8: it takes 1.20 times" in words(ratios=both)
    near, far = (
        {FAST: FileAccuracy(value=0.9, n=100, agreement_with_exact=share)} for share in (0.999, 0.98)
    )
    assert words(ratios=both, accuracy=near).endswith("agree with the evaluated network's to 99.9%.")
    assert words(ratios=both, accuracy=far).endswith(
        "to 98.0%. That is too little for qaf export, unless forced."
    )
    assert "Nothing can be said" in words()
    assert "Other programs used 40% of the processors meanwhile" in words(ratios=both, others_share=0.4)
    assert "Other programs" not in words(ratios=both, others_share=0.04)


def test_every_sentence_is_said_in_japanese() -> None:
    report = make_report(
        ratios={FAST: Ratio(value=1.0, low=0.9, high=1.1)}, others_share=0.4, layers=(LayerTime(layer="a"),),
        accuracy={FAST: FileAccuracy(value=0.9, n=100, agreement_with_exact=0.9)},
    )  # fmt: skip
    said = [sentence.text(translator("ja")) for sentence in report.sentences()]
    assert said[0].startswith("高速版ファイル（int8-fast）の速度は dense INT8 と同等です")
    assert all(sentence.endswith("。") for sentence in said)
    assert len(said) == 5


def test_a_report_is_read_as_it_was_written_and_an_older_one_as_far_as_it_goes() -> None:
    report = make_report(ratio_to_dense_int8=Ratio(value=0.5, low=0.4, high=0.6), compared_images=64)
    assert SpeedReport.from_dict(report.to_dict()) == report
    assert report.ratio() == report.ratio_to_dense_int8  # of a time when there was no other
    assert report.ratio(EXACT) is None
    older = {
        name: value for name, value in report.to_dict().items()
        if name in ("schema_version", "source", "threads", "batch", "latencies", "machine")
    }  # fmt: skip
    assert SpeedReport.from_dict({**older, "energy": None, "layers": None}).layers == ()
    for damaged in (None, [], {}, {**older, "schema_version": 2}, {**older, "latencies": {FAST: {}}}):
        with pytest.raises((TypeError, ValueError)):
            SpeedReport.from_dict(damaged)
