"""The result of a check: how good an original is, and what seems wrong with it; free of heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from qaf_core.records import Record
from qaf_core.text.said import Said, Translate, retell, say, templates_of
from qaf_core.text.units import percent_text

#: What only classifiers are checked for beside the form of their inputs.
TASK, METRIC = "classification", "top1"
CHANNELS_EXCHANGED = "red and blue exchanged"  # the label of the form in which they are

_SAME_ANSWERS = 0.9


class FindingKind(StrEnum):
    """What can be wrong with an original, or with how its images are prepared."""

    CLASSES = "classes"
    NORMALISATION = "normalisation"
    SCALE = "scale"
    CHANNEL_ORDER = "bgr"
    GUESSING = "guessing"
    BELOW_STATED = "below"


_FORM_FAULTS = (
    FindingKind.NORMALISATION, FindingKind.SCALE, FindingKind.CHANNEL_ORDER, FindingKind.GUESSING
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """One thing that seems wrong.

    Attributes:
        kind: What is wrong.
        sentence: What was seen, in one sentence.
        remedy: What to do about it.
        serious: Compressing is pointless before it is mended.
        evidence: The numbers behind it.
        said: The templates of both sentences, to tell them in other languages.
    """

    kind: FindingKind
    sentence: str
    remedy: str
    serious: bool
    evidence: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: FindingKind, sentence: Said, remedy: Said, **others: Any) -> Finding:
        """One told by templates."""
        said = templates_of(sentence, remedy)
        return cls(kind=kind, sentence=sentence.text(), remedy=remedy.text(), said=said, **others)

    def told(self, _: Translate) -> tuple[str, str]:
        """What was seen and what to do about it, in the language of ``_``."""
        return retell(self.sentence, self.said, _), retell(self.remedy, self.said, _)


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """Some images in another form.

    Attributes:
        form: The form and the range of its inputs, for people.
        n: Images tried.
        value: The metric.
        gain: How much more that is than as configured, on the same images.
        gain_ci95: Its 95 % interval.
        agreement: How far the answers are those as configured, 0 to 1.
        said: The template and values of ``form``.
    """

    form: str
    n: int
    value: float
    gain: float
    gain_ci95: tuple[float, float]
    agreement: float
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plausibility(Record):
    """How good the original is on some images, and what seems wrong with it.

    Attributes:
        metric: Short name of what is measured.
        value: The metric as configured.
        ci95: Its 95 % interval.
        n: Images looked at.
        findings: The serious ones first; empty when all seems right.
        trials: Other forms of input tried on (some of) the same images.
    """

    metric: str = METRIC
    value: float
    ci95: tuple[float, float]
    n: int
    findings: tuple[Finding, ...] = ()
    trials: tuple[Trial, ...] = ()

    @property
    def serious(self) -> Finding | None:
        """The first finding that makes compressing pointless, or None."""
        return next((finding for finding in self.findings if finding.serious), None)

    @property
    def blind_to_colours(self) -> bool:
        """With red and blue exchanged the network does as well, as far as these images tell.

        False where the form is wrong otherwise: what the exchange does shows once that is mended.
        """
        trial, form_fault = self._exchanged, any(finding.kind in _FORM_FAULTS for finding in self.findings)
        return trial is not None and trial.gain_ci95[1] >= 0 and not form_fault

    @property
    def cannot_tell(self) -> Said | None:
        """What could not be checked, in one sentence, or None."""
        trial = self._exchanged
        if trial is None or not self.blind_to_colours:
            return None
        values = {"share": percent_text(trial.agreement), "n": trial.n}
        if trial.agreement >= _SAME_ANSWERS:
            return say(
                "Cannot tell whether red and blue are exchanged: this network answers the same with red and "
                "blue exchanged ({share} the same on {n} images).", **values,
            )  # fmt: skip
        return say(
            "Cannot tell whether red and blue are exchanged: this network does as well with red and blue "
            "exchanged ({share} the same on {n} images).", **values,
        )  # fmt: skip

    @property
    def summary(self) -> tuple[Said, ...]:
        """What can be said where nothing was found wrong, by sentences; none where something was."""
        if self.findings:
            return ()
        if self.metric == METRIC:
            first = say(
                "Nothing is wrong with class order and preparation of images, as far as these images tell."
            )
        else:
            first = say("Nothing is wrong with the preparation of images, as far as these images tell.")
        colours = say("Only whether red and blue are exchanged is not known: it would not show.")
        order = say("The order of classes is checked for classifiers only.")
        others = ((colours, self.blind_to_colours), (order, self.metric != METRIC))
        return (first, *(sentence for sentence, holds in others if holds))

    @property
    def _exchanged(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.form.startswith(CHANNELS_EXCHANGED)), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, with what follows from the fields."""
        unknown = self.cannot_tell
        follows = {
            "blind_to_colours": self.blind_to_colours,
            "cannot_tell": None if unknown is None else unknown.text(),
            "summary": " ".join(sentence.text() for sentence in self.summary) or None,
        }
        return {**super().to_dict(), **follows}
