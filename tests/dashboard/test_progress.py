"""Events folded into progress."""

from __future__ import annotations

from typing import Any

import pytest

from dashboard.state.progress import RunProgress
from qaf_core.pipeline.events import RunEvent
from qaf_core.pipeline.finetune.options import SETTING_AT_STOP_SECONDS
from qaf_core.runs.estimate import FINETUNE_STAGES, History, Work
from qaf_core.runs.store.record import StoredEvent
from qaf_core.runs.store.store import Store


def events(*rows: tuple[str, str | None, dict[str, Any], float]) -> list[StoredEvent]:
    return [
        StoredEvent(seq=i, event=RunEvent(kind=kind, layer=layer, data=data, elapsed_seconds=moment))
        for i, (kind, layer, data, moment) in enumerate(rows, 1)
    ]


ORIGINAL = {"metric": "top1", "value": 0.9, "n": 100, "ci95": [0.8, 0.95]}
STARTED = [
    ("stage", None, {"stage": "baseline", "message": "Measuring"}, 0.5),
    ("evaluated", None, {"which": "original", **ORIGINAL}, 1.0),
    ("stage", None, {"stage": "solving"}, 1.0),
    ("layer_started", "a", {"index": 0, "total": 3, "rank": 10}, 1.0),
    ("iteration", "a", {"iteration": 1, "quantized_error": 0.5}, 2.0),
    ("layer_finished", "a", {"relative_error": 0.3, "seconds": 4.0, "status": "converged"}, 5.0),
    ("layer_started", "b", {"index": 1, "total": 3, "rank": 10}, 5.0),
    ("iteration", "b", {"iteration": 1, "quantized_error": 0.7}, 6.0),
]


def test_fold() -> None:
    progress = RunProgress(run_id="x")
    progress.absorb(events(*STARTED))
    assert progress.seq == len(STARTED)
    assert progress.total == 3
    assert progress.current == "b"
    assert [row["quantized_error"] for row in progress.iterations] == [0.7]
    assert [layer.name for layer in progress.done] == ["a"]
    assert progress.layers["a"].row.rank == 10
    assert progress.evaluations["original"].value == 0.9
    assert dict(progress.stage_states())["baseline"] == "done"
    assert dict(progress.stage_states())["solving"] == "now"


def test_a_layer_without_iterations_leaves_the_curve_as_it_was() -> None:
    progress = RunProgress(run_id="x")
    progress.absorb(events(*STARTED, ("layer_started", "c", {"index": 2, "total": 3}, 7.0)))
    assert progress.current == "c"
    assert progress.curve_layer == "b"
    assert len(progress.iterations) == 1


def test_the_curve_stays_with_its_layer_until_that_is_done() -> None:
    def point(layer: str, iteration: int) -> tuple[str, str, dict[str, Any], float]:
        return "iteration", layer, {"iteration": iteration}, 8.0

    progress = RunProgress(run_id="x")
    told = [
        *STARTED,
        ("layer_started", "z", {"index": 9, "total": 3}, 7.0), point("z", 1), point("b", 2), point("z", 2),
    ]  # fmt: skip
    progress.absorb(events(*told))
    assert [layer.state for layer in progress.layers.values()] == ["done", "solving", "solving"]
    assert (progress.curve_layer, [row["iteration"] for row in progress.iterations]) == ("b", [1, 2])
    finished = ("layer_finished", "b", {"seconds": 3.0}, 9.0)
    progress.absorb(events(*told, finished)[-1:])
    # On to the other one, with all its points from the beginning.
    assert (progress.curve_layer, [row["iteration"] for row in progress.iterations]) == ("z", [1, 2])
    assert set(progress.curves) == {"z"}
    progress.absorb(events(*told, finished, ("layer_finished", "z", {"seconds": 2.0}, 9.5))[-1:])
    assert progress.curve_layer == "z"
    assert len(progress.iterations) == 2


def test_of_several_the_newest_is_drawn_next_and_a_layer_solved_anew_begins_anew() -> None:
    progress = RunProgress(run_id="x")
    rows: list[tuple[str, str | None, dict[str, Any], float]] = []
    for moment, name in enumerate("abc", 1):
        rows += [("layer_started", name, {"total": 3}, moment), ("iteration", name, {"iteration": 1}, moment)]
    progress.absorb(events(*rows))
    assert progress.curve_layer == "a"
    progress.absorb(events(*rows, ("layer_finished", "a", {"seconds": 1.0}, 4.0))[-1:])
    assert progress.curve_layer == "c"
    again = ("layer_started", "b", {"total": 3}, 5.0), ("iteration", "b", {"iteration": 7}, 5.0)
    progress.absorb(events(*again))
    assert [row["iteration"] for row in progress.curves["b"]] == [7]


WORK = Work(
    stages={
        "loading": 1.0,
        "solving": 8.0,
        "calibrating": 4.0,
        "saving": 1.0,
        "baseline": 2.0,
        "evaluating": 3.0,
    },
    layers={"a": 2.0, "b": 2.0, "c": 4.0},
    images=100,
)


def test_time_left_holds_all_steps_at_the_pace_of_earlier_runs() -> None:
    progress = RunProgress(run_id="x", history=History(pace={"evaluating": 3.0}), work=WORK)
    assert progress.seconds_left(0.0) == pytest.approx(25.0)  # 19 and twice 3 more
    assert progress.seconds_left(0.5) == pytest.approx(24.5)
    assert RunProgress(run_id="x").seconds_left(0.0) is None


def test_time_left_follows_the_layers_as_they_go() -> None:
    progress = RunProgress(run_id="x", work=WORK)
    progress.absorb(events(*STARTED[2:]))
    later = 4.0 + 1.0 + 2.0 + 3.0
    # a, a quarter of the work, took 4 s instead of 2; of b a quarter has passed: 5 of 8 units are left.
    share = (2.0 + 0.5) / 8.0
    rest = (1 - share) * ((1 - share) * 8.0 + 5.0)
    assert progress.seconds_left(6.0) == pytest.approx(rest + later, rel=0.05)
    known = [*STARTED[2:], ("evaluated", None, {"which": "original", **ORIGINAL}, 5.0)]
    progress.absorb(events(*known)[-1:])
    assert progress.seconds_left(6.0) == pytest.approx(rest + later - 2.0, rel=0.05), "no baseline to measure"


def test_a_stage_that_tells_of_its_share_is_followed_between_two_words() -> None:
    progress = RunProgress(run_id="x", work=WORK)
    rows = [("stage", None, {"stage": "evaluating"}, 16.0),
            ("stage", None, {"stage": "evaluating", "fraction": 0.5}, 19.0)]  # fmt: skip
    progress.absorb(events(*rows))
    now = progress.seconds_left(19.0)
    assert now == pytest.approx(0.5 * (1.5 + 3.0))
    assert progress.seconds_left(20.0) == pytest.approx(now - 1.0)
    assert progress.seconds_left(60.0) == pytest.approx(now / 10)


def test_a_stop_is_told_with_what_is_left_to_fit_and_measure() -> None:
    progress = RunProgress(run_id="x", work=WORK)
    progress.absorb(events(*STARTED[2:4]))
    assert progress.seconds_to_stop(2.0) == pytest.approx(5.0), "nothing is kept, nothing measured"
    progress.absorb(events(*STARTED)[5:])
    assert progress.seconds_to_stop(6.0) == pytest.approx(1.5 * (4.0 / 3 + 6.0) + 5.0)


def test_a_stop_while_codes_are_off_their_grids_is_told_with_setting_them() -> None:
    expected = {"loading": 1.0, "finetuning": 60.0, "saving": 0.5, "baseline": 0.5, "evaluating": 1.0}
    progress = RunProgress(
        run_id="x", stages=FINETUNE_STAGES, work=Work(stages=expected, layers={}, images=1)
    )
    progress.absorb(events(("stage", None, {"stage": "finetuning", "fraction": 0.0}, 1.0)))
    before = progress.seconds_to_stop(2.0)
    assert before is not None
    for epoch, on_grid in ((0, True), (1, False)):
        progress.absorb(events(("finetune", None, {"epoch": epoch, "on_grid": on_grid}, 2.0)))
        added = 0.0 if on_grid else 1.5 * 2 * SETTING_AT_STOP_SECONDS
        assert progress.seconds_to_stop(2.0) == pytest.approx(before + added)


def test_what_a_run_tells_of_its_work_is_taken() -> None:
    progress = RunProgress(run_id="x", history=History(pace={"saving": 2.0}))
    progress.absorb(events(("work", None, WORK.to_dict(), 0.0)))
    assert progress.work == WORK
    assert progress.seconds_left(0.0) == pytest.approx(20.0)


def test_fraction_never_goes_back(seeded_store: Store) -> None:
    for run in seeded_store.list_runs():
        progress, last = RunProgress(run_id=run.id, work=WORK), 0.0
        for stored in seeded_store.events_since(run.id):
            progress.absorb([stored])
            fraction = progress.fraction()
            assert last - 1e-9 <= fraction <= 1
            last = fraction


def test_unknown_events_are_passed_over() -> None:
    progress = RunProgress(run_id="x")
    progress.absorb(events(("novelty", None, {}, 3.0)))
    assert progress.elapsed_seconds == 3.0
    assert progress.fraction() == 0.0
