"""What runs are judged by on the Trade-offs page: a target, and a run they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from dashboard.state import address
from dashboard.text import _
from dashboard.widgets import run_choice, ui
from qaf_core.errors import QafError
from qaf_core.review.tradeoffs.axes import EXAMPLE, Condition, passes, read_target
from qaf_core.review.tradeoffs.paired import Difference, against_original, against_run
from qaf_core.runs.evidence.answers import read_answers
from qaf_core.runs.listing import RunRow

TARGET_KEY = "tradeoffs-target"
ORIGINAL = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What runs are judged by.

    Attributes:
        target: Conditions; none where there is no target.
        passes: By run, whether it keeps to the target; empty without one.
        reference: The run they are compared with; None for the original.
        differences: By run, to the reference.
    """

    target: tuple[Condition, ...]
    passes: dict[str, bool | None]
    reference: RunRow | None
    differences: dict[str, Difference]


def judge(runs: Sequence[RunRow]) -> Judged:
    """Widgets for a target and for what runs are compared with, and what comes of both."""
    left, right = st.columns(2, vertical_alignment="bottom")
    text = left.text_input(
        _("Target"), key=address.text("target", key=TARGET_KEY), placeholder=EXAMPLE,
        icon=":material/target:",
        help=_(
            "The unit says what is limited: %, points of loss, kB or MB of the packed file, ms on this "
            "machine, mJ, GBOPs; “2 MB deployed” and “30 MB memory” limit these. A box drawn on a chart "
            "fills this in."
        ),
    )  # fmt: skip
    by_id = {row.id: row for row in runs}
    chosen = right.selectbox(
        _("Compared with"), [ORIGINAL, *by_id],
        key=address.choice("reference", [ORIGINAL, *by_id], ORIGINAL),
        format_func=({ORIGINAL: _("The original")} | run_choice.labels(runs, _title)).__getitem__,
        help=_(
            "Every run's difference to it, image by image, with its 95 % interval: two intervals of accuracy "
            "that overlap can hide a real difference."
        ),
    )  # fmt: skip
    target: tuple[Condition, ...] = ()
    try:
        target = read_target(text)
    except QafError as problem:
        ui.say_error(problem)
    reference = by_id.get(chosen)
    if reference is None:
        differences = against_original(runs)
    else:
        answers = read_answers(ui.open_store(), reference.model, list(by_id))
        differences = against_run(runs, reference, answers)
    passing = {row.id: passes(row, target) for row in runs} if target else {}
    return Judged(target=target, passes=passing, reference=reference, differences=differences)


def _title(run: RunRow) -> str:
    return run.title


def show_target(runs: Sequence[RunRow], judged: Judged) -> None:
    """How many runs keep to the target, and how many may."""
    if not judged.target:
        return
    passing = [row.id for row in runs if judged.passes[row.id]]
    open_ = sum(judged.passes[row.id] is None for row in runs)
    text = _("{passing} of {count} runs keep to: {target}.").format(
        passing=len(passing), count=len(runs), target=" · ".join(each.text(_) for each in judged.target)
    )
    if open_:
        text += " " + _("{count} more may: not all of it is measured.").format(count=open_)
    show = st.success if passing else st.warning
    show(ui.plain(text), icon=":material/target:")
