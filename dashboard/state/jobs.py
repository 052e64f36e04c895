"""Long work as pages see it: jobs of the workspace's queue, asked for, found again and waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard.state import address
from qaf_core.errors import QafError
from qaf_core.pipeline.events import RunStatus
from qaf_core.runs.store.record import JobRecord
from qaf_core.runs.store.request import JobRequest
from qaf_core.runs.store.store import Store

POLL_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 120.0
MOST_JOBS = 32  # that one place of a page follows


class NoAnswerYet(QafError):
    """A job that is still to be done, and may be."""


def wait_for(workspace: Path, request: JobRequest, *, anew: bool = False) -> Mapping[str, Any]:
    """The result of a short job, waited for; what was found before is not sought again, unless ``anew``.

    Raises:
        NoAnswerYet: If it takes too long, or no process comes up that would do it.
        QafError: In its own words when it is refused.
    """
    with Store(workspace) as store:
        job_id, deadline = store.ask(request, anew=anew), time.monotonic() + LONGEST_WAIT_SECONDS
        while (job := store.job(job_id)) is None or not job.is_final:
            if job is not None and (problem := store.problem_of(job.kind)):
                raise NoAnswerYet(problem)
            if time.monotonic() > deadline:
                raise NoAnswerYet("it took too long", remedy="try again when less is at work")
            time.sleep(POLL_SECONDS)
    if job.status != RunStatus.COMPLETED:
        raise job.failure or QafError("stopped")
    return job.result


def remember(place: str, *job_ids: str) -> None:
    """Keep which jobs a place of a page shows: in the session, and in the address for a reload."""
    st.session_state[f"job-{place}"] = job_ids
    address.set_values(place, *job_ids)


def recall_all(store: Store, place: str, kind: str) -> list[JobRecord]:
    """The jobs of a kind that a place of a page shows."""
    ids = address.values_of(place) or st.session_state.get(f"job-{place}", ())
    found = [job for job_id in ids[:MOST_JOBS] if (job := store.job(job_id)) is not None]
    jobs = [job for job in found if job.kind == kind]
    if jobs:
        remember(place, *(job.id for job in jobs))
    return jobs


def recall(store: Store, place: str, kind: str) -> JobRecord | None:
    """The job of a kind that a place of a page shows; None if there is none."""
    return next(iter(recall_all(store, place, kind)), None)
