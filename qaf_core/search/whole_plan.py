"""From what fits each layer to a plan for the network: its time and its answers as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qaf_core.errors import ModelError, QafError
from qaf_core.files import ContentCache, digest_of, read_json
from qaf_core.pipeline.events import Progress
from qaf_core.records import from_plain, to_plain
from qaf_core.search.refine import Form, Judge, back_off
from qaf_core.search.selection import (
    DEFAULT_ANSWER_BOUND,
    DENSE,
    AnswerShares,
    LayerChoice,
    Selection,
    Step,
    Verdict,
    WholeTimes,
    with_steps,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qaf_core.search.network_timing import TimedNetwork

NO_GAIN = "The whole network is no faster than dense INT8, as far as the rounds can tell."
NOT_COUNTED = "The outputs are not those of the model's task: changed answers are not counted or bounded."
ALL_DENSE = (
    "No faster plan that was tried changes few enough answers: the plan is dense. Allow more to change, or "
    "take more bits."
)
# Raised whenever plans are chosen in another way: what was found before is then not used.
WHOLE_VERSION = 4


class AnswerJudge(Judge, Protocol):
    """What plans, and the dense INT8 network, do to a network's answers."""

    @property
    def images(self) -> int:
        """How many images are compared."""

    def can_count(self) -> bool:
        """Whether the outputs are answers of the model's task, so that it can be said what changed."""

    def changed_by(self, run: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> float:
        """The share of answers that another way to compute the network changes."""


def choose_as_a_whole(
    selection: Selection,
    open_network: Callable[[], TimedNetwork] | None,
    answers: AnswerJudge,
    folder: Path,
    machine: Sequence[Any],
    *,
    answer_bound: float = DEFAULT_ANSWER_BOUND,
    progress: Progress | None = None,
) -> Selection:
    """The selection with those of the fitting structures that are fastest inside the whole network.

    Where too many answers change, speed is given up again (:func:`qaf_core.search.refine.back_off`). A
    network that cannot be timed as a whole, such as one with a list for an output, goes by the times of its
    layers alone, with a note that says so.

    Args:
        selection: Made from layers timed alone.
        open_network: Makes the network ready to be timed; asked for only if something is to be timed. None
            where there is no integer network to time.
        answers: Counts changed answers.
        folder: Keeps what was found, so that the same candidates are not timed, and judged, twice.
        machine: What else times and answers depend on, ready for JSON.
        answer_bound: Largest share of answers that may change beyond those that dense INT8 changes.
        progress: Told how far it is (stages ``latency`` and ``selecting``), and asked whether to stop.

    Raises:
        RunCancelled: If stopped.
    """
    fitting = {choice.name: choice.fitting() for choice in selection.choices}
    if not any(fitting.values()):
        return selection
    rows = {name: to_plain(found) for name, found in fitting.items()}
    asked = [WHOLE_VERSION, selection.plan.to_dict(), rows, answer_bound, open_network is None, *machine]
    cache, key = ContentCache(folder), f"whole-{digest_of(asked)}"
    kept = cache.read(key, lambda path: _told(selection, from_plain(_Found, read_json(path))))
    if kept is not None:
        return kept
    progress = progress or Progress()
    progress.check()
    network, steps, kinds, note = _in_place(selection, open_network, progress)
    found = _Found(timed=tuple(sorted(steps)), steps=steps, kept=steps, note=note)
    for choice in selection.choices:  # what was not timed in place goes by its time alone
        if choice.name not in steps and fitting[choice.name]:
            steps[choice.name] = (choice.structure, choice.rank)
            kinds.append(_timed_alone(choice))
    if answers.can_count():
        by_dense = None if network is None else _changed_by_dense(network, answers)
        limit = answer_bound + (by_dense or 0.0)
        found.kept, changed = back_off(steps, kinds, answers, limit, progress=progress)
        found.answers = AnswerShares(
            changed=changed, changed_by_dense=by_dense, limit=answer_bound, images=answers.images
        )
    progress.check()
    found.whole = _compared(network, found.kept)
    if found.whole is not None or open_network is None:  # otherwise it may be another time
        cache.keep(key, to_plain(found))
    return _told(selection, found)


@dataclass(kw_only=True)
class _Found:
    """Layers timed in place, steps by time, what is kept of them; ``whole`` and so on as a selection's."""

    timed: tuple[str, ...]
    steps: Mapping[str, Step]
    kept: Mapping[str, Step]
    note: str
    whole: WholeTimes | None = None
    answers: AnswerShares | None = None


def _in_place(
    selection: Selection, open_network: Callable[[], TimedNetwork] | None, progress: Progress
) -> tuple[TimedNetwork | None, dict[str, Step], list[list[Form]], str]:
    """The network if it can be timed, steps of the layers timed in it, each kind's forms, and a note."""
    from qaf_core.search.network_timing import choose_in_place

    fitting = {choice.name: choice.fitting() for choice in selection.choices}
    first = {choice.name: (choice.structure, choice.rank) for choice in selection.choices}
    if open_network is None:
        return None, {}, [], ""
    try:
        network = open_network()
        steps, kinds = choose_in_place(network, fitting, first, progress=progress)
    except ModelError as error:  # layers timed alone are all there is to go by
        return None, {}, [], f"Not timed as a whole: {error}"
    return network, steps, kinds, ""


def _timed_alone(choice: LayerChoice) -> list[Form]:
    """A layer's forms where it was not timed in place."""
    rows = {(row.structure, row.rank): row.latency_ms for row in choice.fitting().values()}
    rows |= {DENSE: choice.dense_ms, (choice.structure, choice.rank): choice.latency_ms}
    return [Form(steps={choice.name: step}, gain_ms=choice.dense_ms - ms) for step, ms in rows.items()]


def _compared(network: TimedNetwork | None, steps: Mapping[str, Step]) -> WholeTimes | None:
    from qaf_core.search.network_timing import compare_whole

    try:
        return None if network is None else compare_whole(network, steps)
    except ModelError:  # a plan that cannot be timed is a plan all the same
        return None


def _changed_by_dense(network: TimedNetwork, answers: AnswerJudge) -> float | None:
    try:
        return answers.changed_by(network.answer)
    except QafError:  # its outputs are not read as the original's are
        return None


def _told(selection: Selection, found: _Found) -> Selection:
    timed = {name: found.steps[name] for name in found.timed}
    given_up = {name: step for name, step in found.kept.items() if step != found.steps[name]}
    chosen = with_steps(with_steps(selection, timed), given_up, Verdict.CHANGES_ANSWERS)
    notes = [found.note]
    if found.answers is None:
        notes.append(NOT_COUNTED)
    if given_up and all(step == DENSE for step in found.kept.values()):
        notes.append(ALL_DENSE)
    elif found.whole is not None and not found.whole.ratio.high < 1.0:
        notes.append(NO_GAIN)
    return replace(chosen, whole=found.whole, answers=found.answers, note=" ".join(filter(None, notes)))
