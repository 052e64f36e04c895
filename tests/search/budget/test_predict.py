"""What is expected of a plan: monotone, honest about what it does not know, and taught by runs."""

from dataclasses import replace

import numpy as np
import pytest

from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.search.budget.predict import (
    Observation,
    Predictor,
    Scores,
    curve_from_errors,
    curve_from_scores,
)
from qaf_core.search.sensitivity.settings import Sensitivity, Setting

HARMS = {8: 1e-4, 4: 0.02, 3: 0.2, 2: 4.0}


def sensitivity() -> Sensitivity:
    rows = {
        name: tuple(
            Setting(
                row=LayerPlan(name=name, structure="dense", bits=bits), harm=harm, size_bytes=bits, bops=bits
            )
            for bits, harm in HARMS.items()
        )
        for name in ("a", "b")
    }
    return Sensitivity(
        activation_bits=8,
        settings=rows,
        floor=1e-3,
        unit="divergence",
        how="curvature",
        temperature=1.0,
        images=100,
        seconds=1.0,
    )


def plan(*bits: int) -> Plan:
    rows = [LayerPlan(name=name, structure="dense", bits=b) for name, b in zip("ab", bits, strict=True)]
    return Plan(model="m", layers=tuple(rows))


def scores() -> Scores:
    generator = np.random.default_rng(0)
    found = 3.0 * generator.standard_normal((400, 10))
    found[np.arange(400), generator.integers(0, 10, 400)] += 9.0
    return Scores(rows=found, temperature=1.4)


def predictor(observations: tuple[Observation, ...] = ()) -> Predictor:
    return Predictor(
        sensitivity(),
        curve_from_scores(scores(), scores()),
        {"metric": "top1", "value": 0.9, "n": 1000},
        observations,
    )


def test_more_harm_is_never_expected_to_be_better() -> None:
    found = [
        predictor().predict(plan(a, b)) for a, b in ((8, 8), (4, 8), (4, 4), (3, 4), (3, 3), (2, 3), (2, 2))
    ]
    values = [row.value for row in found]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(0.9, abs=0.005)
    assert values[-1] < 0.5
    assert all(row.ci95[0] < row.value < row.ci95[1] for row in found)


def test_a_collapse_is_said_with_the_layers_to_blame() -> None:
    found = predictor().predict(plan(8, 2))
    assert found.warning is not None
    assert "b (" in found.warning.text()
    assert found.worst[0][0] == "b"
    assert predictor().predict(plan(8, 8)).warning is None


def test_runs_move_the_prediction_and_narrow_its_interval() -> None:
    before = predictor().predict(plan(3, 4))
    harm = predictor().harm(plan(3, 4))
    seen = tuple(Observation(harm=harm * f, divergence=harm * f / 3) for f in (0.3, 0.6, 1.0, 2.0, 3.0, 5.0))
    after = predictor(seen).predict(plan(3, 4))
    assert after.divergence == pytest.approx(harm / 3, rel=0.15)
    assert after.value > before.value
    assert after.ci95[1] - after.ci95[0] < before.ci95[1] - before.ci95[0]
    assert "6 plans tried" in after.to_dict()["learnt_from"]


def test_changed_answers_and_drops_of_runs_teach_too() -> None:
    curve = curve_from_scores(scores(), scores())
    seen = tuple(
        Observation(
            harm=x, changed=float(curve.change(x / 2)), drop=2 * float(curve.loss(x / 2)), images=5000
        )
        for x in (0.02, 0.05, 0.1, 0.2, 0.4)
    )
    taught = predictor(seen)
    assert taught._expect(0.1)[0] == pytest.approx(0.05, rel=0.2)
    assert taught.loss_at(0.1) > 1.3 * predictor().loss_at(0.1)


def test_the_harm_of_a_drop_is_what_that_drop_is_expected_of() -> None:
    made = predictor()
    assert made._expect(made.harm_at(0.02))[1] == pytest.approx(0.02, rel=1e-3)


def test_the_curves_grow() -> None:
    for curve in (curve_from_scores(scores(), scores()), curve_from_errors()):
        assert all(np.diff(curve.divergence) > 0)
        assert all(np.diff(curve.changed) > 0)
        assert all(np.diff(curve.lost) > 0)
        assert curve.divergence_at(float(curve.change(0.1))) == pytest.approx(0.1, rel=1e-6)


def test_answers_change_on_the_images_of_evaluation() -> None:
    known = Scores(rows=4.0 * scores().rows, temperature=5.6)  # by heart: hardly an answer is open
    same, other = (curve_from_scores(known, Scores(rows=rows)) for rows in (known.rows, scores().rows))
    assert same.divergence == other.divergence
    assert float(other.change(0.1)) > 2 * float(same.change(0.1))


def test_many_small_harms_come_to_less_than_their_sum() -> None:
    one, two = (predictor().harm(made) - 1e-3 for made in (plan(2, 8), plan(2, 2)))
    assert one == pytest.approx(4.0, rel=1e-3)
    assert 4.0 < two < 8.0


def test_ranks_beyond_those_tried_harm_more_or_less_as_ranks_do() -> None:
    tried = (8, 0.04), (16, 0.01)
    rows = tuple(
        Setting(row=LayerPlan(name="a", structure="cp", rank=r, bits=4), harm=h, size_bytes=r, bops=r)
        for r, h in tried
    )
    known = replace(sensitivity(), settings={"a": rows})
    found = [known.harm_of(LayerPlan(name="a", structure="cp", rank=r, bits=4)) for r in (2, 8, 11, 16, 32)]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert found[0] == pytest.approx(0.64, rel=0.1)
    assert found[4] == pytest.approx(0.0025, rel=0.1)


def test_a_setting_nobody_tried_lies_between_its_neighbours() -> None:
    known = sensitivity()
    between = known.harm_of(LayerPlan(name="a", structure="dense", bits=6))
    assert between is not None
    assert HARMS[8] < between < HARMS[4]
    assert known.harm_of(LayerPlan(name="a", structure="cp", rank=3, bits=6)) is None
    assert known.harm_of(LayerPlan(name="a", structure="keep")) == 0.0
