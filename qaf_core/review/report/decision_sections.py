"""The sections of a report about the decision: business case, risks, plan, notes and signatures."""

from __future__ import annotations

from qaf_core.review.decision.economics import ASSUMPTIONS, SAVINGS, BusinessCase
from qaf_core.review.decision.risks import plan_stages
from qaf_core.review.report.blocks import Chart, Section, Table
from qaf_core.review.report.figures import break_even_figure, tornado_figure
from qaf_core.review.report.review import JOULES_FROM, Review
from qaf_core.text.said import Translate
from qaf_core.text.units import MISSING, decimal_text, percent_text


def money(value: float, currency: str) -> str:
    """An amount with three significant digits where it is small, and its currency."""
    digits = 0 if abs(value) >= 100 else 2
    return f"{value + 0.0:,.{digits}f}".replace("-", "−") + f" {currency}"


def economics_section(review: Review, _: Translate) -> Section:
    """The business case, with every assumption."""
    case, assumptions = review.case, review.assumptions
    title = _("Business case")
    if case is None or assumptions is None:
        return Section(key="economics", title=title, paragraphs=[_("No assumptions were entered.")])
    spans = [
        [_(ASSUMPTIONS[name][0]), *(f"{value:,.10g}" for value in (span.low, span.likely, span.high))]
        for name, span in assumptions.spans.items()
    ]
    savings = [[_(SAVINGS[key]), money(value, case.currency)] for key, value in case.monthly.items()]
    paragraphs = [
        _(assumptions.label) if assumptions.label else "",
        describe_case(case, _),
        _("Prices are the user's; energy is {how}.").format(how=_(JOULES_FROM)),
    ]
    blocks: list[Table | Chart] = [
        Table(
            key="savings",
            title=_("Saved a month, likely"),
            header=["", ""],
            rows=[*savings, [_("Sum"), money(case.monthly_total, case.currency)]],
            numeric=1,
        ),
        Chart(key="break-even", title=_("When it has paid for itself"), figure=break_even_figure(case, _)),
    ]
    if case.tornado:
        blocks.append(Chart(key="tornado", title=_("What matters most"), figure=tornado_figure(case, _)))
    blocks.append(
        Table(
            key="assumptions",
            title=_("Assumptions"),
            header=["", _("low"), _("likely"), _("high")],
            rows=spans,
            numeric=1,
        )
    )
    return Section(
        key="economics", title=title, paragraphs=[text for text in paragraphs if text], blocks=blocks
    )


def describe_case(case: BusinessCase, _: Translate) -> str:
    """The business case in two sentences."""
    low, _middle, high = case.draws["monthly"]
    if case.payback_months is None:
        first = _("At the likely values nothing is saved, and the outlay is not paid back.")
    else:
        first = _(
            "At the likely values {sum} are saved a month; the outlay is paid back in {months} months."
        ).format(sum=money(case.monthly_total, case.currency), months=decimal_text(case.payback_months, 1))
    second = _(
        "Over {count} draws of all assumptions the saving lies between {low} and {high} a month (90 %); "
        "{share} of them are paid back within {months} months."
    ).format(
        count=f"{case.draws['count']:,}",
        low=money(low, case.currency),
        high=money(high, case.currency),
        share=percent_text(case.draws["paid_back"]),
        months=case.months[-1],
    )
    return f"{first} {second}"


def risks_section(review: Review, _: Translate) -> Section:
    """What may still go wrong, and the plan."""
    levels = {"high": _("high"), "medium": _("medium"), "low": _("low")}
    rows = [
        [
            levels[risk.level],
            risk.text.text(_),
            risk.own_step or risk.next_step.text(_),
            risk.owner or MISSING,
        ]
        for risk in review.risks
    ]
    marks = [{"high": "fail", "medium": "open", "low": ""}[risk.level] for risk in review.risks]
    plan = [
        [stage.name.text(_), "\n".join("☐ " + exit.text(_) for exit in stage.exits)]
        for stage in plan_stages(review.verdict)
    ]
    return Section(
        key="risks",
        title=_("Risks and plan"),
        blocks=[
            Table(
                key="risks",
                title=_("Risks"),
                header=[_("Level"), _("Risk"), _("Next step"), _("Owner")],
                rows=rows,
                marks=marks,
            ),
            Table(key="plan", title=_("Plan in stages"), header=[_("Stage"), _("Done when")], rows=plan),
        ],
    )


def decision_labels(_: Translate) -> dict[str, str]:
    """The words for a decision."""
    return {"": _("open"), "go": _("go"), "conditions": _("go, with conditions"), "no": _("no")}


def sign_section(review: Review, _: Translate) -> Section:
    """Notes and fields to sign, and the frozen list of what was reviewed."""
    names = list(review.notes.signers) + [""] * (3 - len(review.notes.signers))
    roles = [_("Drafted by"), _("Reviewed by"), _("Approved by")]
    roles += [_("Approved by")] * (len(names) - len(roles))
    rows = [[role, name, "", ""] for role, name in zip(roles, names, strict=True)]
    frozen = [
        [run.run_id, run.name, review.sha256.get(f"{run.run_id}: packed", MISSING)] for run in review.runs
    ]
    return Section(
        key="sign",
        title=_("Notes and signatures"),
        paragraphs=[
            _("Decision: {decision}").format(decision=decision_labels(_)[review.notes.decision]),
            review.notes.notes or _("No notes."),
        ],
        blocks=[
            Table(
                key="reviewed",
                title=_("Runs reviewed"),
                header=[_("Run id"), _("Name"), _("SHA-256 of the packed file")],
                rows=frozen,
            ),
            Table(
                key="sign",
                title=_("Signatures"),
                header=["", _("Full name"), _("Date"), _("Signature or seal")],
                rows=rows,
            ),
        ],
    )
