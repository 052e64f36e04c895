"""The latency table: what is measured, what is kept, and that a stopped measurement goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qaf_core.errors import RunCancelled
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.types import LayerPlan
from qaf_core.network.plan.validation import check_layer_plan
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.search.geometry import LayerGeometry
from qaf_core.search.latency_table import RANK_STEP, list_candidates, measure_layer_table


def convolution(name: str, channels: int = 32, **changes: object) -> LayerInfo:
    values: dict[str, object] = {
        "name": name,
        "kind": "conv2d",
        "weight_shape": (channels, 32, 3, 3),
        "kernel": (3, 3),
        "padding": (1, 1),
        "input_hw": (8, 8),
        "output_hw": (8, 8),
        "structures": ("cp", "tucker2", "svd", "dense", "keep"),
        "output_elements": channels * 64,
        **changes,
    }
    return LayerInfo(**values)  # type: ignore[arg-type]


LINEAR = LayerInfo(
    name="hidden",
    kind="linear",
    weight_shape=(40, 64),
    structures=("svd", "dense", "keep"),
    output_elements=40,
)
NETWORK = (
    convolution("first"),
    convolution("second"),
    convolution("thrice", calls=3),
    convolution("larger", 48),
    LINEAR,
    LayerInfo(name="norm", kind="batchnorm", weight_shape=(48,), structures=()),
    convolution("unused", calls=0, input_hw=None, output_hw=None),
)
RATIOS = (2.0, 4.0)


@pytest.mark.parametrize("ratio", [1.0, 1.02, 1.1])
def test_no_candidate_holds_more_than_the_layer(ratio: float) -> None:
    for width in (32, 64, 100, 256):
        info = convolution("layer", width)
        for structure, rank in list_candidates(info, (ratio,)):
            row = LayerPlan(name="layer", structure=structure, rank=rank, bits=8)
            assert check_layer_plan(info, row) == []


def test_ranks_are_multiples_of_the_step_and_each_comes_once() -> None:
    wide = convolution("wide", 256)
    found = list_candidates(wide, (1.5, 2.0, 2.05, 4.0, 30.0))
    assert found[0] == ("dense", None)
    assert len(set(found)) == len(found)
    for structure in ("cp", "svd"):
        ranks = [rank for name, rank in found if name == structure and isinstance(rank, int)]
        assert len(ranks) == 4
        assert all(rank % RANK_STEP == 0 or rank < RANK_STEP for rank in ranks)
    pairs = [rank for _, rank in found if isinstance(rank, tuple)]
    assert pairs
    assert all(part % RANK_STEP == 0 or part < RANK_STEP for pair in pairs for part in pair)


def test_every_layer_gets_a_row_for_every_candidate(tmp_path: Path) -> None:
    rows = measure_layer_table(NETWORK, threads=1, ratios=RATIOS, folder=tmp_path)
    assert json.loads(json.dumps(rows)) == rows
    for info in NETWORK[:5]:
        own = [(row["structure"], row["rank"]) for row in rows if row["layer"] == info.name]
        wanted = [(s, list(r) if isinstance(r, tuple) else r) for s, r in list_candidates(info, RATIOS)]
        assert own == wanted
    assert {row["layer"] for row in rows} == {info.name for info in NETWORK[:5]}
    assert all(0 < row["p5_ms"] <= row["median_ms"] <= row["p95_ms"] for row in rows)
    times = {row["layer"]: row["median_ms"] for row in rows if row["structure"] == "dense"}
    assert times["second"] == times["first"]  # the same geometry is measured once
    assert times["thrice"] == pytest.approx(3 * times["first"])


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first = measure_layer_table(NETWORK[:1], threads=1, ratios=RATIOS, folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_ino
    assert measure_layer_table(NETWORK[:2], threads=1, ratios=RATIOS, folder=tmp_path)[: len(first)] == first
    assert kept.stat().st_ino == written  # not written anew
    measure_layer_table(NETWORK[:1], threads=2, ratios=RATIOS, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other threads, another table


def test_a_damaged_table_is_measured_anew(tmp_path: Path) -> None:
    measure_layer_table(NETWORK[:1], threads=1, ratios=RATIOS, folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    for content in ("{", "[]", '{"a": 3}', "{}"):
        kept.write_text(content, encoding="utf-8")
        assert len(measure_layer_table(NETWORK[:1], threads=1, ratios=RATIOS, folder=tmp_path)) > 2


def test_a_stopped_measurement_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    events: list[RunEvent] = []
    with pytest.raises(RunCancelled):
        measure_layer_table(
            NETWORK,
            threads=1,
            ratios=RATIOS,
            folder=tmp_path,
            progress=Progress(events.append, lambda: len(events) >= 1),
        )
    assert [event.data["stage"] for event in events] == ["latency"]
    (kept,) = tmp_path.iterdir()
    before = json.loads(kept.read_text(encoding="utf-8"))
    geometry = LayerGeometry.of(NETWORK[0])
    assert geometry is not None
    assert {key.split("/")[0] for key in before} == {geometry.key}
    measure_layer_table(NETWORK, threads=1, ratios=RATIOS, folder=tmp_path)
    after = json.loads(kept.read_text(encoding="utf-8"))
    assert before.items() <= after.items()
    assert len(after) > len(before)
