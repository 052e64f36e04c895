"""The report as a file: HTML with everything inside, PDF by the system's Chromium, JSON and CSV."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qaf_core import __version__
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.errors import QafError, WorkspaceError
from qaf_core.files import write_file
from qaf_core.review.decision.numbers import CLASSIFICATION
from qaf_core.review.decision.risks import three_sentences
from qaf_core.review.report import appendix_sections, decision_sections, evidence_sections, sections
from qaf_core.review.report.blocks import Block, Section, Table
from qaf_core.review.report.review import Review
from qaf_core.runs.evidence.exchange import pack_evidence
from qaf_core.runs.evidence.gallery import PICTURES_NAME
from qaf_core.runs.store.store import Store
from qaf_core.text.catalogue import translator
from qaf_core.text.said import Translate, say

FORMATS = (".html", ".pdf", ".json", ".csv")
EVIDENCE = ".zip"
FORMAT = 1
PDF_SECONDS = 120
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FOLDER = Path(__file__).parent
_FONTS_HERE = "/* fonts */"
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")  # letters in the JSON of charts
# Where the letters begin that European fonts lack, and places in code page 932: its row of signs such as ㈱
# and ㌔, and where level 2 begins.
_FIRST_JAPANESE, _OTHER_SIGNS, _LEVEL_2 = "\u2e80", b"\x87", b"\x98\x9f"
# What spreadsheets take for the beginning of a formula; a number with its sign, and an interval, is none.
_FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.]+( |$))")


def write_report(review: Review, path: Path, *, language: str = "en") -> None:
    """Write a report in the format its name ends with.

    Args:
        review: What it tells.
        path: Ends in ``.html``, ``.pdf``, ``.json`` or ``.csv`` (the answers to each image).
        language: ``en`` or ``ja``.

    Raises:
        QafError: If the ending or the language is unknown, or there is no Chromium for a PDF.
        WorkspaceError: If the file cannot be written.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise QafError("unknown kind of report", got=path.name, expected=", ".join(FORMATS))
    if kind == ".json":
        content = json.dumps(to_json(review), indent=1, ensure_ascii=False).encode()
    elif kind == ".csv":
        content = answers_csv(review).encode("utf-8-sig")  # so that spreadsheets read it as UTF-8
    else:
        content = render_html(review, language).encode()
        if kind == ".pdf":
            content = print_pdf(content)
    write_file(path, content)


def write_evidence(store: Store, review: Review, path: Path) -> None:
    """Write the evidence of a review's runs as a zip for another workspace, with all tables as CSV and JSON.

    Raises:
        WorkspaceError: If the file cannot be written.
    """
    document = to_json(review)
    extra = {"report.json": json.dumps(document, indent=1, ensure_ascii=False).encode()}
    for table in document["tables"]:
        extra[f"tables/{table['key']}.csv"] = _csv([table["header"], *table["rows"]]).encode("utf-8-sig")
    if review.pictures:
        pictures = json.dumps({str(place): address for place, address in review.pictures.items()})
        extra[f"runs/{review.chosen.run_id}/{PICTURES_NAME}"] = pictures.encode()
    pack_evidence(store, [run.run_id for run in review.runs], path, extra)


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV in which no cell is a formula."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(
        [f"'{cell}" if _FORMULA.match(str(cell)) else cell for cell in row] for row in rows
    )
    return stream.getvalue()


def all_sections(review: Review, _: Translate) -> tuple[Section, ...]:
    """The report after its first page, in order."""
    return (
        sections.criteria_section(review, _),
        evidence_sections.changes_section(review, _),
        evidence_sections.speed_section(review, _),
        evidence_sections.checks_section(review, _),
        decision_sections.economics_section(review, _),
        decision_sections.risks_section(review, _),
        appendix_sections.methods_section(review, _),
        appendix_sections.settings_section(review, _),
        decision_sections.sign_section(review, _),
    )


def render_html(review: Review, language: str = "en") -> str:
    """The report as one HTML page that loads nothing."""
    _ = translator(language)
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = _figure_json
    plan = json.dumps(review.chosen.record.plan_row).encode()
    from plotly.offline import get_plotlyjs

    page: str = environment.get_template("report.html.j2").render(
        _=_,
        language=language,
        review=review,
        status=review.verdict.status,
        banner=sections.banner(review, _),
        sentences=[text.text(_) for text in three_sentences(review.chosen, review.verdict, review.case)],
        numbers=sections.three_numbers(review, _),
        first_chart=sections.first_chart(review, _),
        side_by_side=sections.side_by_side(review, _),
        sections=all_sections(review, _),
        version=__version__,
        date=sections.date_text(review.chosen.record.finished_at),
        style=Markup((_FOLDER / "assets" / "report.css").read_text(encoding="utf-8")),
        fonts=_FONTS_HERE,
        plan=base64.b64encode(plan).decode(),
        plotly=Markup(get_plotlyjs()),
    )
    return page.replace(_FONTS_HERE, font_faces(page[page.index("<body>") :]), 1)


def _figure_json(figure: go.Figure) -> Markup:
    """A figure as JSON that may stand inside a script element, whatever its texts hold."""
    text: str = figure.to_json()
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def font_faces(text: str) -> str:
    """The fonts that a text needs where no Japanese one is installed, as rules of a style sheet.

    Names and notes may be Japanese in an English report too. Usual letters (JIS X 0208 level 1) and the
    rarer ones, as in 髙橋 or 渡邉, are two files: most reports do without the second.
    """
    shown = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    codes = {sign.encode("cp932", "ignore") for sign in set(shown) if sign >= _FIRST_JAPANESE}
    files = {"Report Japanese": "japanese.woff2"} if codes else {}
    if any(code[:1] == _OTHER_SIGNS or (len(code) == 2 and code >= _LEVEL_2) for code in codes):
        files["Report Japanese Rare"] = "japanese_rare.woff2"
    rule = '@font-face {{ font-family: "{}"; src: url(data:font/woff2;base64,{}) format("woff2"); }}'
    return "\n".join(rule.format(family, _font(name)) for family, name in files.items())


@lru_cache(maxsize=2)
def _font(name: str) -> str:
    return base64.b64encode((_FOLDER / "assets" / name).read_bytes()).decode()


def find_browser() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def print_pdf(page: bytes) -> bytes:
    """A page printed by the system's Chromium.

    Raises:
        QafError: If there is none, or it does not print.
    """
    browser = find_browser()
    if browser is None:
        raise QafError(
            "no Chromium to print a PDF with",
            expected=say("{one} or {other} on the path", one=BROWSERS[0], other=BROWSERS[1]),
            remedy="install one, or write .html and print it from your browser",
        )
    with scratch_folder(len(page) * 4) as folder:
        (folder / "report.html").write_bytes(page)
        command = [
            browser, "--headless", "--disable-gpu", "--no-pdf-header-footer", "--virtual-time-budget=10000",
            f"--user-data-dir={folder / 'profile'}", f"--print-to-pdf={folder / 'report.pdf'}",
            # Chromium refuses to sandbox itself for root, as in containers; the page loads nothing.
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
            (folder / "report.html").as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=PDF_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise QafError("Chromium did not print the report", got=str(error)[:120]) from error
        if not (folder / "report.pdf").is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise QafError("Chromium did not print the report", got=lines[-1][:200])
        return (folder / "report.pdf").read_bytes()


def to_json(review: Review) -> dict[str, Any]:
    """Everything a report tells, as plain JSON types, texts in English."""
    english = translator("en")
    return {
        "format": FORMAT,
        "qaf": __version__,
        "recommended": review.recommendation.run_id,
        "reasons": [reason.text() for reason in review.recommendation.reasons],
        "sentences": [text.text() for text in three_sentences(review.chosen, review.verdict, review.case)],
        "verdicts": [verdict.to_dict() for verdict in review.recommendation.verdicts.values()],
        "criteria_sets": [
            {"set_at": row.set_at, "by": row.by, "criteria": [each.to_dict() for each in row.criteria]}
            for row in review.criteria_sets
        ],
        "runs": [{"name": run.name, "files": dict(run.files), **run.record.result} for run in review.runs],
        "timings": {run.run_id: [timing.to_dict() for timing in run.timings] for run in review.runs},
        "checks": {run.run_id: dict(run.added) for run in review.runs},
        "tables": [
            {"key": block.key, "title": block.title, "header": list(block.header), "rows": list(block.rows)}
            for block in (sections.side_by_side(review, english), *_blocks(review, english))
            if isinstance(block, Table)
        ],
        "assumptions": None if review.assumptions is None else review.assumptions.to_dict(),
        "business_case": None if review.case is None else review.case.to_dict(),
        "notes": {"decision": review.notes.decision, "notes": review.notes.notes},
        "sha256": dict(review.sha256),
    }


def _blocks(review: Review, _: Translate) -> list[Block]:
    return [block for section in all_sections(review, _) for block in section.blocks]


def answers_csv(review: Review) -> str:
    """What both networks said to each image: one row for each image and run.

    Raises:
        WorkspaceError: If the answers of a run are not kept, or are no classes.
    """
    rows: list[Sequence[Any]] = [
        ("run", "image", "label", "original", "original_confidence", "compressed", "compressed_confidence")
    ]
    for run in review.runs:
        paired = run.predictions
        if paired is None or paired.task != CLASSIFICATION:
            raise WorkspaceError(
                "the answers of this run cannot be written as rows",
                got=run.run_id,
                expected="the kept answers of a classifier",
            )
        columns: list[Sequence[Any]] = [paired.targets["labels"].tolist()]
        for answers in (paired.original, paired.compressed):
            columns.append(answers["ranked"][:, 0].tolist())
            kept = answers.get("confidence")
            columns.append(
                [""] * len(columns[0]) if kept is None else [f"{v:.6g}" for v in kept[:, 0].tolist()]
            )
        names = paired.classes

        def name(index: int, names: tuple[str, ...] = names) -> str:
            return names[index] if index < len(names) else str(index)

        for place, (label, first, sure, last, sure_last) in enumerate(zip(*columns, strict=True)):
            rows.append((run.run_id, place, name(label), name(first), sure, name(last), sure_last))
    return _csv(rows)
