"""Criteria are checked at the field and kept with a run, every set of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.review.decision.criteria import (
    FILE_NAME,
    Criterion,
    describe_changes,
    keep_criteria,
    read_criteria,
    read_criterion,
)


@pytest.mark.parametrize("limit", [-0.1, 1e300, float("nan"), float("inf"), "0.1", None, True, 1.5])
def test_a_nonsense_limit_is_refused_at_the_field(limit: Any) -> None:
    with pytest.raises(QafError, match="limit of largest_drop"):
        read_criterion({"kind": "largest_drop", "limit": limit})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no mapping"),
        ({"kind": "speed", "limit": 1}, "unknown kind"),
        ({"kind": "latency"}, "no limit"),
        ({"kind": "latency", "limit": 1, "color": "red"}, "unknown field.*color"),
        ({"kind": "missed_defects", "limit": 0.1}, "needs the class that means ok"),
        ({"kind": "latency", "limit": 1, "owner": "x" * 400}, "owner of latency"),
        ({"kind": "latency", "limit": 1, "device": None}, "device of latency"),
    ],
)
def test_other_faults_name_their_field(values: Any, message: str) -> None:
    with pytest.raises(QafError, match=message):
        read_criterion(values)


def test_every_set_is_kept_and_the_change_shown(tmp_path: Path) -> None:
    drop = Criterion(kind="largest_drop", limit=0.01, source="spec 4.2", owner="Sato")
    assert read_criteria(tmp_path) == ()
    keep_criteria(tmp_path, [drop, Criterion(kind="latency", limit=5)], by="Sato")
    keep_criteria(tmp_path, [drop, Criterion(kind="latency", limit=5)])  # the same again: nothing new
    keep_criteria(
        tmp_path, [Criterion(kind="largest_drop", limit=0.02), Criterion(kind="file_size", limit=8e4)]
    )
    first, last = read_criteria(tmp_path)
    assert first.criteria[0] == drop
    assert (first.by, last.criteria[1].limit) == ("Sato", 8e4)
    assert [change.text() for change in describe_changes(first, last)] == [
        "Accuracy lost: limit 1.00 points became 2.00 points",
        "Accuracy lost: source spec 4.2 became –",
        "Accuracy lost: owner Sato became –",
        "added: Size of the file to deploy (packed file), limit 80 kB",
        "dropped: Time of one inference on this machine (Compressed, integers, fastest), limit 5 ms",
    ]


def test_two_criteria_on_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QafError, match="limit the same"):
        keep_criteria(tmp_path, [Criterion(kind="latency", limit=5), Criterion(kind="latency", limit=6)])


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 9, "sets": []}', '{"format": 1, "sets": [{}]}'])
def test_a_damaged_file_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(WorkspaceError, match=r"criteria of a run cannot be read"):
        read_criteria(tmp_path)


def test_hostile_names_stay_data(tmp_path: Path) -> None:
    hostile = Criterion(kind="accuracy_floor", limit=0.9, class_name="<script>{x}{0}")
    keep_criteria(tmp_path, [hostile])
    assert read_criteria(tmp_path)[0].criteria == (hostile,)
    assert hostile.title().text() == "Accuracy of the class <script>{x}{0}"
    assert json.loads((tmp_path / FILE_NAME).read_text())["format"] == 1
