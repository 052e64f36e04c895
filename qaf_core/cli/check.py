"""``qaf check``: does the original do on these images what it should?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qaf_core.cli.options import Classes, Json, Model, PreprocessingFile, Weights, Workspace
from qaf_core.cli.text import print_json, print_table
from qaf_core.errors import ModelError
from qaf_core.review.units import percent_text, points_text
from qaf_core.runs.workspace import default_workspace


def check(
    model: Model,
    data: Annotated[
        str | None, typer.Option(help="Labelled images: builtin, a folder or an .npz [default: builtin]")
    ] = None,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    images: Annotated[int | None, typer.Option(min=1, help="At most so many images [default: 384]")] = None,
    preview: Annotated[bool, typer.Option(help="With --json: nine images and their predictions.")] = False,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Find wrong class order and wrong preparation of images before anything is compressed."""
    from qaf_core.data.chosen import read_preprocessing
    from qaf_core.data.datasets import Split, load_images
    from qaf_core.data.models import build_model, find_model
    from qaf_core.network.inventory import take_inventory
    from qaf_core.pipeline.plausibility import MOST_IMAGES, TASK, check_original
    from qaf_core.pipeline.preview import preview_predictions

    folder = default_workspace() if workspace is None else workspace
    steps = None if preprocessing is None else read_preprocessing(preprocessing)
    source = find_model(model, weights, classes=classes, preprocessing=steps, workspace=folder)
    if source.task != TASK:
        raise ModelError(
            "only classifiers can be checked", got=source.task, remedy="measure it with qaf compress"
        )
    limit = MOST_IMAGES if images is None else images
    # Of the built-in images those for calibration: the others are for measuring.
    chosen = data or source.data or "builtin"
    split: Split = "calibration" if chosen == "builtin" else "evaluation"
    image_set = load_images(chosen, source, split=split, limit=limit, cache=folder / "cache")
    network = build_model(source)
    macs = sum(row.macs for row in take_inventory(network, source.input_shape))
    found = check_original(network, source, image_set, macs=macs, images=limit).to_dict()
    if as_json:
        rows = {"preview": preview_predictions(network, source, image_set)} if preview else {}
        plausible = not any(finding["serious"] for finding in found["findings"])
        print_json({"model": model, "data": image_set.name, "plausible": plausible, **found, **rows})
    else:
        _print(model, image_set.name, found)


def _print(model: str, data: str, found: dict[str, Any]) -> None:
    low, high = found["ci95"]
    print(
        f"{model} on {data}: {percent_text(found['value'])} of {found['n']:,} images are right"
        f" (95 %: {percent_text(low)} to {percent_text(high)})\n"
    )
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
    print_table(("the same images as", "right", "points more", "images"), rows)
    print()
    for finding in found["findings"]:
        print(f"{'FAULT' if finding['serious'] else 'note'}: {finding['sentence']}\n    {finding['remedy']}")
    if found["blind_to_colours"]:
        print("note: Whether red and blue are exchanged does not show: as many images are right both ways.")
    if not found["findings"]:
        print("Nothing is wrong with class order and preparation of images, as far as these images tell.")
