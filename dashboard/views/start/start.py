"""The start page: five steps on a finished example that comes with the product, one live run among them."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from dashboard.state import review as state
from dashboard.text import _
from dashboard.views.decide import decide
from dashboard.views.start import explain
from dashboard.widgets import blocks, predictions, ui
from qaf_core.data.models.catalogue import SAMPLE_MODELS
from qaf_core.review.decision.economics import PRESETS, compute_case
from qaf_core.review.decision.risks import three_sentences
from qaf_core.review.metrics import metric_label
from qaf_core.review.report import decision_sections, evidence_sections
from qaf_core.review.report.blocks import Chart
from qaf_core.review.report.figures import break_even_figure
from qaf_core.review.report.review import Review, network_costs
from qaf_core.runs import management
from qaf_core.runs.evidence.exchange import import_evidence, list_evidence
from qaf_core.runs.jobs.preview import read_preview
from qaf_core.text.units import count_text, percent_text, size_text, with_prefix

EXAMPLE = SAMPLE_MODELS / "example.zip"
STEP_KEY = "step"


def page() -> None:
    """The Start page: ``?step=1`` to ``5``."""
    st.header(_("Smaller networks, decided on evidence"), anchor=False)
    st.markdown(
        _(
            "A trained network is made many times smaller for a cheaper device, and it is measured what that "
            "costs: which answers change, how fast it is, what it saves. The end is a decision with a report."
        )
    )
    steps = _steps()
    step_text = st.query_params.get(STEP_KEY, "")
    place = int(step_text) - 1 if step_text in map(str, range(1, len(steps) + 1)) else None
    if place is None:
        _welcome()
        return
    ui.stepper(
        (title, "done" if number < place else "now" if number == place else "later")
        for number, title in enumerate(steps)
    )
    st.subheader(f"{place + 1} · {steps[place]}", anchor=False)
    review = state.load_review([_example()])
    (_today, _compression, _loss, _saving, _decision)[place](review)
    with st.container(horizontal=True):
        if place and st.button(_("Back"), icon=":material/arrow_back:", key="start-back"):
            ui.go_to("start", step=str(place))
        if place + 1 < len(steps) and st.button(
            _("Next: {step}").format(step=steps[place + 1]), type="primary", key="start-next",
            icon=":material/arrow_forward:",
        ):  # fmt: skip
            ui.go_to("start", step=str(place + 2))


def _steps() -> tuple[str, ...]:
    return (
        _("What the network costs today"),
        _("What compression does"),
        _("What it loses"),
        _("What it saves"),
        _("Decide"),
    )


def _example() -> str:
    """The run of the example, taken into the workspace the first time."""
    store = ui.open_store()
    ids = list_evidence(EXAMPLE)
    if not all(store.has_job(run_id) for run_id in ids):
        new, _known = import_evidence(store, EXAMPLE)
        management.tag(store, new, [_("example")])
    return ids[0]


def _welcome() -> None:
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True):
        st.subheader(_("See it on an example"), anchor=False)
        st.markdown(_("Five steps, two minutes: a finished example, and one run that you start yourself."))
        if st.button(_("Begin"), type="primary", icon=":material/play_arrow:", key="start-begin"):
            ui.go_to("start", step="1")
    with right, st.container(border=True):
        st.subheader(_("Try yours"), anchor=False)
        st.markdown(_("Add a trained network with its images, or choose one of those that are here."))
        with st.container(horizontal=True):
            ui.link_to("models", _("Add a model"), ":material/deployed_code:")
            ui.link_to("explore", _("Choose a model"), ":material/tune:")


def _today(review: Review) -> None:
    record = review.chosen.record
    cost, before = review.chosen.costs[0], review.chosen.before
    st.markdown(
        _("**{model}** looks at small images and answers what is in them.").format(
            model=ui.plain(record.model)
        )
    )
    cards = (
        (_("Numbers in it"), count_text(cost.params), _("each stored with 32 bits")),
        (_("File to deploy"), size_text(cost.size_bytes), _("on every device, and in every update")),
        (
            _("Bit-operations per image"),
            with_prefix(cost.bops, "BOPs"),
            _("arithmetic effort for one answer"),
        ),
        (
            metric_label(before.metric, _),
            percent_text(before.value),
            _("on {n} images that it has not seen").format(n=f"{before.n:,}"),
        ),
    )
    for column, (title, value, note) in zip(st.columns(4), cards, strict=True):
        with column:
            ui.metric_card(title, value, note, height="stretch")
    preview = read_preview(ui.open_store().run_folder(record.id))
    if preview:
        predictions.show(preview)


def _compression(review: Review) -> None:
    st.markdown(
        _(
            "Each layer is replaced by a chain of small ones, whose numbers are whole and take few bits. "
            "Both is solved as one problem: that loses less than first the one, then the other."
        )
    )
    explain.show()
    record = review.chosen.record
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        if st.button(_("Run it live"), icon=":material/bolt:", key="start-live"):
            name = _("{model}, live").format(model=record.model)
            run_id = ui.open_store().create_run(replace(record.request, name=name))
            st.session_state[ui.GUIDED_RUN_KEY] = run_id
            ui.go_to("run", run=run_id)
        st.caption(_("The same run again, on this machine: watch it solve layer by layer, then come back."))


def _loss(review: Review) -> None:
    section = evidence_sections.changes_section(review, _)
    for text in section.paragraphs:
        st.markdown(ui.plain(text))
    for block in section.blocks:
        if block.key in ("one-sided", "classes", "gallery"):
            blocks.draw_block(block)


def _saving(review: Review) -> None:
    decide.number_cards(review)
    assumptions = review.assumptions or PRESETS["example_line"]
    case = compute_case(assumptions, network_costs(review.chosen))
    st.markdown(f"**{_('What that is worth')}**")
    st.caption(ui.plain(_(assumptions.label)))
    st.markdown(ui.plain(decision_sections.describe_case(case, _)))
    title = _("When it has paid for itself")
    blocks.draw_block(Chart(key="start-case", title=title, figure=break_even_figure(case, _)))


def _decision(review: Review) -> None:
    decide.verdict_line(review)
    st.markdown(f"**{_('Three sentences for the meeting')}**")
    sentences = three_sentences(review.chosen, review.verdict, review.case)
    st.code("\n".join(sentence.text(_) for sentence in sentences), language=None, wrap_lines=True)
    with st.container(horizontal=True):
        ui.link_to(
            "decide", _("See criteria, risks and the report"), ":material/gavel:", run=review.chosen.run_id
        )
        ui.link_to("explore", _("Try yours"), ":material/tune:")
