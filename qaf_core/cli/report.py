"""``qaf report``: one file about runs that a board can read and sign; ``qaf import``: evidence of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.options import Json, Workspace
from qaf_core.cli.text import _, echo, print_json, warn
from qaf_core.errors import QafError

if TYPE_CHECKING:
    from qaf_core.runs.evidence.predictions import PairedPredictions
    from qaf_core.runs.store.record import RunRecord
    from qaf_core.runs.store.store import Store

PICTURES = 12  # of images whose answer changed


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="One to five runs of one model.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Ends in .html, .pdf, .json, .csv (answers by image) or .zip (evidence, for qaf import).",
        ),
    ],
    lang: Annotated[str, typer.Option(help="en or ja.")] = "en",
    criteria: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A JSON list of criteria, kept with the runs from now on."),
    ] = None,
    assumptions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON of the business case, kept with the runs from now on."),
    ] = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Write the decision about runs as one file: verdict, evidence, business case, risks, signatures."""
    from qaf_core.review.decision.criteria import keep_criteria, read_criterion
    from qaf_core.review.decision.economics import keep_assumptions, read_assumptions
    from qaf_core.review.report.report import EVIDENCE, write_evidence, write_report
    from qaf_core.review.report.review import gather_review
    from qaf_core.runs.store.store import Store

    rows = [] if criteria is None else _read(criteria)
    if not isinstance(rows, list):
        raise QafError("the criteria are no list", got=str(criteria), expected="a JSON list of criteria")
    chosen = [read_criterion(row) for row in rows]
    assumed = None if assumptions is None else read_assumptions(_read(assumptions))
    path = out.expanduser().absolute()
    with Store(workspace) as store:
        records = [store.find(run) for run in runs]
        for folder in (store.run_folder(record.id) for record in records):
            if criteria is not None:
                keep_criteria(folder, chosen)
            if assumed is not None:
                keep_assumptions(folder, assumed)
        answers = {record.id: _answers(store, record) for record in records}
        review = gather_review(store, list(answers), pictures=PICTURES, answers=answers)
        if path.suffix.lower() == EVIDENCE:
            write_evidence(store, review, path)
        else:
            write_report(review, path, language=lang)
    result: dict[str, Any] = {
        "path": str(path),
        "recommended": review.recommendation.run_id,
        "status": review.verdict.status,
        "size_bytes": path.stat().st_size,
    }
    if as_json:
        print_json(result)
    else:
        print(f"{path}: {review.recommendation.reasons[0].text(_)}")


def _answers(store: Store, record: RunRecord) -> PairedPredictions | None:
    """Both networks' answers, made anew where none are kept; None and a warning where that cannot be."""
    from qaf_core.runs.evidence.predictions import read_predictions

    kept = read_predictions(store.run_folder(record.id))
    if kept is not None or record.compressed is None:
        return kept
    from qaf_core.runs.evidence.networks import load_predictions

    try:
        return load_predictions(store, record.id)
    except QafError as error:  # of an imported run not all need be here
        warn("warning: the answers to each image are missing: {error}", error=error)
        return None


def import_evidence(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by: qaf report RUN --out FILE.zip")],
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Take runs with their evidence into this workspace, to review them here."""
    from qaf_core.runs.evidence.exchange import import_evidence as take
    from qaf_core.runs.management import tag
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store:
        new, known = take(store, file.expanduser())
        tag(store, new, [_("imported")])
    if as_json:
        print_json({"imported": new, "known": known})
    else:
        for run_id in new:
            echo("{run_id}: imported", run_id=run_id)
        for run_id in known:
            echo("{run_id}: already here, left as it is", run_id=run_id)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QafError(
            "a file cannot be read", got=f"{path} ({error.strerror})", remedy="check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise QafError("a file is no JSON", got=str(path), remedy="see the README for its form") from error
