"""``qaf plan``, and the plan that ``--structure auto`` means: by what each layer takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.interrupt import execute, stop_on_interrupt
from qaf_core.cli.options import (
    ActBits,
    Bits,
    Classes,
    Json,
    Model,
    PreprocessingFile,
    Ratio,
    Structure,
    Weights,
    Workspace,
    image_fields,
    make_plan,
    refuse_unused,
    warn_of_ranks,
)
from qaf_core.cli.text import _, echo, print_json, print_stage, print_table
from qaf_core.errors import PlanError
from qaf_core.files import write_json
from qaf_core.network.plan.rules import MEASURED
from qaf_core.runs.store.workspace import default_workspace, open_workspace
from qaf_core.text.said import say
from qaf_core.text.units import factor_text, milliseconds_text, percent_text

if TYPE_CHECKING:
    from qaf_core.network.plan.types import Plan
    from qaf_core.search.selection import Selection

ErrorBound = Annotated[
    float | None,
    typer.Option(help="For auto: largest relative squared error of a layer's outputs [default: any]"),
]
AnswerBound = Annotated[
    float | None,
    typer.Option(
        help="For auto: largest share of answers on the calibration images that may change beyond those that "
        "change with every layer dense at these bits; of masks 1 less mean IoU, of boxes 1 less F1 "
        "[default: 0.02]"
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to time with [default: all processors]")]
Batch = Annotated[int, typer.Option(min=1, help="Images at a time.")]


def plan(
    model: Model,
    ratio: Ratio = None,
    bits: Bits = None,
    act_bits: ActBits = None,
    structure: Structure = None,
    error_bound: ErrorBound = None,
    answer_bound: AnswerBound = None,
    threads: Threads = None,
    batch: Batch = 1,
    data: Annotated[str | None, typer.Option(help="Images; only calibration ones are looked at.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Calibration images.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn at random.")] = 0,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan here, as JSON.")] = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """A plan: by rule, or with auto the fastest structures that change few enough answers."""
    selection: Selection | None = None
    structure = structure or MEASURED
    result: dict[str, Any] = {"model": model, "structure": structure}
    if structure == MEASURED:
        automatic = find_auto_plan(
            model, ratio, bits, act_bits, error_bound, answer_bound, threads, batch, data, calibration, seed,
            weights, classes, preprocessing, workspace,
        )  # fmt: skip
        from qaf_core.records import from_plain
        from qaf_core.search.selection import Selection

        result, selection = automatic, from_plain(Selection, automatic)
        chosen = selection.plan
    else:
        from qaf_core.data.models.catalogue import load_inventory

        refuse_unused(
            error_bound=error_bound, answer_bound=answer_bound, threads=threads,
            batch=None if batch == 1 else batch, data=data, calibration=calibration,
        )  # fmt: skip
        folder = default_workspace() if workspace is None else workspace
        source, _ = image_fields(model, None, None, seed, weights, classes, preprocessing, folder)
        inventory = load_inventory(source)
        chosen = make_plan(model, inventory, None, ratio, bits, act_bits, structure, "joint", seed)
        warn_of_ranks(chosen, inventory)
        result |= {"plan": chosen.to_dict(), "choices": []}
    if out is not None:
        write_json(out.absolute(), chosen.to_dict(), for_people=True)
    if as_json:
        print_json(result)
    else:
        _print_plan(chosen, selection)


def find_auto_plan(
    model: str,
    ratio: float | None,
    bits: int | None,
    act_bits: int | None,
    error_bound: float | None,
    answer_bound: float | None,
    threads: int | None,
    batch: int,
    data: str | None,
    calibration: str | None,
    seed: int | None,
    weights: str | None,
    classes: Path | None,
    preprocessing: Path | None,
    workspace: Path | None,
) -> dict[str, Any]:
    """The automatic plan for what a command was given, as plain data."""
    if bits is None:
        raise PlanError("nothing says how many bits", expected="--bits B")
    from qaf_core.runs.store.request import PlanRequest
    from qaf_core.runs.store.store import Store

    folder = open_workspace(default_workspace() if workspace is None else workspace)
    _, images = image_fields(model, data, calibration, seed, weights, classes, preprocessing, folder)
    fields: dict[str, Any] = {
        "activation_bits": act_bits,
        "error_bound": error_bound,
        "answer_bound": answer_bound,
    }
    request = PlanRequest(
        **images, bits=bits, least_ratio=ratio, threads=threads, batch=batch,
        **{name: value for name, value in fields.items() if value is not None},
    )  # fmt: skip
    kept = "what was timed and solved is kept"
    with Store(folder) as store, stop_on_interrupt(kept, print_stage) as progress:
        return execute(store, request, progress)


def _print_plan(plan: Plan, selection: Selection | None) -> None:
    choices = {} if selection is None else {choice.name: choice for choice in selection.choices}
    rows = []
    for row in plan.layers:
        choice, times = choices.get(row.name), ("", "", "")
        if choice is not None:
            error = "" if choice.output_error is None else percent_text(choice.output_error)
            times = (milliseconds_text(choice.latency_ms), milliseconds_text(choice.dense_ms), error)
        fields = row.to_dict()
        rows.append((row.name, row.structure, *(str(fields[key] or "") for key in ("rank", "bits")), *times))
    print_table(("layer", "structure", "rank", "bits", "time", "dense", "output error"), rows)
    if selection is None:
        return
    if selection.whole is not None:
        ratio, before, after = selection.whole.ratio, selection.whole.dense_ms, selection.whole.planned_ms
        echo(
            "The whole network: {after} as planned, {before} as dense INT8, ratio {value} ({low} to {high})",
            after=milliseconds_text(after),
            before=milliseconds_text(before),
            value=factor_text(ratio.value),
            low=factor_text(ratio.low),
            high=factor_text(ratio.high),
        )
    answers = selection.answers
    if answers is not None and answers.changed is not None:
        dense = answers.changed_by_dense
        line = say(
            "Answers that change, of {images} calibration images: {changed} as planned",
            images=answers.images,
            changed=percent_text(answers.changed),
        )
        more = say(", {changed} with every layer dense", changed=percent_text(dense or 0.0))
        print(line.text(_) + ("" if dense is None else more.text(_)))
    if selection.note:
        from qaf_core.search.selection import note_text

        print(note_text(selection.note, _))
