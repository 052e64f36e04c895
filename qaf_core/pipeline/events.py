"""What long work tells those who watch it, and how it learns that it is to stop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from qaf_core.errors import RunCancelled
from qaf_core.text.said import Said, Translate, from_plain, in_words, to_plain, untranslated

if TYPE_CHECKING:
    from qaf_core.factorization.options import SolveEvent

EVENT_KINDS = ("stage", "work", "layer_started", "iteration", "layer_finished", "finetune", "evaluated")
ITERATIONS_PER_SECOND = 20  # of each layer
STAGE_SECONDS = 0.25  # between two words on how far one stage has come

Item = TypeVar("Item")


class RunStatus(StrEnum):
    """How far a run, or another job, is, or how it ended."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING)


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """One thing that happened.

    Attributes:
        kind: One of ``EVENT_KINDS``.
        layer: The layer it concerns, or None.
        data: Plain numbers and strings, ready for JSON.
        elapsed_seconds: Since the run began.
    """

    kind: str
    layer: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    elapsed_seconds: float = 0.0


OnRunEvent = Callable[[RunEvent], None]


def stage_text(data: Mapping[str, Any], _: Translate = untranslated) -> str:
    """What a stage is about, from the data of its event, in the language of ``_``."""
    try:
        return str(in_words(from_plain(data["said"]), _))
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
    ):  # a text without values, or of another version
        return _(str(data.get("message") or ""))


class Progress:
    """Tells how far a piece of work is, and whether it is to stop: with one clock, at a rate screens can use.

    Of each layer's ``iteration`` events at most ``ITERATIONS_PER_SECOND`` a second are told; the first and
    the last always are. Layers may be solved side by side. The same stage tells of its fraction every
    ``STAGE_SECONDS`` at most.

    Args:
        on_event: Told of what happens.
        should_stop: Asked whether the work is to stop; must be cheap.
    """

    def __init__(
        self, on_event: OnRunEvent | None = None, should_stop: Callable[[], bool] | None = None
    ) -> None:
        self._listeners = () if on_event is None else (on_event,)
        self._should_stop = should_stop
        self._began = time.monotonic()
        self._sent_at: dict[str | None, float] = {}  # iterations, by layer
        self._waiting: dict[str | None, RunEvent] = {}
        self._stage: tuple[tuple[str, str | Said], float] = (("", ""), 0.0)

    @property
    def elapsed_seconds(self) -> float:
        """Since the work began."""
        return time.monotonic() - self._began

    def with_listener(self, on_event: OnRunEvent) -> Progress:
        """The same progress, told to one more, who hears of everything first."""
        twin = copy.copy(self)
        twin._listeners = (on_event, *self._listeners)
        return twin

    def with_stop(self, should_stop: Callable[[], bool]) -> Progress:
        """The same progress with one more reason to stop."""
        twin = copy.copy(self)
        twin._should_stop = lambda: self.stopped() or should_stop()
        return twin

    def to_the_end(self) -> Progress:
        """The same progress with nothing left that stops it."""
        twin = copy.copy(self)
        twin._should_stop = None
        return twin

    def quiet(self) -> Progress:
        """Stops as this one does, and tells nothing: for work inside of other work."""
        return Progress(should_stop=self.stopped)

    def stopped(self) -> bool:
        """Whether the work is to stop."""
        return self._should_stop is not None and self._should_stop()

    def check(self) -> None:
        """Raise ``RunCancelled`` if the work is to stop."""
        if self.stopped():
            raise RunCancelled

    def send(self, kind: str, layer: str | None = None, **data: Any) -> None:
        """Tell of something that happened, or hold it back until it turns out to be its layer's last."""
        event = RunEvent(kind=kind, layer=layer, data=data, elapsed_seconds=self.elapsed_seconds)
        if kind == "iteration":
            sent_at = self._sent_at.get(layer)
            if sent_at is not None and event.elapsed_seconds - sent_at < 1 / ITERATIONS_PER_SECOND:
                self._waiting[layer] = event
                return
            self._sent_at[layer] = event.elapsed_seconds
            self._waiting.pop(layer, None)
        elif layer is None:
            self.flush()
        else:
            self._sent_at.pop(layer, None)
            if (waiting := self._waiting.pop(layer, None)) is not None:
                self._emit(waiting)
        self._emit(event)

    def solver_event(self, event: SolveEvent) -> None:
        """Tell of a solver's iteration, unless the work is to stop: then raise ``RunCancelled``."""
        self.check()
        numbers = (
            "iteration", "float_error", "quantized_error", "primal_residual", "dual_residual", "rho"
        )  # fmt: skip
        self.send("iteration", event.layer, **{name: getattr(event, name) for name in numbers})

    def stage(self, stage: str, message: str | Said, fraction: float | None = None) -> None:
        """Tell what the work is about now, in one line for people, and how much of that stage is done."""
        now, (known, sent_at) = self.elapsed_seconds, self._stage
        if (stage, message) != known or not fraction or now - sent_at >= STAGE_SECONDS:
            self._stage = ((stage, message), now)
            said = {"said": to_plain(message)} if isinstance(message, Said) else {}
            self.send("stage", stage=stage, fraction=fraction, message=str(message), **said)

    def step(self, stage: str, message: str | Said, fraction: float | None = None) -> None:
        """Go on to a stage, unless the work is to stop: then raise ``RunCancelled``."""
        self.check()
        self.stage(stage, message, fraction)

    def track(self, items: Iterable[Item], count: int, stage: str, message: str | Said) -> Iterator[Item]:
        """Pass ``count`` items on, telling how far the stage has come."""
        self.stage(stage, message, 0.0)
        for index, item in enumerate(items):
            if index:
                self.stage(stage, message, index / max(count, 1))
            yield item

    def flush(self) -> None:
        """Tell of the iterations held back."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for event in waiting:
            self._emit(event)

    def _emit(self, event: RunEvent) -> None:
        for listener in self._listeners:
            listener(event)
