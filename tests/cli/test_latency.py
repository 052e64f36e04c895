"""What ``qaf latency`` prints of a measurement."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qaf_core.cli.latency import _print_latency
from qaf_core.cli.text import choose_language
from qaf_core.deploy.runtime.rapl import energy_per_run
from qaf_core.deploy.runtime.speed_report import HERE, LayerTime, Machine, SpeedReport


def test_a_time_that_is_not_known_is_a_dash_and_not_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    record: Any = SimpleNamespace(compressed=None)
    report = SpeedReport(
        source=HERE, threads=1, batch=1, latencies={},
        layers=(LayerTime(layer="conv1", structure="cp", rank=4, original_fp32_ms=2.0),),
        machine=Machine(processor="a processor", onnxruntime="1", threads=1),
    )  # fmt: skip
    _print_latency(report, record)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("conv1")]
    assert row.split() == ["conv1", "cp", "4", "2", "ms", "–", "–"]


def test_what_a_device_answers_and_why_energy_is_not_known_is_told_in_japanese(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record: Any = SimpleNamespace(compressed=None)
    report = SpeedReport.from_dict(
        {
            "schema_version": 1, "source": HERE, "threads": 1, "batch": 1, "latencies": {},
            "same_answers": {"dense_int8": 0.0}, "compared_images": 64,
            "failed": {"factorized_fp32": "no such operator"},
            "energy": energy_per_run({"a": list}, powercap=tmp_path),
            "machine": {"processor": "a processor", "onnxruntime": "1", "threads": 1},
        }
    )  # fmt: skip
    choose_language("ja")
    try:
        _print_latency(report, record)
    finally:
        choose_language("en")
    told = capsys.readouterr()
    assert "警告: factorized_fp32 はこの機器では動作しません: no such operator\n" in told.err
    assert (
        "警告: dense_int8 の判定はこの機器では正しくありません。作成元と一致するのは 0.0% だけです\n"
        in told.err
    )
    assert "測定キットの作成元と同じ判定の割合（画像 64 枚）: dense_int8 0.0%\n" in told.out
    assert "消費エネルギーは未測定: この計算機では消費エネルギーを測定できません" in told.out
