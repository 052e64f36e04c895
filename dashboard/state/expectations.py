"""What is expected of plans before any run, as pages ask for it at every edit: read once, told at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from dashboard.state.overrides import Overrides
from qaf_core.network.plan.cost import layer_cost
from qaf_core.network.plan.types import LayerPlan, Plan
from qaf_core.review.expected import ExpectedPoint
from qaf_core.runs.jobs.plans.knowledge import Knowledge, explored_by, read_knowledge, teaches
from qaf_core.runs.store.kinds import digest_request
from qaf_core.runs.store.request import SensitivityRequest
from qaf_core.runs.store.store import Store
from qaf_core.search.budget.front import FrontPoint, expected_front, harm_at_size
from qaf_core.search.budget.predict import Predictor

Known = tuple[Knowledge, Predictor]
MOST_RUNS = 200  # that are set against what was expected
FRESH_SECONDS = 20.0  # after which files and runs are looked at again


def request_for(
    model: str, overrides: Overrides, data: str, calibration: str | None, activation_bits: int
) -> SensitivityRequest:
    """What is asked of a model that is to be explored."""
    return SensitivityRequest(
        **overrides.of(model), data=data, calibration=calibration, activation_bits=activation_bits
    )


def known(store: Store, request: SensitivityRequest) -> Known | None:
    """What is known of a model and what it predicts, runs in the store included; None where nothing is."""
    digest = _digest(request.to_json(), store.workspace)
    knowledge = _knowledge(digest, store.workspace)
    if knowledge is None:
        _knowledge.clear(digest, store.workspace)
        return None
    return knowledge, _predictor(digest, store, knowledge, request)


def smallest_within(exploration: Known, drop: float) -> tuple[LayerPlan, ...] | None:
    """The rows of the smallest plan on the expected front that is expected to lose no more; None for none."""
    knowledge, predictor = exploration
    floor = knowledge.sensitivity.floor
    front = _front(knowledge, dense=False)
    return next((point.rows for point in front if predictor.drop_at(point.harm + floor) <= drop), None)


@st.cache_resource(show_spinner=False, ttl=FRESH_SECONDS, max_entries=16)
def divergence_shares(_store: Store, run_id: str) -> dict[str, float]:
    """What share of the divergence each layer of a run is expected to cause; empty where nothing is known."""
    run = _store.run(run_id)
    exploration = known(_store, explored_by(run))
    return {} if exploration is None else exploration[1].shares(run.plan_done)


def dense_harm_at(exploration: Known, plan: Plan) -> float | None:
    """What plain rounding of as many bytes as a plan is expected to harm, floor included; None where it does
    not get so small.
    """
    knowledge = exploration[0]
    infos = {info.name: info for info in knowledge.inventory}
    size = sum(layer_cost(infos[row.name], row, plan.activation_bits).size_bytes for row in plan.layers)
    harm = harm_at_size(_front(knowledge, dense=True), size)
    return None if harm is None else harm + knowledge.sensitivity.floor


@st.cache_resource(show_spinner=False, max_entries=16, hash_funcs={Knowledge: id})
def _front(knowledge: Knowledge, *, dense: bool) -> list[FrontPoint]:
    rows = {
        name: [row for row in settings if row.row.rank is None] if dense else list(settings)
        for name, settings in knowledge.sensitivity.settings.items()
    }
    return expected_front(rows)


@st.cache_resource(show_spinner=False, ttl=FRESH_SECONDS, max_entries=16)
def of_runs(_store: Store, run_ids: Sequence[str]) -> list[ExpectedPoint]:
    """Runs with what was expected of their plans by exploring the model alone, none of its runs known."""
    points, explorations = [], dict[str, Known | None]()
    for run in _store.runs(run_ids):
        request = explored_by(run)
        key = request.to_json()
        if key not in explorations:
            explorations[key] = known(_store, request)
        exploration = explorations[key]
        if exploration is not None and run.compressed is not None and teaches(run, request):
            knowledge = exploration[0]
            cold = Predictor(knowledge.sensitivity, knowledge.curve, knowledge.baseline)
            expected = cold.predict(run.plan)
            points.append(
                ExpectedPoint(
                    title=run.request.name or run.id,
                    expected=expected.value,
                    low=expected.ci95[0],
                    high=expected.ci95[1],
                    measured=run.compressed.value,
                )
            )
    return points


@st.cache_data(show_spinner=False, ttl=FRESH_SECONDS, max_entries=64)
def _digest(request: str, workspace: Path) -> str:
    """What tells apart what a request means at different times: of a folder, all files are looked at."""
    return digest_request(SensitivityRequest.from_json(request), workspace)


@st.cache_resource(show_spinner=False, max_entries=16)
def _knowledge(digest: str, workspace: Path) -> Knowledge | None:
    return read_knowledge(digest, workspace)


@st.cache_resource(show_spinner=False, ttl=FRESH_SECONDS, max_entries=16)
def _predictor(digest: str, _store: Store, _knowledge: Knowledge, _request: SensitivityRequest) -> Predictor:
    return _knowledge.predictor(_store, _request)
