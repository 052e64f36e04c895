"""``qaf check``: does the original do on these images what it should?"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from qaf_core.cli.interrupt import execute
from qaf_core.cli.options import (
    Classes,
    Data,
    Json,
    Model,
    PreprocessingFile,
    Weights,
    Workspace,
    lasting_weights,
)
from qaf_core.cli.text import print_images, print_json, print_table
from qaf_core.errors import WorkspaceError
from qaf_core.review.units import percent_text, points_text
from qaf_core.runs.store.workspace import default_workspace


def check(
    model: Model,
    data: Data = None,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    images: Annotated[int | None, typer.Option(min=1, help="At most so many images [default: 384]")] = None,
    preview: Annotated[bool, typer.Option(help="With --json: nine images and their predictions.")] = False,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Find wrong class order (of classifiers) and wrong preparation of images before compressing."""
    from qaf_core.data.formats.sources import absolute_data
    from qaf_core.data.models.overrides import read_preprocessing
    from qaf_core.runs.store.request import CheckRequest
    from qaf_core.runs.store.store import Store

    request = CheckRequest(
        model=model,
        weights=lasting_weights(weights),
        classes=None if classes is None else str(classes.absolute()),
        preprocessing=None if preprocessing is None else read_preprocessing(preprocessing),
        data=None if data is None else absolute_data(data),
        images=images,
        preview=preview and as_json,
    )
    folder, store = default_workspace() if workspace is None else workspace, None
    with contextlib.suppress(WorkspaceError):  # nothing need be kept
        store = Store(folder)
    if store is None:
        from qaf_core.runs.jobs.check import check_model

        found = check_model(request, folder)
    else:
        with store:
            found = execute(store, request)
        del found["stored"]
    if as_json:
        print_json(found)
    else:
        _print(model, found["data"], found)


def _print(model: str, data: str, found: dict[str, Any]) -> None:
    low, high = map(percent_text, found["ci95"])
    value, n, right = percent_text(found["value"]), f"{found['n']:,}", found["metric"] == "top1"
    told = f"{value} of {n} images are right" if right else f"{found['metric']} {value} on {n} images"
    print(f"{model} on {data}: {told} (95 %: {low} to {high})")
    print_images(found)
    print()
    rows = [
        (
            trial["form"],
            percent_text(trial["value"]),
            f"{points_text(trial['gain'])} ({points_text(trial['gain_ci95'][0])}"
            f" to {points_text(trial['gain_ci95'][1])})",
            str(trial["n"]),
        )
        for trial in found["trials"]
    ]
    print_table(("the same images as", "right" if right else found["metric"], "points more", "images"), rows)
    print()
    for finding in found["findings"]:
        print(f"{'FAULT' if finding['serious'] else 'note'}: {finding['sentence']}\n    {finding['remedy']}")
    if found["weights_note"]:
        print(f"note: {found['weights_note']}")
    if found["cannot_tell"]:
        print(f"note: {found['cannot_tell']}")
    if found["summary"]:
        print(found["summary"])
