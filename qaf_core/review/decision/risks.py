"""What may still go wrong, read off a run; a staged plan; and three sentences for the meeting.

Owner and next step of each risk are the user's to edit, and so are the notes: kept in ``review.json`` in the
run's folder, beside what is found anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qaf_core.deploy.runtime.speed_report import HERE
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.files import read_json, write_json
from qaf_core.review.decision.changes import Changes
from qaf_core.review.decision.criteria import ON_IMAGES, value_text
from qaf_core.review.decision.economics import BusinessCase
from qaf_core.review.decision.evidence import DISTURBANCES, SPEED, Evidence
from qaf_core.review.decision.verdict import FAIL, OPEN, PASS, Verdict
from qaf_core.review.metrics import metric_label
from qaf_core.text.said import Said, said_of, say
from qaf_core.text.units import decimal_text, points_text, times_text

FILE_NAME = "review.json"
FORMAT = 1
LONGEST_TEXT = 4000
LONGEST_FIELD = 300
LEAST_IMAGES = 1000  # fewer leave a drop uncertain by more than about a point
MOST_NAMED = 5

Level = Literal["high", "medium", "low"]


@dataclass(frozen=True, kw_only=True)
class Risk:
    """One thing that may go wrong.

    Attributes:
        key: Names the risk, whatever the run.
        text, next_step: In words.
        owner, own_step: The user's; an own step takes the place of the next step.
    """

    key: str
    level: Level
    text: Said
    next_step: Said
    owner: str = ""
    own_step: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the plan, with what must hold before the next one."""

    name: Said
    exits: tuple[Said, ...]


@dataclass(frozen=True, kw_only=True)
class ReviewNotes:
    """What people add to a decision.

    Attributes:
        owners, steps: Of risks, by key.
        notes: Free text.
        decision: ``go``, ``conditions``, ``no``, or empty while open.
        signers: Names for the sign-off fields.
    """

    owners: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    decision: str = ""
    signers: tuple[str, ...] = ()


DECISIONS = ("", "go", "conditions", "no")


def keep_notes(folder: Path, notes: ReviewNotes) -> None:
    """Keep what people added.

    Raises:
        QafError: If a text is too long or the decision none.
    """
    if notes.decision not in DECISIONS:
        raise QafError("unknown decision", got=notes.decision[:40], expected="go, conditions or no")
    if len(notes.notes) > LONGEST_TEXT:
        raise QafError(
            "notes are too long",
            got=say("{count:,} characters", count=len(notes.notes)),
            expected=say("at most {most:,}", most=LONGEST_TEXT),
        )
    for text in (*notes.owners.values(), *notes.steps.values(), *notes.signers):
        if len(text) > LONGEST_FIELD:
            raise QafError(
                "owner, next step or name too long",
                got=say("{count:,} characters", count=len(text)),
                expected=say("at most {most}", most=LONGEST_FIELD),
            )
    content = {
        "format": FORMAT, "owners": dict(notes.owners), "steps": dict(notes.steps), "notes": notes.notes,
        "decision": notes.decision, "signers": list(notes.signers),
    }  # fmt: skip
    write_json(folder / FILE_NAME, content, for_people=True)


def read_notes(folder: Path) -> ReviewNotes:
    """What people added to a run; nothing where there is no file.

    Raises:
        WorkspaceError: If the file is damaged or of a newer version.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return ReviewNotes()
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        return ReviewNotes(
            owners={str(key): str(value) for key, value in content["owners"].items()},
            steps={str(key): str(value) for key, value in content["steps"].items()},
            notes=str(content["notes"]),
            decision=str(content["decision"]),
            signers=tuple(map(str, content["signers"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            "the notes of a review cannot be read", got=f"{path} ({error})", remedy="move the file away"
        ) from error


def list_risks(
    evidence: Evidence, verdict: Verdict, changes: Changes | None, notes: ReviewNotes
) -> tuple[Risk, ...]:
    """The risks of a run, the gravest first."""
    risks = [
        *_risks_of_verdict(verdict),
        *_risks_of_classes(changes),
        *_risks_of_images(evidence),
        *_risks_of_speed(evidence),
        *_risks_of_making(evidence),
    ]
    levels = ("high", "medium", "low")
    risks.sort(key=lambda risk: levels.index(risk.level))
    return tuple(
        replace(risk, owner=notes.owners.get(risk.key, ""), own_step=notes.steps.get(risk.key, ""))
        for risk in risks
    )


def _risks_of_verdict(verdict: Verdict) -> list[Risk]:
    risks = []
    for place, row in enumerate(verdict.rows):
        if row.status == FAIL:
            step = say("Give the network a larger budget, or fine-tune it, and measure again.")
            risks.append(Risk(key=f"failed-{place}", level="high", text=row.reason, next_step=step))
        elif row.status == OPEN:
            if not row.more:
                step = say("Measure it.")
            elif row.criterion.kind in ON_IMAGES:
                step = say("Label about {more} more images and evaluate again.", more=f"{row.more:,}")
            else:
                step = say("Measure it again, with about {more} more measurements.", more=f"{row.more:,}")
            risks.append(Risk(key=f"open-{place}", level="medium", text=row.reason, next_step=step))
    if not verdict.rows:
        text = say("No criteria were set before the run.")
        step = say("Agree on criteria with those who will use the network.")
        risks.append(Risk(key="criteria", level="high", text=text, next_step=step))
    return risks


def _risks_of_classes(changes: Changes | None) -> list[Risk]:
    if changes is None:
        return []
    worse = [row for row in changes.per_class if row.low is not None and row.low > 0]
    absent = [row.name for row in changes.per_class if not row.n]
    risks = []
    if worse:
        worse.sort(key=lambda row: -(row.drop or 0.0))
        text = say(
            "Some classes lose more than chance explains: {names}.",
            names=[f"{row.name} ({points_text(-(row.drop or 0.0))})" for row in worse[:MOST_NAMED]],
        )
        step = say("Look at the changed images of these classes; set a criterion for those that matter.")
        risks.append(Risk(key="classes", level="high", text=text, next_step=step))
    if absent:
        text = say("Classes without a single image were not checked: {names}.", names=absent[:MOST_NAMED])
        step = say("Collect images of these classes.")
        risks.append(Risk(key="absent", level="medium", text=text, next_step=step))
    return risks


def _risks_of_images(evidence: Evidence) -> list[Risk]:
    used, n = evidence.record.images, evidence.after.n
    risks = []
    if n < LEAST_IMAGES:
        text = say("Only {n} images were evaluated: small differences do not show.", n=f"{n:,}")
        step = say("Evaluate on more images of the place of use.")
        risks.append(Risk(key="few-images", level="medium", text=text, next_step=step))
    if used.skipped_count:
        text = say("{count} images could not be read and are left out.", count=f"{used.skipped_count:,}")
        step = say("Find out why; the same may happen in use.")
        risks.append(Risk(key="skipped", level="low", text=text, next_step=step))
    for place, warning in enumerate(used.warnings):
        step = say("Read it, and decide whether it matters.")
        risks.append(
            Risk(key=f"warning-{place}", level="medium", text=said_of(warning, used.said), next_step=step)
        )
    robustness = evidence.added.get("robustness")
    if robustness is None:
        text = say(
            "It was not tried how both networks take images unlike the calibration set (light, blur, noise)."
        )
        if "robustness" in evidence.unreadable:
            text = say("The result of the robustness check kept with this run cannot be read.")
        step = say("Run the robustness check; calibrate with images of the place of use.")
        risks.append(Risk(key="unlike", level="medium", text=text, next_step=step))
    elif worst := robustness.get("worst"):
        text = say(
            "On images unlike the calibration set the compressed network loses more than the original: "
            "{points} points under {disturbance}, severity {severity}.",
            points=decimal_text(100 * worst["extra_drop"], 1),
            disturbance=DISTURBANCES[worst["disturbance"]],
            severity=worst["severity"],
        )
        step = say("Add such images to the calibration set, or rule them out in use.")
        level: Level = "medium" if worst["extra_drop"] > 0.05 else "low"
        risks.append(Risk(key="unlike", level=level, text=text, next_step=step))
    return risks


def _risks_of_speed(evidence: Evidence) -> list[Risk]:
    risks = []
    if not evidence.timings:
        text = say("Speed and memory were not measured: fewer operations need not mean less time.")
        if SPEED in evidence.unreadable:
            text = say("The measurement of speed and memory kept with this run cannot be read.")
        step = say("Measure here with qaf latency, and on the device with qaf device-kit.")
        risks.append(Risk(key="kernels", level="high", text=text, next_step=step))
    elif all(timing.source == HERE for timing in evidence.timings):
        processor = evidence.timings[0].machine.processor
        text = say("The kernels were measured on {processor} only, not on the device.", processor=processor)
        step = say("Measure on the device with qaf device-kit.")
        risks.append(Risk(key="kernels", level="medium", text=text, next_step=step))
    failed = sorted({name for timing in evidence.timings for name in timing.failed})
    if failed:
        text = say("The device does not run these files: {names}.", names=failed)
        step = say("Deploy a file that it runs, or update its runtime.")
        risks.append(Risk(key="formats", level="high", text=text, next_step=step))
    bits = [row.bits for row in evidence.record.plan.layers]
    if any(bit is not None and min(bit if isinstance(bit, tuple) else (bit,)) < 8 for bit in bits):
        text = say("Weights below 8 bits save bytes, not time: ONNX Runtime computes with 8-bit integers.")
        step = say("Do not promise speed from fewer bits.")
        risks.append(Risk(key="bits", level="low", text=text, next_step=step))
    return risks


def _risks_of_making(evidence: Evidence) -> list[Risk]:
    risks = []
    if evidence.record.request.finetune is not None:
        text = say("The network was fine-tuned: every new version of the original needs it again.")
        step = say("Plan the time for it into each update.")
        risks.append(Risk(key="finetune", level="low", text=text, next_step=step))
    checks = evidence.record.checks
    for place, finding in enumerate(checks.findings if checks else ()):
        text, step = (said_of(line, finding.said) for line in (finding.sentence, finding.remedy))
        risks.append(Risk(key=f"check-{place}", level="medium", text=text, next_step=step))
    if "stability" not in evidence.added:
        text = say("Stability in operation (long use, restart, damaged file) was not tried.")
        if "stability" in evidence.unreadable:
            text = say("The result of the stability check kept with this run cannot be read.")
        step = say("Run the stability check on the exported file.")
        risks.append(Risk(key="stability", level="medium", text=text, next_step=step))
    return risks


def plan_stages(verdict: Verdict) -> tuple[Stage, ...]:
    """PoC, pilot and roll-out, each with what must hold before the next."""
    criteria = say("All criteria are passed on images of the place of use.")
    if verdict.status == PASS:
        criteria = say("All criteria are passed (done: {count} of {count}).", count=len(verdict.rows))
    return (
        Stage(
            name=say("PoC"),
            exits=(
                criteria,
                say("Speed and memory are measured on the device."),
                say("The stability check is passed: drift, restart, damaged file, fall-back."),
            ),
        ),
        Stage(
            name=say("Pilot: a few devices, the original running beside"),
            exits=(
                say("Answers differ from the original's no more often than in the PoC."),
                say("No missed defect that the original would have found."),
                say("The update over the air and the way back were carried out once."),
            ),
        ),
        Stage(
            name=say("Roll-out in steps"),
            exits=(
                say("Monitoring of answers and latency runs, with an owner."),
                say("The way back to the original stays ready until the end."),
            ),
        ),
    )


def three_sentences(
    evidence: Evidence, verdict: Verdict, case: BusinessCase | None
) -> tuple[Said, Said, Said]:
    """What is gained, what is lost, what is asked for: for the meeting, ready to copy."""
    record = evidence.record
    before, after = evidence.before, evidence.after
    sizes = evidence.costs[0].size_bytes, evidence.size_bytes
    gained = say(
        "{model} becomes {times} times smaller, {before} instead of {after}.",
        model=record.model,
        times=times_text(*sizes).rstrip("×"),
        before=value_text(sizes[1], "bytes"),
        after=value_text(sizes[0], "bytes"),
    )
    low, high = record.drop_ci95 or (0.0, 0.0)
    lost = say(
        "{metric} on {n} images goes from {before} to {after}; the change lies between {low} and "
        "{high} points (95 %).",
        metric=Said(metric_label(after.metric)),
        n=f"{after.n:,}",
        before=value_text(before.value, "fraction"),
        after=value_text(after.value, "fraction"),
        low=points_text(-high, 2),
        high=points_text(-low, 2),
    )
    if verdict.status == PASS and case is not None and case.payback_months is not None:
        request = say(
            "All criteria are passed, and the work pays for itself in {months} months: "
            "we ask to begin the pilot.",
            months=decimal_text(case.payback_months, 1),
        )
    elif verdict.status == PASS:
        request = say("All criteria are passed: we ask to begin the pilot.")
    elif verdict.status == FAIL:
        request = say(
            "Not all criteria are passed: we ask for another try with a larger budget, not for the pilot."
        )
    else:
        request = say(
            "Not all criteria are shown yet: we ask for the images and measurements listed as open."
        )
    return gained, lost, request
