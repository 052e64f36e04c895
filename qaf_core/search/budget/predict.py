"""What is expected of a plan before any run: from harms to divergence, from divergence to the metric.

Before a model has any run, the original's own scores say how a divergence becomes wrong answers: normal noise
is added to them; of calibration images its divergence is taken, and of those images on which a run would be
evaluated the answers that change, weighed by the probability that the original gives them. (On calibration
images, which a network may know by heart, far fewer answers change. Real ResNet-20: in eleven runs the share
of changed answers and the drop then tell of the same divergence within a few per cent.) Each run then
corrects two things: the logarithm of the divergence (a straight line through the harms, by Bayes, with its
spread) and how much of the metric goes with a changed answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qaf_core.network.plan.types import Plan
from qaf_core.pipeline.intervals import Z95
from qaf_core.search.sensitivity.settings import TOGETHER, Sensitivity, harm_together, plan_harms
from qaf_core.text.said import Said, say

Floats = NDArray[np.float64]

SMALLEST = 1e-9
NOISES = np.geomspace(1e-3, 60.0, 48)  # of scores, in units of the temperature
DRAWS = 6
MOST_ROWS, MOST_NUMBERS = 2048, 800_000  # of scores
CENTRE = math.log(0.05)  # of log divergence: intercept and slope are nearly independent there
PRIOR_SHIFT, PRIOR_SHIFT_SPREAD = 0.0, 0.4
PRIOR_SLOPE, PRIOR_SLOPE_SPREAD = 1.0, 0.1
PRIOR_RESIDUAL, PRIOR_COUNT = 0.25, 4.0
PRIOR_LOSS, PRIOR_LOSS_SPREAD = 1.0, 0.15
COLLAPSE = 0.2  # of the metric
BLAMED = 3


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a divergence does to the answers, for growing divergence.

    Attributes:
        divergence: An image.
        changed: Share of answers that change.
        lost: Share of the metric that is lost.
    """

    divergence: tuple[float, ...]
    changed: tuple[float, ...]
    lost: tuple[float, ...]

    def loss(self, divergence: Floats | float) -> Floats:
        """Share of the metric lost at a divergence."""
        return np.interp(np.log(np.maximum(divergence, SMALLEST)), np.log(self.divergence), self.lost)

    def change(self, divergence: Floats | float) -> Floats:
        """Share of answers changed at a divergence."""
        return np.interp(np.log(np.maximum(divergence, SMALLEST)), np.log(self.divergence), self.changed)

    def divergence_at(self, changed: float) -> float:
        """The divergence at which so many answers change."""
        return float(np.exp(np.interp(changed, self.changed, np.log(self.divergence))))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {key: list(value) for key, value in self.__dict__.items()}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A network's own scores.

    Attributes:
        rows: ``(n, classes)``, of images or pixels.
        temperature: What they are divided by for the network to be as sure as it is right.
    """

    rows: Floats
    temperature: float = 1.0

    def some(self, generator: np.random.Generator) -> Floats:
        """As many as are needed."""
        most = min(MOST_ROWS, max(MOST_NUMBERS // self.rows.shape[1], 1))
        rows = self.rows
        if len(rows) > most:
            rows = rows[generator.choice(len(rows), most, replace=False)]
        return np.asarray(rows, np.float64)


def curve_from_scores(measured: Scores, evaluated: Scores, seed: int = 0) -> Curve:
    """The curve of a network that tells classes apart.

    Args:
        measured: Of the images that harms are measured on.
        evaluated: Of the images that a run would be evaluated on.
        seed: Of the noise.
    """
    generator = np.random.default_rng(seed)
    scores, shown = measured.some(generator) / measured.temperature, evaluated.some(generator)
    before, best, rows = _logarithms(scores), shown.argmax(axis=1), np.arange(len(shown))
    believed = np.exp(_logarithms(shown / evaluated.temperature))
    base = max(float(believed[rows, best].mean()), SMALLEST)
    points = []
    for noise in NOISES:
        divergences, changed, kept = [], [], []
        for _ in range(DRAWS):
            moved = scores + noise * generator.standard_normal(scores.shape)
            divergences.append((np.exp(before) * (before - _logarithms(moved))).sum(axis=1).mean())
            answers = shown + noise * measured.temperature * generator.standard_normal(shown.shape)
            changed.append((answers.argmax(axis=1) != best).mean())
            kept.append(believed[rows, answers.argmax(axis=1)].mean())
        points.append((np.mean(divergences), np.mean(changed), 1.0 - np.mean(kept) / base))
    return _monotone(np.array(points))


def curve_from_errors() -> Curve:
    """The curve of a network of whose outputs only relative squared errors are known: a plain guess."""
    errors = np.geomspace(1e-6, 10.0, 48)
    lost = 1.0 - np.exp(-errors / 0.3)
    return _monotone(np.stack([errors, 1.0 - np.exp(-errors / 0.15), lost], axis=1))


def _monotone(rows: Floats) -> Curve:
    rows = np.maximum.accumulate(np.maximum(rows, [SMALLEST, 0.0, 0.0]), axis=0)
    rows = rows + np.arange(len(rows))[:, None] * 1e-12  # strictly growing, so that it can be read backwards
    columns = (tuple(map(float, column)) for column in rows.T)
    divergence, changed, lost = columns
    return Curve(divergence=divergence, changed=changed, lost=lost)


def _logarithms(scores: Floats) -> Floats:
    """Logarithms of the probabilities that scores stand for."""
    scores = scores - scores.max(axis=1, keepdims=True)
    logs: Floats = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return logs


def temperature_for(scores: Floats, accuracy: float) -> float:
    """What scores are divided by, 1 to 20, for the mean certainty of the answers to be an accuracy."""
    scores, low, high = np.asarray(scores, np.float64), 1.0, 20.0
    for _ in range(20):
        middle = math.sqrt(low * high)
        above = float(np.exp(_logarithms(scores / middle)).max(axis=1).mean()) > accuracy
        low, high = (middle, high) if above else (low, middle)
    return low


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a run found.

    Attributes:
        harm: What the harms expected of its layers come to, floor included.
        divergence: That was measured, or None.
        changed: Share of answers that changed, or None.
        drop: Of the metric, as a share of the original's; None if not measured.
        images: Evaluation images of a run; 0 of a plan that was only tried.
    """

    harm: float
    divergence: float | None = None
    changed: float | None = None
    drop: float | None = None
    images: int = 0


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is expected of a plan.

    Attributes:
        metric: Name of the metric.
        value: Expected.
        ci95: Of what a run on as many images as the original's would measure.
        drop: Expected, original minus compressed.
        divergence: Expected, an image.
        worst: The layers that do most harm, with their shares of it, most first.
        unknown: Layers whose setting nothing is known of.
        learnt_from: What it was learnt from, in words.
        warning: A plain sentence where the network is expected to collapse, or None.
    """

    metric: str
    value: float
    ci95: tuple[float, float]
    drop: float
    divergence: float
    worst: tuple[tuple[str, float], ...]
    unknown: tuple[str, ...]
    learnt_from: tuple[Said, ...]
    warning: Said | None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        worst = [{"name": name, "share": share} for name, share in self.worst]
        sources = ", ".join(part.text() for part in self.learnt_from)
        return {
            **self.__dict__, "ci95": list(self.ci95), "worst": worst, "unknown": list(self.unknown),
            "learnt_from": sources, "warning": None if self.warning is None else self.warning.text(),
        }  # fmt: skip


class Predictor:
    """Predicts a model's metric under plans.

    Args:
        sensitivity: Of the model.
        curve: From divergence to answers.
        baseline: The original's evaluation: ``metric``, ``value`` and ``n``.
        observations: Of runs and of plans that were tried.
    """

    def __init__(
        self,
        sensitivity: Sensitivity,
        curve: Curve,
        baseline: Mapping[str, Any],
        observations: Sequence[Observation] = (),
    ) -> None:
        self.sensitivity, self.curve, self.baseline = sensitivity, curve, baseline
        self.observations = tuple(observations)
        self._mean, self._covariance, self._residual = self._learn_divergence()
        self._loss, self._loss_spread = self._learn_loss()

    def with_observation(self, observation: Observation) -> Predictor:
        """A predictor that has seen one more."""
        return Predictor(self.sensitivity, self.curve, self.baseline, (*self.observations, observation))

    def harm(self, plan: Plan) -> float:
        """What the harms of a plan's layers come to, with the floor."""
        return self._together(plan_harms(self.sensitivity, plan))

    def _together(self, harms: Mapping[str, float | None]) -> float:
        return harm_together(harm or 0.0 for harm in harms.values()) + self.sensitivity.floor

    def shares(self, plan: Plan) -> dict[str, float]:
        """What share of the network's divergence each layer of a plan is expected to cause."""
        harms = plan_harms(self.sensitivity, plan)
        total = max(self._together(harms), SMALLEST)
        return {name: (harm / total) ** TOGETHER for name, harm in harms.items() if harm is not None}

    def predict(self, plan: Plan) -> Prediction:
        """What is expected of a plan."""
        harms = plan_harms(self.sensitivity, plan)
        total = self._together(harms)
        divergence, drop, half = self._expect(total)
        value, base = float(self.baseline["value"]) - drop, float(self.baseline["value"])
        ranked = sorted(((harm or 0.0, name) for name, harm in harms.items()), reverse=True)
        shares = self.shares(plan)
        worst = tuple((name, shares[name]) for harm, name in ranked[:BLAMED] if harm > 0)
        warning = None
        if drop > COLLAPSE * base:
            names = ", ".join(f"{name} ({100 * share:.0f} %)" for name, share in worst)
            warning = say(
                "The network is expected to collapse under this plan. Most harm is done by {layers}.",
                layers=names,
            )
        return Prediction(
            metric=str(self.baseline["metric"]),
            value=value,
            ci95=(max(value - half[0], 0.0), min(value + half[1], 1.0)),
            drop=drop,
            divergence=divergence,
            worst=worst,
            unknown=tuple(name for name, harm in harms.items() if harm is None),
            learnt_from=self._learnt_from(),
            warning=warning,
        )

    def _learnt_from(self) -> tuple[Said, ...]:
        runs = sum(1 for observation in self.observations if observation.images)
        trials = len(self.observations) - runs
        sources = [say("{images} calibration images", images=self.sensitivity.images)]
        several = say("{count} runs of this model", count=runs) if runs else say("no run yet")
        sources.append(say("1 run of this model") if runs == 1 else several)
        if trials:
            several = say("{count} plans tried on those images", count=trials)
            sources.append(say("1 plan tried on those images") if trials == 1 else several)
        return tuple(sources)

    def drop_at(self, harm: float) -> float:
        """The drop of the metric expected where harms (floor included) come to so much."""
        return self._expect(harm)[1]

    def harm_at(self, drop: float) -> float:
        """The most that harms (floor included) may come to with no larger drop of the metric expected."""
        low, high = math.log(SMALLEST), math.log(max(self.curve.divergence) * 10)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.drop_at(math.exp(middle)) > drop else (middle, high)
        return math.exp(low)

    def loss_at(self, divergence: float) -> float:
        """The drop of the metric expected of a measured divergence."""
        return float(self._loss * self.curve.loss(divergence)) * float(self.baseline["value"])

    def _expect(self, harm: float) -> tuple[float, float, tuple[float, float]]:
        """Divergence, drop and its half-widths below and above (of the value)."""
        point = np.array([1.0, math.log(max(harm, SMALLEST)) - CENTRE])
        middle = float(point @ self._mean) + CENTRE
        spread = math.sqrt(float(point @ self._covariance @ point) + self._residual**2)
        base = float(self.baseline["value"])
        low, drop, high = (
            float(self._loss * self.curve.loss(math.exp(middle + sign * Z95 * spread)) * base)
            for sign in (-1, 0, 1)
        )
        changed = float(self.curve.change(math.exp(middle)))
        images = max(int(self.baseline.get("n", 0)), 1)
        sampling = Z95 * math.sqrt(max(changed, 1.0 / images) / images)
        of_loss = Z95 * self._loss_spread * drop / max(self._loss, SMALLEST)
        below = math.sqrt((max(high - drop, 0.0)) ** 2 + sampling**2 + of_loss**2)
        above = math.sqrt((max(drop - low, 0.0)) ** 2 + sampling**2 + of_loss**2)
        return math.exp(middle), drop, (below, above)

    def _learn_divergence(self) -> tuple[Floats, Floats, float]:
        """Intercept and slope of log divergence over log harm, their covariance, the spread around."""
        precision = np.diag([PRIOR_SHIFT_SPREAD**-2, PRIOR_SLOPE_SPREAD**-2])
        prior = np.array([PRIOR_SHIFT, PRIOR_SLOPE])
        rows, targets, spreads = [], [], []
        for observation in self.observations:
            divergence = self._log_divergence(observation)
            if divergence is not None:
                rows.append([1.0, math.log(max(observation.harm, SMALLEST)) - CENTRE])
                targets.append(divergence[0] - CENTRE)
                spreads.append(divergence[1])
        if not rows:
            return prior, np.linalg.inv(precision), PRIOR_RESIDUAL
        points, observed, noise = np.array(rows), np.array(targets), np.array(spreads)
        residual = PRIOR_RESIDUAL
        for _ in range(3):
            weights = 1.0 / (residual**2 + noise**2)
            covariance = np.linalg.inv(precision + (points.T * weights) @ points)
            mean = covariance @ (precision @ prior + (points.T * weights) @ observed)
            excess = np.maximum((observed - points @ mean) ** 2 - noise**2, 0.0)
            residual = math.sqrt(
                (PRIOR_COUNT * PRIOR_RESIDUAL**2 + excess.sum()) / (PRIOR_COUNT + len(observed))
            )
        return mean, covariance, residual

    def _log_divergence(self, observation: Observation) -> tuple[float, float] | None:
        """The logarithm of the divergence that was observed, and how far it may be off."""
        if observation.divergence is not None:
            return math.log(max(observation.divergence, SMALLEST)), 0.1
        if observation.changed is None or not observation.images > 0:
            return None
        changed = min(max(observation.changed, 0.5 / observation.images), 0.95)
        spread = 2.0 * math.sqrt((1 - changed) / (changed * observation.images)) + 0.1
        return math.log(self.curve.divergence_at(changed)), spread

    def _learn_loss(self) -> tuple[float, float]:
        """How much of the metric goes with what the curve says is lost, and the spread of that."""
        base = max(float(self.baseline["value"]), SMALLEST)
        precision, weighted = PRIOR_LOSS_SPREAD**-2, PRIOR_LOSS * PRIOR_LOSS_SPREAD**-2
        for observation in self.observations:
            if observation.drop is None or observation.changed is None or not observation.images:
                continue
            expected = float(self.curve.loss(self.curve.divergence_at(min(observation.changed, 0.95))))
            noise = (
                max(observation.changed, 1.0 / observation.images) / observation.images / base**2
                + (0.15 * expected) ** 2
            )
            precision += expected**2 / noise
            weighted += expected * observation.drop / noise
        return max(weighted / precision, 0.05), precision**-0.5
