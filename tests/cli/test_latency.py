"""What ``qaf latency`` prints of a measurement."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qaf_core.cli.latency import _print_latency
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
