"""A run's events folded into what the live page shows; pure, so that it can be tested without a browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qaf_core.network.plan.layer_info import KEEP
from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.results import Evaluation, LayerRow
from qaf_core.records import from_plain
from qaf_core.runs.store.record import StoredEvent

# How much of the whole is done when a stage begins; solving takes most of it.
STAGE_STARTS = {
    "loading": 0.0,
    "solving": 0.06,
    "calibrating": 0.75,
    "saving": 0.88,
    "baseline": 0.89,
    "evaluating": 0.94,
}
FINETUNE_STAGE_STARTS = {
    "loading": 0.0,
    "finetuning": 0.05,
    "saving": 0.86,
    "baseline": 0.87,
    "evaluating": 0.9,
}
WAITING, SOLVING, DONE = "waiting", "solving", "done"
# Below this share of its expected time a layer's rest is no longer guessed down.
LEAST_LAYER_REST = 0.1


@dataclass(kw_only=True)
class LayerProgress:
    """Where one layer stands; errors are relative (0.4 is 40 %)."""

    name: str
    state: str = WAITING
    started_at: float = 0.0
    seconds: float | None = None
    row: LayerRow


@dataclass(kw_only=True)
class RunProgress:
    """Everything seen of one run so far.

    Attributes:
        run_id: The run.
        weights: Expected work per layer, any unit; layers without one count as the mean.
        seq: Number of the last event taken in.
        stage: The latest stage, or None before the first.
        message: What that stage says about itself.
        stage_fraction: How much of that stage is done, as it says itself.
        furthest: The largest fraction of the whole shown so far.
        elapsed_seconds: Of the latest event, since the run began.
        layers: By name, in the plan's order.
        total: How many layers are to be solved.
        current: The layer begun last.
        curve_layer: The layer whose iterations are drawn, until it is done and another has told of its own:
            then the one begun last.
        curves: Iterations by layer, of those being solved and ``curve_layer``.
        evaluations: ``original`` and ``compressed`` as they arrive.
        starts: The run's stages, and how much of the whole is done when each begins.
        finetune_points: Where fine-tuning stood after each pass.
    """

    run_id: str
    weights: Mapping[str, float] = field(default_factory=dict)
    seq: int = 0
    stage: str | None = None
    message: str = ""
    stage_fraction: float = 0.0
    furthest: float = 0.0
    elapsed_seconds: float = 0.0
    layers: dict[str, LayerProgress] = field(default_factory=dict)
    total: int = 0
    current: str | None = None
    curve_layer: str | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    stage_starts: dict[str, float] = field(default_factory=dict)
    starts: Mapping[str, float] = field(default_factory=lambda: STAGE_STARTS)
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
        self.stage_fraction = float(data.get("fraction") or 0.0)
        self.stage_starts.setdefault(self.stage, elapsed)

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
        progress.state = DONE
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
            for stage in self.starts
        )

    def fraction(self, elapsed_seconds: float | None = None) -> float:
        """How much of the whole is done, 0 to 1; it never falls, in whatever order the stages come."""
        start = self.starts.get(self.stage or "", 0.0)
        end = min((later for later in self.starts.values() if later > start), default=1.0)
        within = self.stage_fraction
        if self.stage == "solving":
            done, current, rest = self._work(
                self.elapsed_seconds if elapsed_seconds is None else elapsed_seconds
            )
            whole = done + current + rest
            within = done / whole if whole > 0 else 0.0
        self.furthest = max(self.furthest, start + (end - start) * min(1.0, max(0.0, within)))
        return self.furthest

    def seconds_left(self, elapsed_seconds: float) -> float | None:
        """A guess at the time the layers still need, or None while there is nothing to guess from.

        The time per unit of work so far is carried over to what is left, shared among as many layers as are
        at work now.
        """
        if self.stage != "solving" or not self.total or not self.done:
            return None
        done, current, rest = self._work(elapsed_seconds)
        spent = sum(layer.seconds or 0.0 for layer in self.done)
        abreast = max(1, sum(layer.state == SOLVING for layer in self.layers.values()))
        return (current + rest) * spent / done / abreast if done > 0 else None

    def _work(self, moment: float) -> tuple[float, float, float]:
        """Work done, left in the layer at hand, and left in those not begun."""
        known = [w for w in self.weights.values() if w > 0]
        mean = sum(known) / len(known) if known else 1.0
        weight = {name: self.weights.get(name, mean) or mean for name in (*self.weights, *self.layers)}
        done = sum(weight[layer.name] for layer in self.done)
        current = 0.0
        for layer in self.layers.values():
            if layer.state == SOLVING:
                expected = weight[layer.name]
                spent = sum(finished.seconds or 0.0 for finished in self.done)
                used = (moment - layer.started_at) * done / spent if spent > 0 and done > 0 else 0.0
                current += max(expected - used, LEAST_LAYER_REST * expected)
        begun = set(self.layers)
        waiting = [name for name in self.weights if name not in begun]
        rest = sum(weight[name] for name in waiting)
        if not self.weights:
            rest = mean * max(0, self.total - len(self.layers))
        return done, current, rest


def estimated_work(plan: Plan) -> dict[str, float]:
    """A rough measure of each layer's solve time, from its rank alone; layers without one go quickly."""
    work = {}
    for row in plan.layers:
        if row.structure != KEEP:
            size = max(row.rank) if isinstance(row.rank, tuple) else row.rank
            # Every solve has its fixed part; the rest grows with the rank, and faster for large ones.
            work[row.name] = 20.0 + size + size**2 / 1000 if size else 1.0
    return work
