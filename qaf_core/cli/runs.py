"""Commands that make runs: ``compress`` and ``search``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.interrupt import EXIT_CANCELLED, EXIT_DONE, execute, stop_on_interrupt
from qaf_core.cli.options import (
    ActBits,
    Bits,
    Calibration,
    Classes,
    Data,
    EffortName,
    Json,
    MethodName,
    Model,
    PlanFile,
    PreprocessingFile,
    Ratio,
    Seed,
    Structure,
    Weights,
    Workspace,
    image_fields,
    make_plan,
    refuse_unused,
    warn_of_ranks,
)
from qaf_core.cli.plans import AnswerBound, ErrorBound, Threads, find_auto_plan
from qaf_core.cli.text import (
    _,
    echo,
    print_costs,
    print_images,
    print_json,
    print_prediction,
    print_stage,
    print_table,
    status_word,
    warn,
)
from qaf_core.factorization.effort import REFINING_SECONDS, Effort, effort_options, read_effort
from qaf_core.factorization.options import Method
from qaf_core.files import write_json
from qaf_core.pipeline.events import RunStatus, stage_text
from qaf_core.runs.store.workspace import default_workspace
from qaf_core.text.said import Said, say
from qaf_core.text.units import bits_text, duration_text, percent_text, points_text, rank_text, size_text

if TYPE_CHECKING:
    from qaf_core.pipeline.events import RunEvent
    from qaf_core.runs.store.request import RunRequest

Budgets = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=LIMIT",
        help="size=0.2x, size=60kB, bops=0.02x, drop=1pp, latency=0.5x or latency=2ms; several at once.",
    ),
]
Locks = Annotated[
    list[str] | None,
    typer.Option(metavar="LAYER=SETTING", help="keep, dense:BITS or STRUCTURE:RANK:BITS, as cp:32:4."),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="SECONDS",
        help="No refinement begins after it; 0 for none [default: by effort 0, 600 or 3600]",
    ),
]


def compress(
    model: Model,
    plan: PlanFile = None,
    ratio: Ratio = None,
    bits: Bits = None,
    act_bits: ActBits = None,
    structure: Structure = None,
    error_bound: ErrorBound = None,
    answer_bound: AnswerBound = None,
    threads: Threads = None,
    method: MethodName = Method.JOINT,
    effort: EffortName = Effort.STANDARD,
    data: Data = None,
    calibration: Calibration = None,
    images: Annotated[int | None, typer.Option(help="At most so many evaluation images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn at random [default: 0]")] = None,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    check: Annotated[bool, typer.Option(help="Look first whether the original does what it should.")] = True,
    name: Annotated[str | None, typer.Option(help="What to call the run.")] = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> int:
    """Compress a model, evaluate it and store the run."""
    from qaf_core.data.models.catalogue import load_inventory
    from qaf_core.network.plan.rules import MEASURED, USUAL
    from qaf_core.network.plan.types import Plan
    from qaf_core.network.plan.validation import validate_plan
    from qaf_core.runs.store.request import RunRequest

    folder = default_workspace() if workspace is None else workspace
    source, fields = image_fields(model, data, calibration, seed, weights, classes, preprocessing, folder)
    if source.weights_note is not None:
        warn("note: {note}", note=source.weights_note)
    inventory = load_inventory(source)
    if structure == MEASURED and method == Method.JOINT and plan is None:
        automatic = find_auto_plan(
            model, ratio, bits, act_bits, error_bound, answer_bound, threads, 1, data, calibration, seed,
            weights, classes, preprocessing, workspace,
        )  # fmt: skip
        chosen = Plan.from_dict(automatic["plan"])
    else:
        refuse_unused(error_bound=error_bound, answer_bound=answer_bound, threads=threads)
        chosen = make_plan(model, inventory, plan, ratio, bits, act_bits, structure, method, seed)
    chosen = replace(chosen, options={**effort_options(effort), **chosen.options})
    validate_plan(chosen, inventory, model=model)
    warn_of_ranks(chosen, inventory)
    fields["controls"] = (
        None
        if ratio is None or structure == MEASURED
        else {"ratio": ratio, "bits": bits, "structure": structure or USUAL}
    )
    fields |= {"plan": chosen.to_dict(), "seed": chosen.seed, "images": images, "method": method}
    result = run_here(RunRequest(**fields, name=name, check=check), workspace)
    if as_json:
        print_json(result)
    else:
        print_result(result)
    return EXIT_CANCELLED if result["status"] == RunStatus.CANCELLED else EXIT_DONE


def run_here(request: RunRequest, workspace: Path | None) -> dict[str, Any]:
    """Do a run in this process, telling how far it is; the object that ``qaf compress --json`` prints."""
    from qaf_core.runs.store.store import Store

    with Store(workspace) as store, stop_on_interrupt("finished layers are kept", print_progress) as progress:
        result = execute(store, request, progress)
    for finding in (result.get("checks") or {}).get("findings", ()):
        warn("warning: {sentence} {remedy}", sentence=_(finding["sentence"]), remedy=_(finding["remedy"]))
    return result


def search(
    model: Model,
    budget: Budgets = None,
    lock: Locks = None,
    run: Annotated[bool, typer.Option(help="Run the plan that is found.")] = True,
    time_limit: TimeLimit = None,
    effort: EffortName = Effort.STANDARD,
    act_bits: ActBits = None,
    data: Data = None,
    calibration: Calibration = None,
    images: Annotated[int | None, typer.Option(help="At most so many evaluation images.")] = None,
    seed: Seed = 0,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    out: Annotated[Path | None, typer.Option(metavar="PLAN", help="Write the plan here, as JSON.")] = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> int:
    """Find the best plan under budgets, and run it."""
    from qaf_core.runs.store.request import RunRequest, SearchRequest
    from qaf_core.runs.store.store import Store

    folder = default_workspace() if workspace is None else workspace
    _, fields = image_fields(model, data, calibration, seed, weights, classes, preprocessing, folder)
    fields["images"] = images
    request = SearchRequest(
        **fields, budgets=tuple(budget or ()), locks=tuple(lock or ()),
        time_limit=refining_seconds(time_limit, effort), effort=effort,
        activation_bits=8 if act_bits is None else act_bits,
    )  # fmt: skip
    with Store(workspace) as store, stop_on_interrupt("what was measured is kept", print_stage) as progress:
        outcome = execute(store, request, progress)
    if out is not None:
        write_json(out.absolute(), outcome["plan"], for_people=True)
    result = {"model": model, "method": "joint", "status": "completed", **outcome}
    if run:
        run_result = run_here(
            RunRequest(**fields, plan=outcome["plan"], name=" ".join(outcome["budget"])), workspace
        )
        result = {**outcome, **run_result, "seconds": {**outcome["seconds"], **run_result["seconds"]}}
    if as_json:
        print_json(result)
    else:
        _print_search(result, outcome)
    return EXIT_CANCELLED if result["status"] == RunStatus.CANCELLED else EXIT_DONE


def refining_seconds(time_limit: float | None, effort: str) -> float:
    """How long a search refines what it finds."""
    return REFINING_SECONDS[read_effort(effort)] if time_limit is None else time_limit


def _print_search(result: dict[str, Any], outcome: dict[str, Any]) -> None:
    cells = [
        (row["name"], row["structure"], *(str(row[key] or "") for key in ("rank", "bits")))
        for row in outcome["plan"]["layers"]
    ]
    print_table(("layer", "structure", "rank", "bits"), cells)
    print_prediction(outcome["predicted"])
    if outcome["binding"] is not None:
        echo("binding: {budget}; {price}", budget=outcome["binding"], price=outcome["price"])
    print_costs(outcome["baseline_cost"], outcome["cost"])
    if "run_id" in result:
        print_result(result)


def print_progress(event: RunEvent) -> None:
    """One line on stderr for what happened."""
    data = event.data
    if event.kind == "stage" and data["stage"] == "loading" and not sys.stderr.isatty():
        # Bad input shows while loading: a script then finds one line on stderr, the fault.
        return
    if event.kind == "stage" and data.get("fraction") in (None, 0, 0.0):
        line = f"{_(data['stage'])}: {stage_text(data, _)}"
    elif event.kind == "layer_started":
        rank = rank_text(data.get("rank"))
        rank = rank and f" {say('rank {rank}', rank=rank).text(_)}"
        place = f"[{data['index'] + 1}/{data['total']}]"
        bits = say("{bits} bits", bits=bits_text(data["bits"])).text(_)
        line = f"{place} {event.layer}: {data['structure']}{rank}, {bits}"
    elif event.kind == "layer_finished":
        duration = duration_text(data["seconds"])
        error = say("error {error}", error=percent_text(data["relative_error"])).text(_)
        line = f"    {error}, {data['status']}, {duration}"
    elif event.kind == "finetune":
        numbers = {"epoch": data["epoch"], "loss": data["held_back"], "best": data["best"]}
        line = say("    pass {epoch}: loss {loss:.4f}, best {best:.4f}", **numbers).text(_)
        if not data.get("on_grid", True):
            told = say("    pass {epoch}: loss {loss:.4f} off the grid, best on it {best:.4f}", **numbers)
            line = told.text(_)
    elif event.kind == "evaluated":
        line = say(
            "    {which}: {metric} {value} on {count:,} images",
            which=Said(data["which"]),
            metric=data["metric"],
            value=percent_text(data["value"]),
            count=data["n"],
        ).text(_)
    else:
        return
    print(f"{duration_text(event.elapsed_seconds):>12}  {line}", file=sys.stderr)


def print_result(result: dict[str, Any]) -> None:
    """What a finished run came to."""
    echo("run {run}: {status}", run=result["run_id"], status=status_word(result["status"]))
    if result.get("compressed") is None:
        return
    before, after = result["baseline"], result["compressed"]
    low, high = result["drop_ci95"]
    echo(
        "{metric} {before} → {after} on {count:,} images, {change} points (95 %: {low} to {high})",
        metric=before["metric"],
        before=percent_text(before["value"]),
        after=percent_text(after["value"]),
        count=after["n"],
        change=points_text(-result["drop"]),
        low=points_text(-high),
        high=points_text(-low),
    )
    for name, value in after.get("extra", {}).items():
        print(f"{name} {percent_text(before['extra'][name])} → {percent_text(value)}")
    if after.get("agreement") is not None:
        echo("agreement with the original {share}", share=percent_text(after["agreement"]))
    print_images(result.get("data") or {})
    size = (result.get("file") or result["cost"])["size_bytes"]  # of the file; its prediction is in "cost"
    print_costs(result["baseline_cost"], {**result["cost"], "size_bytes": size})
    peak = size_text(result["peak_memory_bytes"])
    echo(
        "in {time}, peak memory {peak}",
        time=duration_text(result["seconds"]["total"]),
        peak=peak,
    )
