"""Up to five runs beside each other, on the page."""

from __future__ import annotations

import json

from qaf_core.runs.jobs.latency import FILE_NAME
from qaf_core.runs.listing import list_rows
from qaf_core.runs.store.store import Store
from tests.conftest import seed_finished_run
from tests.dashboard.conftest import Draw, shown
from tests.runs.evidence.test_answers import keep_answers


def html_of(test: object) -> str:
    return "".join(element.proto.body for element in test.get("html"))  # type: ignore[attr-defined]


def test_five_runs_stand_beside_each_other(draw: Draw, store: Store) -> None:
    ids = [
        seed_finished_run(store, method=method, ratio=ratio, value=0.9 + ratio / 100)
        for method, ratio in (("joint", 2.0), ("joint", 3.0), ("paper", 2.0), ("dense", 1.0), ("joint", 4.0))
    ]
    for wrong, run_id in enumerate(ids):
        keep_answers(store, run_id, 10 * wrong)
    test = draw("compare")
    assert "Choose at least two runs" in shown(test)
    test.multiselect[0].set_value(ids).run()
    shown(test)
    page = html_of(test)
    for title in ("joint 2", "joint 3", "paper 2", "dense 1", "joint 4"):
        assert f">{title}</th>" in page
    assert 'class="number changed">Dense</td>' in page
    assert "not measured yet" in page
    assert "CP 20 · W4" in page
    assert "167 / 168" not in page
    assert "(97.8–100.0)" in page, "counts and exact intervals by class"
    test.segmented_control[0].set_value("errors").run()
    test.selectbox[0].set_value("output").run()
    page = html_of(test)
    assert "joint 2: outputs" in page
    assert page.index("layer3.0.conv1") < page.index("layer1.0.conv1"), "the worst first"
    test.segmented_control[0].set_value("divergence").run()
    assert "known once the model is explored" in shown(test)
    assert list(test.query_params["run"]) == ids


def test_time_by_layer_and_files_and_what_is_alike(draw: Draw, store: Store) -> None:
    first, second = seed_finished_run(store), seed_finished_run(store)
    times = {"median_ms": 3.0, "p5_ms": 2.5, "p95_ms": 3.5, "n": 9}
    told = {
        "schema_version": 1, "source": "this machine", "threads": 1, "batch": 1, "verdict": "",
        "machine": {"processor": "p", "onnxruntime": "1", "threads": 1}, "measured_at": 1.0,
        "latencies": {"dense_int8": {**times, "median_ms": 2.0}, "factorized_int8": times},
        "ratios": {"factorized_int8": {"value": 1.5, "low": 1.4, "high": 1.6}},
        "layers": [{"layer": "layer1.0.conv1", "dense_int8_ms": 0.5, "factorized_int8_ms": 0.75}],
    }  # fmt: skip
    folder = store.run_folder(first)
    (folder / "onnx").mkdir(parents=True)
    (folder / FILE_NAME).write_text(json.dumps(told))
    (folder / "onnx" / "factorized_int8.onnx").write_bytes(b"1" * 54_000)
    test = draw("compare", run=first)
    test.multiselect[0].set_value([first, second]).run()
    assert "1.5 times as long" in html_of(test)
    assert "54 kB (20×)" in html_of(test)
    test.segmented_control[0].set_value("time").run()
    assert "0.75 ms" in html_of(test)
    test.toggle[0].set_value(True).run()
    assert "same plan in all these runs" in shown(test)
    test = draw("run", run=first)
    text = shown(test)
    assert "1.5 times as long" in text
    assert "as the original in 8 bits: 2 ms → 3 ms" in text
    files = next(frame.value for frame in test.dataframe if "file" in frame.value)
    assert files["smaller"].tolist() == [20.0]
    assert "not measured yet" in shown(draw("run", run=second))
    (row,) = [row for row in list_rows(store) if row.id == first]
    assert row.deployed_bytes == 54_000


def test_runs_on_other_images_are_refused(draw: Draw, store: Store) -> None:
    first, second = seed_finished_run(store), seed_finished_run(store)
    keep_answers(store, first, 1)
    keep_answers(store, second, 1, "others")
    test = draw("compare", run=first)
    test.multiselect[0].set_value([first, second]).run()
    assert "measured on different images" in shown(test)


def test_one_run_is_none_to_compare(draw: Draw, store: Store) -> None:
    seed_finished_run(store)
    assert "Nothing to compare yet" in shown(draw("compare"))
