"""The report as a file: in a language, as HTML, PDF, JSON or CSV."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard.text import _, language
from dashboard.widgets import ui
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.review.decision.numbers import CLASSIFICATION
from qaf_core.review.labels import digest_text
from qaf_core.review.report.report import EVIDENCE, find_browser, write_evidence, write_report
from qaf_core.review.report.review import Review
from qaf_core.text.catalogue import LANGUAGES

LARGEST_BYTES = 64 * 2**20
KINDS = {
    ".html": ("text/html", "code"),
    ".pdf": ("application/pdf", "picture_as_pdf"),
    ".json": ("application/json", "data_object"),
    ".csv": ("text/csv", "table"),
    ".zip": ("application/zip", "folder_zip"),
}


def show(review: Review) -> None:
    """Buttons that write the report."""
    st.caption(
        _(
            "One file that opens without a network: decision, evidence, business case, risks, methods, all "
            "settings, and fields to sign. It tells of the runs chosen above, as they are now."
        )
    )
    chosen = st.segmented_control(
        _("Language of the report"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, default=language(),
        key="report-language", required=True,
    )  # fmt: skip
    titles = {
        ".html": _("Report to read and click"),
        ".pdf": _("Report to print"),
        ".json": _("Everything as JSON"),
        ".csv": _("Answers to each image as CSV"),
        ".zip": _("Evidence for another workspace"),
    }
    paired = review.chosen.predictions
    for column, (kind, (mime, icon)) in zip(st.columns(5), KINDS.items(), strict=True):
        missing = (kind == ".pdf" and find_browser() is None) or (
            kind == ".csv" and (paired is None or paired.task != CLASSIFICATION)
        )
        column.download_button(
            titles[kind], data=_writer(review, kind, chosen), file_name=f"qaf-{review.chosen.run_id}{kind}",
            mime=mime, icon=f":material/{icon}:", key=f"report-{kind}", width="stretch", on_click="ignore",
            type="primary" if kind == ".html" else "secondary", disabled=missing,
        )  # fmt: skip
    if find_browser() is None:
        st.caption(_("A PDF needs Chromium on this machine; or print the HTML from your browser."))
    st.caption(_("On the command line:"))
    names = " ".join(run.run_id for run in review.runs)
    st.code(f"qaf report {names} --lang {chosen} --out report.html", language="bash", wrap_lines=True)
    with st.expander(_("SHA-256 of weights, data and files"), icon=":material/fingerprint:"):
        for name, digest in review.sha256.items():
            st.markdown(f"{ui.plain(digest_text(name, _))}  \n`{digest}`")


def _writer(review: Review, kind: str, chosen: str) -> Callable[[], bytes]:
    def write() -> bytes:
        with scratch_folder(LARGEST_BYTES) as folder:
            path = folder / f"report{kind}"
            if kind == EVIDENCE:
                write_evidence(ui.open_store(), review, path)
            else:
                write_report(review, path, language=chosen)
            return path.read_bytes()

    return write
