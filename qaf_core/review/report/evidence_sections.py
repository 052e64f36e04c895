"""The sections of a report about what was measured: what changed for whom, speed, robustness, stability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qaf_core.deploy.runtime.speed_report import HERE
from qaf_core.pipeline.marks import DETECTION, judge, of_image
from qaf_core.review.decision.changes import ChangedAnswer, ClassChange
from qaf_core.review.decision.evidence import DISTURBANCES, ODD_INPUTS, SPEED
from qaf_core.review.decision.other_tasks import TaskChanges
from qaf_core.review.marks import mark_legend
from qaf_core.review.report.blocks import Block, Chart, Gallery, Section, Table
from qaf_core.review.report.figures import confusion_figure, finish, reliability_figure, robustness_figure
from qaf_core.review.report.review import Review
from qaf_core.review.report.sections import between, points, rise_text
from qaf_core.review.speed import latency_figure, model_labels
from qaf_core.text.said import Translate, retell
from qaf_core.text.units import MISSING, decimal_text, duration_text, percent_text, size_text

MOST_CHANGED = 20


def changes_section(review: Review, _: Translate) -> Section:
    """What changed for whom."""
    changes = review.changes
    title = _("What changed for whom")
    if review.task_changes is not None:
        marked = [_marked_gallery(review, _)] if review.pictures else []
        return Section(key="changes", title=title, blocks=[_task_table(review.task_changes, _), *marked])
    if changes is None:
        text = _("The answers to each image are not kept with this run, or are no classes.")
        return Section(key="changes", title=title, paragraphs=[text])
    lost = sum(row.lost for row in changes.per_class)
    gained = sum(row.gained for row in changes.per_class)
    total = sum(row.n for row in changes.per_class)
    paragraphs = [
        _(
            "Of {n} images: no longer right {lost}, right only now {gained}, "
            "answered otherwise in all {changed}."
        ).format(n=f"{total:,}", lost=lost, gained=gained, changed=len(changes.changed))
    ]
    blocks: list[Block] = []
    if changes.missed is not None or changes.false_alarms is not None:
        blocks.append(_one_sided_table(review, _))
    blocks.append(_class_table(review, _))
    figure = confusion_figure(changes, _)
    if figure is not None:
        blocks.append(Chart(key="confusion", title=_("Answers by true class, images"), figure=figure))
    if review.pictures:
        blocks.append(_gallery(review, _))
    if changes.changed:
        blocks.append(_changed_table(review, _))
    if changes.reliability is not None:
        before, after = changes.reliability
        blocks.append(
            Chart(
                key="reliability",
                title=_("Is the confidence to be trusted?"),
                figure=reliability_figure(changes.reliability, _),
                note=_("Expected calibration error: {before} before, {after} after.").format(
                    before=percent_text(before.ece), after=percent_text(after.ece)
                ),
            )
        )
    return Section(key="changes", title=title, paragraphs=paragraphs, blocks=blocks)


def _task_table(changes: TaskChanges, _: Translate) -> Table:
    """Masks or boxes, class by class."""
    boxes = changes.metric == "ap50"
    rows = []
    for row in changes.per_class:
        cells = [row.name, f"{row.n:,}", percent_text(row.before), percent_text(row.after)]
        cells.append(points(row.after - row.before))
        if boxes:
            cells += [f"{row.missed_before} → {row.missed_after}", f"{row.false_before} → {row.false_after}"]
        elif row.low is not None:
            cells.append(between(points(_negative(row.high)), points(_negative(row.low)), _))
        rows.append(cells)
    worse = sum(more > 0 for _place, more in changes.changed)
    note = _("{worse} images have more errors than before, {better} fewer.")
    return Table(
        key="classes",
        title=_("Class by class: {measure}").format(measure="AP (IoU 0.5)" if boxes else "IoU"),
        header=[
            _("Class"), _("Number of images"), _("Original"), _("Compressed"), _("Change, points"),
            *((_("Objects missed"), _("False boxes")) if boxes else (_("Interval"),)),
        ],
        rows=rows,
        numeric=1,
        note=note.format(worse=worse, better=len(changes.changed) - worse),
    )  # fmt: skip


def _one_sided_table(review: Review, _: Translate) -> Table:
    changes = review.changes
    rows = []
    for title, change in (
        (_("Missed defects"), changes.missed if changes else None),
        (_("False alarms"), changes.false_alarms if changes else None),
    ):
        if change is not None:
            rows.append(
                [
                    title,
                    f"{change.n:,}",
                    f"{change.before} ({percent_text(change.before / change.n, 2)})",
                    f"{change.after} ({percent_text(change.after / change.n, 2)})",
                    rise_text(change.rise, change.rise_ci, _),
                ]
            )
    return Table(
        key="one-sided",
        title=_("Missed defects and false alarms (ok class: {name})").format(name=review.ok_class),
        header=["", _("Number of images"), _("Original"), _("Compressed"), _("More, in points (95 %)")],
        rows=rows,
        numeric=1,
    )


def _negative(drop: float | None) -> float | None:
    """A loss as the change it is."""
    return None if drop is None else -drop


def _ends(row: ClassChange, _: Translate) -> str:
    """The interval of a change."""
    if row.low is None or row.high is None:
        return MISSING
    return between(points(-row.high), points(-row.low), _)


def _class_table(review: Review, _: Translate) -> Table:
    rows, marks = [], []
    for row in review.changes.per_class if review.changes else ():
        interval = _ends(row, _)
        right = [percent_text(count / row.n) if row.n else MISSING for count in (row.before, row.after)]
        rows.append(
            [
                row.name,
                f"{row.n:,}",
                *right,
                f"{row.lost}",
                f"{row.gained}",
                points(None if row.drop is None else -row.drop),
                interval,
            ]
        )
        marks.append("fail" if row.low is not None and row.low > 0 else "")
    return Table(
        key="classes",
        title=_("Class by class"),
        header=[
            _("Class"),
            _("Number of images"),
            _("Original"),
            _("Compressed"),
            _("no longer right"),
            _("right only now"),
            _("Change, points"),
            _("Interval"),
        ],
        rows=rows,
        marks=marks,
        numeric=1,
        note=_(
            "The intervals of all classes hold together with 95 %; marked are losses that chance does not "
            "explain."
        ),
    )


def _gallery(review: Review, _: Translate) -> Gallery:
    pictures = []
    for row in review.changes.changed if review.changes else ():
        if row.index in review.pictures:
            lines = [
                f"#{row.index} {row.label}",
                f"{row.before} {_sure(row.before_confidence)}",
                f"→ {row.after} {_sure(row.after_confidence)}",
            ]
            pictures.append((review.pictures[row.index], lines, _change_mark(row)))
    title = _("Images whose answer changed: true class, answer before → after")
    return Gallery(key="gallery", title=title, pictures=pictures)


def _marked_gallery(review: Review, _: Translate) -> Gallery:
    """Masks or boxes on the images that have more wrong than before."""
    paired, pictures = review.chosen.predictions, []
    assert paired is not None
    amount = "{:.0f}".format if paired.task == DETECTION else percent_text
    for place, address in review.pictures.items():
        truth = of_image(paired.task, paired.targets, place)
        before, after = (
            judge(paired.task, of_image(paired.task, arrays, place), truth)
            for arrays in (paired.original, paired.compressed)
        )
        lines = [
            f"#{place}",
            _("missed {before} → {after}").format(before=amount(before.missed), after=amount(after.missed)),
            _("invented {before} → {after}").format(
                before=amount(before.invented), after=amount(after.invented)
            ),
        ]
        pictures.append((address, lines, "fail"))
    title = _("Images with more wrong than before: original on the left, compressed network on the right")
    return Gallery(key="gallery", title=title, pictures=pictures, legend=mark_legend(_), wide=True)


def _change_mark(row: ChangedAnswer) -> str:
    return "fail" if row.before == row.label else "pass" if row.after == row.label else ""


def _sure(value: float | None) -> str:
    return MISSING if value is None else percent_text(value)


def _changed_table(review: Review, _: Translate) -> Table:
    changed = review.changes.changed if review.changes else ()

    return Table(
        key="changed",
        title=_("Images whose answer changed, the surest new answer first ({shown} of {count})").format(
            shown=min(MOST_CHANGED, len(changed)), count=len(changed)
        ),
        header=[_("Image"), _("True class"), _("Original"), _("sure"), _("Compressed"), _("sure")],
        rows=[
            [
                f"#{row.index}",
                row.label,
                row.before,
                _sure(row.before_confidence),
                row.after,
                _sure(row.after_confidence),
            ]
            for row in changed[:MOST_CHANGED]
        ],
        marks=[_change_mark(row) for row in changed[:MOST_CHANGED]],
    )


def speed_section(review: Review, _: Translate) -> Section:
    """Measured time, memory, energy and files."""
    labels = model_labels(_)
    blocks: list[Block] = []
    for timing in review.chosen.timings:
        where = f"{timing.machine.processor}, {timing.threads} " + _("threads")
        memory, same = timing.peak_memory_bytes, timing.accuracy
        rows = [
            [
                labels.get(name, name),
                f"{row.median_ms:.3g}",
                between(f"{row.p5_ms:.3g}", f"{row.p95_ms:.3g}", _),
                size_text(peak) if (peak := memory.get(name)) else MISSING,
                percent_text(same[name].value) if name in same else MISSING,
            ]
            for name, row in timing.latencies.items()
        ]
        header = [_("File"), _("Median, ms"), _("5 to 95 %, ms"), _("Peak memory"), _("Accuracy of the file")]
        key = "device" if timing.source != HERE else "here"
        figure = latency_figure(timing.latencies, _=_)
        finish(figure, int(figure.layout.height or 300))
        blocks += [
            Table(key=f"speed-{key}", title=where, header=header, rows=rows, numeric=1),
            Chart(key=f"latency-{key}", title=_("Time of one inference"), figure=figure),
        ]
    paragraphs = [] if blocks else [_("Speed and memory were not measured.")]
    if SPEED in review.chosen.unreadable:
        paragraphs = [_("A measurement of speed kept with this run cannot be read: measure again.")]
    return Section(key="speed", title=_("Speed, memory and files"), paragraphs=paragraphs, blocks=blocks)


def checks_section(review: Review, _: Translate) -> Section:
    """Robustness and stability, where they were measured."""
    paragraphs: list[str] = []
    blocks: list[Block] = []
    robustness = review.chosen.added.get("robustness")
    if robustness is not None:
        names = {name: said.text(_) for name, said in DISTURBANCES.items()}
        rows = [
            [names[name]]
            + [
                f"{decimal_text(100 * b, 1)} → {decimal_text(100 * a, 1)}"
                for b, a in zip(row["original"], row["compressed"], strict=True)
            ]
            for name, row in robustness["disturbances"].items()
        ]
        header = [_("Disturbance"), *(_("Severity {n}").format(n=n) for n in range(1, 6))]
        title = _("Original → compressed, %: {n} images, a fifth of them at each severity")
        title = title.format(n=f"{robustness['n']:,}")
        figure = robustness_figure(robustness, names, _)
        blocks.append(Chart(key="robustness-chart", title=title, figure=figure))
        blocks.append(Table(key="robustness", title="", header=header, rows=rows, numeric=1))
        blocks += _odd_blocks(robustness, _)
    elif "robustness" in review.chosen.unreadable:
        paragraphs.append(_("The result of the robustness check cannot be read: check again."))
    else:
        paragraphs.append(_("Robustness was not measured."))
    stability = review.chosen.added.get("stability")
    if stability is not None:
        names = stability_labels(_)
        rows = [
            [
                names.get(row["check"], row["check"]),
                _("passed") if row["passed"] else _("failed"),
                duration_text(row["seconds"]),
                _stability_detail(row, _),
            ]
            for row in stability["checks"]
        ]
        header = [_("What is checked"), _("Verdict"), _("Time"), _("Found")]
        marks = ["pass" if row["passed"] else "fail" for row in stability["checks"]]
        blocks.append(
            Table(key="stability", title=_("Stability in operation"), header=header, rows=rows, marks=marks)
        )
    elif "stability" in review.chosen.unreadable:
        paragraphs.append(_("The result of the stability check cannot be read: check again."))
    else:
        paragraphs.append(_("Stability in operation was not measured."))
    return Section(key="checks", title=_("Robustness and stability"), paragraphs=paragraphs, blocks=blocks)


def _odd_blocks(robustness: Mapping[str, Any], _: Translate) -> list[Block]:
    """What both networks make of inputs that are none, and whether they look at the same places."""
    rows = []
    for row in robustness.get("odd") or ():
        same = row.get("agreement")
        cells = [MISSING if same is None else percent_text(same, 0)]
        if not row["finite"]:
            cells = [_("outputs that are not finite")]
        sure = (_sure(row.get(f"{network}_confidence")) for network in ("original", "compressed"))
        rows.append([ODD_INPUTS[row["input"]].text(_), *cells, *sure])
    saliency, note = robustness.get("saliency") or {}, ""
    if saliency.get("agreement") is not None:
        note = _(
            "Do both networks look at the same places? Correlation of their saliency maps on {n} images: "
            "{value} (1 is the same)."
        ).format(n=saliency["images"], value=decimal_text(saliency["agreement"], 2))
    if not rows:
        return []
    title = _("Inputs that are no images of the task: a network should not be sure of its answer there")
    header = [_("Input"), _("Same answer by both"), _("Original is sure"), _("Compressed is sure")]
    return [Table(key="odd", title=title, header=header, rows=rows, numeric=1, note=note)]


def _stability_detail(row: Mapping[str, Any], _: Translate) -> str:
    """What was found: numbers and faults as they are, what is wanted in a sentence."""
    texts = {
        "restart": _("The answer is the same as before."),
        "damaged": _("Refused, since its SHA-256 does not agree."),
        "fall_back": _("The original answered in its place."),
    }
    found = retell(str(row["detail"]), row.get("said") or {}, _)
    return texts.get(row["check"], found) if row["passed"] else found


def stability_labels(_: Translate) -> dict[str, str]:
    """The words for the checks of stability."""
    return {
        "soak_latency": _("Latency drift in long use"),
        "soak_memory": _("Memory drift in long use"),
        "restart": _("Restart after a kill"),
        "damaged": _("A damaged file is refused"),
        "fall_back": _("Fall-back to the original"),
    }
