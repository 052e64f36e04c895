"""The sections at a report's end: methods, data, environment, settings, the command that repeats a run."""

from __future__ import annotations

import json
import shlex
from typing import Any

from qaf_core.review.decision.evidence import Evidence
from qaf_core.review.decision.measured import DRAWS
from qaf_core.review.decision.verdict import RISK
from qaf_core.review.labels import digest_text, environment_labels, image_set_text, solve_labels
from qaf_core.review.report.blocks import Section, Table
from qaf_core.review.report.review import Review
from qaf_core.review.report.sections import date_text
from qaf_core.text.said import Translate, retell
from qaf_core.text.units import MISSING, percent_text


def methods_section(review: Review, _: Translate) -> Section:
    """How verdicts, intervals and numbers come about."""
    tests = round(RISK / review.verdict.risk)
    paragraphs = [
        _(
            "Both networks answer the same images. Accuracy lost and rises are compared by paired intervals "
            "(Agresti and Min 2005), shares by exact ones (Clopper and Pearson 1934), other metrics by the "
            "bootstrap over images."
        ),
        _(
            "A criterion is passed when its whole interval keeps the limit, failed when the whole interval "
            "breaks it, and not shown otherwise. All intervals of this decision hold together with 95 % "
            "(Bonferroni over {tests} tests: each has a risk of {risk})."
        ).format(tests=tests, risk=percent_text(review.verdict.risk, 2)),
        _(
            "The number of images that would settle a criterion is the smallest with which {draws} draws "
            "from the predictive distribution are settled in at least 80 %, either way; it counts in that "
            "the number measured so far is uncertain itself."
        ).format(draws=f"{DRAWS:,}"),
        _("Energy is modelled from operations and memory traffic unless a measurement is named."),
    ]
    return Section(key="methods", title=_("How it was evaluated"), paragraphs=paragraphs)


def settings_section(review: Review, _: Translate) -> Section:
    """Data, environment, settings, digests and the command that repeats the run."""
    record, machine, ends = review.chosen.record, environment_labels(_), solve_labels(_)
    about = [
        [_("Run id"), record.id],
        [_("Model"), record.model],
        [_("Finished at"), date_text(record.finished_at)],
        [_("Evaluation images"), image_set_text(record.images.evaluation or record.request.data, _)],
        [_("Calibration images"), image_set_text(record.images.calibration or MISSING, _)],
        [_("How they were told apart"), retell(record.images.split, record.images.said, _) or MISSING],
        *([machine.get(str(key), str(key)), str(value)] for key, value in record.environment.items()),
    ]
    options = [[str(key), _plain(value)] for key, value in (record.plan_row.get("options") or {}).items()]
    options += [
        [_("Bits of activations"), str(record.plan.activation_bits)],
        [_("Seed"), str(record.request.seed)],
        [_("Method"), record.method],
    ]
    layers = [
        [
            row.name,
            row.structure,
            str(row.rank or MISSING),
            str(row.bits or MISSING),
            MISSING if row.relative_error is None else percent_text(row.relative_error),
            ends.get(row.status, row.status),
        ]
        for row in record.layers
    ]
    return Section(
        key="settings",
        title=_("Data, environment and settings"),
        paragraphs=[_("The command that repeats this run (with the plan of this report as plan.json):")],
        listed=[repeat_command(review.chosen)],
        blocks=[
            Table(key="about", title=_("Run, data and environment"), header=["", ""], rows=about),
            Table(key="options", title=_("Settings"), header=["", ""], rows=options),
            Table(
                key="layers",
                title=_("Layer by layer"),
                header=[
                    _("Layer"),
                    _("Structure"),
                    _("Rank"),
                    _("Bits"),
                    _("Reconstruction error"),
                    _("Status"),
                ],
                rows=layers,
                numeric=2,
            ),
            Table(
                key="sha256",
                title=_("SHA-256 of weights, data and files"),
                header=[_("What"), "SHA-256"],
                rows=[[digest_text(name, _), digest] for name, digest in review.sha256.items()],
            ),
        ],
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def repeat_command(run: Evidence) -> str:
    """The command line that repeats a run."""
    request = run.record.request
    if request.finetune is not None:
        parts = ["qaf", "finetune", str(request.finetune.get("run")), "--seed", str(request.seed)]
        return shlex.join(parts)
    parts = ["qaf", "compress", request.model, "--plan", "plan.json", "--method", request.method]
    for name, value in (
        ("--data", request.data),
        ("--calibration", request.calibration),
        ("--images", request.images),
        ("--weights", request.weights),
        ("--classes", request.classes),
        ("--seed", request.seed),
    ):
        if value is not None:
            parts += [name, str(value)]
    return shlex.join(parts)
