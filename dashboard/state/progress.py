"""A run's events folded into what the live page shows; pure, so that it can be tested without a browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qaf_core.pipeline.finetune.options import SETTING_AT_STOP_SECONDS
from qaf_core.pipeline.results import Evaluation, LayerRow
from qaf_core.records import from_plain
from qaf_core.runs.estimate import STAGES, History, Work
from qaf_core.runs.store.record import StoredEvent

WAITING, SOLVING, DONE = "waiting", "solving", "done"
# Below this share of its expected time the rest of a layer, or a stage, is no longer guessed down.
LEAST_REST = 0.1
DOUBT = 0.3  # of the whole: so much of what was expected keeps its weight against how it goes
STOP_MARGIN, STOP_SECONDS = 1.5, 5.0


@dataclass(kw_only=True)
class LayerProgress:
    """Where one layer stands: what its solver took, and what passed here; errors are relative (0.4: 40 %)."""

    name: str
    state: str = WAITING
    started_at: float = 0.0
    seconds: float | None = None
    took: float = 0.0
    row: LayerRow


@dataclass(kw_only=True)
class RunProgress:
    """Everything seen of one run so far.

    Attributes:
        run_id: The run.
        history: What earlier runs tell of this one.
        work: What it has to do; None while that is unknown.
        seq: Number of the last event taken in.
        stage: The latest stage, or None before the first.
        message: What that stage says about itself.
        stage_fraction, stage_at: How much of that stage is done, as it says itself, and when.
        furthest: The largest fraction of the whole shown so far.
        elapsed_seconds: Of the latest event, since the run began.
        layers: By name, in the plan's order.
        total: How many layers are to be solved.
        current: The layer begun last.
        curve_layer: The layer whose iterations are drawn, until it is done and another has told of its own:
            then the one begun last.
        curves: Iterations by layer, of those being solved and ``curve_layer``.
        evaluations: ``original`` and ``compressed`` as they arrive.
        stages: The run's stages, in the usual order.
        finetune_points: Where fine-tuning stood after each pass.
    """

    run_id: str
    history: History = field(default_factory=lambda: History(pace={}))
    work: Work | None = None
    seq: int = 0
    stage: str | None = None
    message: str = ""
    stage_fraction: float = 0.0
    stage_at: float = 0.0
    furthest: float = 0.0
    elapsed_seconds: float = 0.0
    layers: dict[str, LayerProgress] = field(default_factory=dict)
    total: int = 0
    current: str | None = None
    curve_layer: str | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    stage_starts: dict[str, float] = field(default_factory=dict)
    stages: tuple[str, ...] = STAGES
    finetune_points: list[dict[str, Any]] = field(default_factory=list)

    def absorb(self, events: Iterable[StoredEvent]) -> None:
        """Take in new events, oldest first."""
        for stored in events:
            self.seq = max(self.seq, stored.seq)
            self.elapsed_seconds = max(self.elapsed_seconds, stored.event.elapsed_seconds)
            handle = getattr(self, f"_on_{stored.event.kind}", None)
            if handle is not None:
                handle(stored.event.layer, stored.event.data, stored.event.elapsed_seconds)

    def _on_stage(self, layer: str | None, data: Mapping[str, Any], elapsed: float) -> None:
        self.stage = str(data.get("stage"))
        self.message = str(data.get("message") or "")
        self.stage_fraction, self.stage_at = float(data.get("fraction") or 0.0), elapsed
        self.stage_starts.setdefault(self.stage, elapsed)

    def _on_work(self, layer: str | None, data: Mapping[str, Any], elapsed: float) -> None:
        self.work = from_plain(Work, data)

    def _on_layer_started(self, layer: str | None, data: Mapping[str, Any], elapsed: float) -> None:
        if layer is None:
            return
        row = from_plain(LayerRow, {"name": layer, **data})
        self.layers[layer] = LayerProgress(name=layer, state=SOLVING, started_at=elapsed, row=row)
        self.total = int(data.get("total") or self.total)
        self.current = layer
        self.curves.pop(layer, None)  # a layer may be solved anew

    def _on_iteration(self, layer: str | None, data: Mapping[str, Any], elapsed: float) -> None:
        if layer is None:
            return
        self.curves.setdefault(layer, []).append(dict(data))
        self._choose_curve()

    def _choose_curve(self) -> None:
        """Stay with the layer that is drawn until it is done; then the newest that has something to draw."""
        at_work = {name for name, layer in self.layers.items() if layer.state == SOLVING}
        known = at_work & self.curves.keys()
        if self.curve_layer not in at_work and known:
            self.curve_layer = max(known, key=lambda name: self.layers[name].started_at)
        self.curves = {
            name: curve for name, curve in self.curves.items() if name in at_work or name == self.curve_layer
        }

    @property
    def iterations(self) -> list[dict[str, Any]]:
        """The rows of the curve that is drawn."""
        return self.curves.get(self.curve_layer or "", [])

    def _on_layer_finished(self, layer: str | None, data: Mapping[str, Any], elapsed: float) -> None:
        if layer is None:
            return
        begun = LayerProgress(name=layer, started_at=elapsed, row=LayerRow(name=layer))
        progress = self.layers.setdefault(layer, begun)
        progress.state, progress.took = DONE, elapsed - progress.started_at
        progress.seconds = float(data.get("seconds") or elapsed - progress.started_at)
        progress.row = from_plain(LayerRow, {**progress.row.to_dict(), **data})
        self._choose_curve()

    def _on_finetune(self, layer: str | None, data: Mapping[str, Any], elapsed: float) -> None:
        self.finetune_points.append(dict(data))

    def _on_evaluated(self, layer: str | None, data: Mapping[str, Any], elapsed: float) -> None:
        self.evaluations[str(data.get("which"))] = from_plain(Evaluation, data)

    @property
    def done(self) -> tuple[LayerProgress, ...]:
        """The layers solved so far."""
        return tuple(layer for layer in self.layers.values() if layer.state == DONE)

    def stage_states(self) -> tuple[tuple[str, str], ...]:
        """Each stage with ``done``, ``now`` or ``later``, in the usual order."""
        # A known original is not measured again.
        seen = {*self.stage_starts, *(("baseline",) if "original" in self.evaluations else ())}
        return tuple(
            (stage, "now" if stage == self.stage else "done" if stage in seen else "later")
            for stage in self.stages
        )

    def fraction(self, elapsed_seconds: float | None = None) -> float:
        """How much of the time has passed, 0 to 1; it never falls."""
        elapsed = self.elapsed_seconds if elapsed_seconds is None else elapsed_seconds
        left = self.seconds_left(elapsed)
        if left is not None:
            self.furthest = max(self.furthest, elapsed / max(elapsed + left, 1e-9))
        return min(1.0, self.furthest)

    def seconds_left(self, elapsed_seconds: float) -> float | None:
        """A guess at the time the whole run still needs, or None while there is nothing to guess from."""
        if self.work is None:
            return None
        expected = self.history.seconds(self.work)
        rest = self._rest_of_stage(expected, elapsed_seconds)
        return rest + self._drift(expected, elapsed_seconds) * sum(expected[name] for name in self._later())

    def seconds_to_stop(self, elapsed_seconds: float) -> float | None:
        """The time a stop takes at most, about: what is done by then is fitted and measured."""
        left = self.seconds_left(elapsed_seconds)
        if left is None or self.work is None:
            return None
        if self.stage in (None, "loading", "solving", "finetuning"):
            expected = self.history.seconds(self.work)
            share = len(self.done) / max(self.total, 1)
            ends = sum(expected[name] for name in ("saving", "baseline", "evaluating"))
            solved = share * expected.get("calibrating", 0.0)
            left = ends + solved if self.done or self.stage == "finetuning" else 0.0
            left += 2 * SETTING_AT_STOP_SECONDS if self._is_off_grid() else 0.0
            left *= max(1.0, self._drift(expected, elapsed_seconds))
        return STOP_MARGIN * left + STOP_SECONDS

    def _is_off_grid(self) -> bool:
        """Whether a fine-tuning's codes have still to be set on their grids."""
        points = self.finetune_points
        return self.stage == "finetuning" and bool(points) and not points[-1].get("on_grid", True)

    def _later(self) -> list[str]:
        """The stages that are still to begin."""
        names = list(self.stages)
        position = names.index(self.stage) + 1 if self.stage in names else 1
        known = {"baseline"} if "original" in self.evaluations else set()
        return [name for name in names[position:] if name not in {*self.stage_starts, *known}]

    def _rest_of_stage(self, expected: Mapping[str, float], elapsed: float) -> float:
        """Of the stage at hand: as expected at first, as it goes the further it is."""
        stage = self.stage if self.stage is not None and self.stage in expected else self.stages[0]
        total, began = expected[stage], self.stage_starts.get(stage, 0.0)
        share, moment = self.stage_fraction, max(self.stage_at, began)
        if stage == "solving":
            done, current, rest = self._work(elapsed)
            share, moment = (done / (done + current + rest) if done > 0 else 0.0), elapsed
        if stage == "loading" or share <= 0:
            share, moment = 0.0, began
        rest = (1 - share) * ((1 - share) * total + moment - began)
        return max(rest - (elapsed - moment), LEAST_REST * rest)

    def _drift(self, expected: Mapping[str, float], elapsed: float) -> float:
        """How much slower this run is than expected so far, taken for what is to come with some doubt."""
        begun = [name for name in self.stages if name in self.stage_starts and name != self.stage]
        if not begun or self.stage not in self.stage_starts:
            return 1.0
        doubt = DOUBT * sum(expected.values())
        return (self.stage_starts[self.stage] + doubt) / (sum(expected[name] for name in begun) + doubt)

    def _work(self, moment: float) -> tuple[float, float, float]:
        """Work done, left in the layer at hand, and left in those not begun."""
        expected = {} if self.work is None else self.work.layers
        known = [seconds for seconds in expected.values() if seconds > 0]
        mean = sum(known) / len(known) if known else 1.0
        weight = {name: expected.get(name, mean) or mean for name in (*expected, *self.layers)}
        done = sum(weight[layer.name] for layer in self.done)
        current = 0.0
        for layer in self.layers.values():
            if layer.state == SOLVING:
                spent = sum(finished.took for finished in self.done)  # a known layer's own time was earlier
                used = (moment - layer.started_at) * done / spent if spent > 0 and done > 0 else 0.0
                current += max(weight[layer.name] - used, LEAST_REST * weight[layer.name])
        begun = set(self.layers)
        rest = sum(weight[name] for name in expected if name not in begun)
        if not expected:
            rest = mean * max(0, self.total - len(self.layers))
        return done, current, rest
