"""``qaf check``: does the original do on these images what it should?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from qaf_core.cli.options import Classes, Data, Json, Model, PreprocessingFile, Weights, Workspace
from qaf_core.cli.text import print_images, print_json, print_table
from qaf_core.review.units import percent_text, points_text
from qaf_core.runs.store.workspace import default_workspace

MOST_SKIPPED_NAMED = 100
#: Which part of data that have two is looked at.
_SPLITS = {
    "calibration": "the part that calibrates is looked at; runs are evaluated on the other one.",
    "evaluation": "the part that runs are evaluated on is looked at; they calibrate with the other one.",
}


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
    from qaf_core.data.load import Split, has_parts, load_images
    from qaf_core.data.models.catalogue import build_model, find_model
    from qaf_core.data.models.overrides import read_preprocessing
    from qaf_core.network.graph.inventory import take_inventory
    from qaf_core.pipeline.check.classifier import MOST_IMAGES, TASK, check_original
    from qaf_core.pipeline.preview import preview_predictions

    folder = default_workspace() if workspace is None else workspace
    steps = None if preprocessing is None else read_preprocessing(preprocessing)
    source = find_model(model, weights, classes=classes, preprocessing=steps, workspace=folder)
    limit = MOST_IMAGES if images is None else images
    # Of the built-in images those for calibration: the others are for measuring.
    chosen, cache = data or source.data or "builtin", folder / "cache"
    split: Split = "calibration" if chosen == "builtin" else "evaluation"
    image_set = load_images(chosen, source, split=split, limit=limit, cache=cache)
    network = build_model(source)
    macs = sum(row.macs for row in take_inventory(network, source.input_shape))
    found = {
        "split": _SPLITS[split] if has_parts(chosen, cache) else "",
        "skipped": [asdict(image) for image in image_set.skipped[:MOST_SKIPPED_NAMED]],
        "skipped_count": len(image_set.skipped),
        "weights_note": source.weights_note,
        **check_original(network, source, image_set, macs=macs, images=limit).to_dict(),
    }
    if as_json:
        rows = {}
        if preview:
            shown = source.task == TASK
            rows["preview"] = preview_predictions(network, source, image_set) if shown else []
        plausible = not any(finding["serious"] for finding in found["findings"])
        print_json({"model": model, "data": image_set.name, "plausible": plausible, **found, **rows})
    else:
        _print(model, image_set.name, found)


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
