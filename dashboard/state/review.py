"""Decisions as the Decide page reads them: gathered once, and again when something beside a run changes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.widgets import ui
from qaf_core.review.decision.criteria import CriteriaSet, read_criteria
from qaf_core.review.decision.evidence import Evidence, collect_evidence
from qaf_core.review.report.review import (
    Review,
    changed_places,
    check_comparable,
    gather_review,
    read_pictures,
)
from qaf_core.runs.store.record import RunRecord
from qaf_core.runs.store.store import Store

PICTURES = 18
_KEY = "review"


def load_review(run_ids: Sequence[str]) -> Review:
    """The review of some runs with pictures of images whose answer changed.

    Raises:
        QafError: If they cannot stand side by side, or what is kept with them is damaged.
    """
    store = ui.open_store()
    stamp = tuple((run_id, *_stamps(store.run_folder(run_id))) for run_id in run_ids)
    kept: tuple[Any, Review] | None = st.session_state.get(_KEY)
    if kept is not None and kept[0] == stamp:
        return kept[1]
    review = gather_review(store, run_ids)
    places = changed_places(review.changes, review.task_changes)[:PICTURES]
    review = replace(review, pictures=_pictures(str(store.workspace), review.chosen.run_id, places, review))
    st.session_state[_KEY] = (stamp, review)
    return review


@st.cache_data(max_entries=8, show_spinner=False)
def _pictures(_workspace: str, run_id: str, places: tuple[int, ...], _review: Review) -> dict[int, str]:
    del run_id  # it tells one answer from another
    return dict(read_pictures(ui.open_store(), _review.chosen, places))


def load_evidence(run_ids: Sequence[str]) -> tuple[Evidence, ...]:
    """What is known of some runs that can stand side by side.

    Raises:
        QafError: If they cannot, or what is kept with one is damaged.
    """
    store = ui.open_store()
    stamps = [(run_id, tuple(_stamps(store.run_folder(run_id)))) for run_id in run_ids]
    runs = tuple(_evidence(run_id, stamp, store) for run_id, stamp in stamps)
    check_comparable(runs)
    return runs


@st.cache_resource(max_entries=16, show_spinner=False)
def _evidence(run_id: str, stamp: tuple[Any, ...], _store: Store) -> Evidence:
    del stamp  # it tells one state of the files from another
    return collect_evidence(_store, run_id)


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    stamps = []
    for path in (*folder.glob("*"), *folder.glob("onnx/*")):
        with contextlib.suppress(FileNotFoundError):  # a job renames and deletes what it has written
            status = path.stat()
            stamps.append((path.name, status.st_size, status.st_mtime_ns))
    return sorted(stamps)


def kept_criteria(run: RunRecord) -> tuple[CriteriaSet, ...]:
    """The criteria kept with a run, finished or not."""
    return read_criteria(ui.open_store().run_folder(run.id))


def class_names(review: Review) -> tuple[str, ...]:
    """The classes that criteria may name."""
    if review.chosen.predictions is not None:
        return review.chosen.predictions.classes
    return tuple(review.chosen.before.per_class)
