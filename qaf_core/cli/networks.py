"""Commands about networks: ``inspect``, ``cost``, ``check``, ``sensitivity``, ``predict``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.interrupt import execute, stop_on_interrupt
from qaf_core.cli.options import (
    ActBits,
    Bits,
    Calibration,
    Classes,
    Convention,
    Data,
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
    lasting_weights,
    make_plan,
    warn_of_ranks,
)
from qaf_core.cli.text import (
    _,
    echo,
    print_costs,
    print_images,
    print_json,
    print_prediction,
    print_stage,
    print_table,
)
from qaf_core.errors import WorkspaceError
from qaf_core.factorization.options import Method
from qaf_core.pipeline.check.plausibility import Plausibility
from qaf_core.records import from_plain
from qaf_core.runs.store.workspace import default_workspace, open_workspace
from qaf_core.text.said import retell, say
from qaf_core.text.units import (
    MISSING,
    bits_text,
    count_text,
    percent_text,
    points_text,
    rank_text,
    with_prefix,
)

if TYPE_CHECKING:
    from qaf_core.network.plan.layer_info import LayerInfo
    from qaf_core.runs.jobs.plans.knowledge import Knowledge
    from qaf_core.runs.store.request import CheckRequest, SensitivityRequest


def inspect(
    model: Model,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Layer inventory: shapes, parameters, operations and what may become of each layer. Needs no weights."""
    from qaf_core.data.models.overrides import read_preprocessing
    from qaf_core.network.plan.layer_info import inventory_from_rows
    from qaf_core.runs.jobs.models import inspect_model
    from qaf_core.runs.store.request import InspectRequest

    request = InspectRequest(
        model=model,
        weights=weights,
        classes=None if classes is None else str(classes),
        preprocessing=None if preprocessing is None else read_preprocessing(preprocessing),
    )
    inspection = inspect_model(request, default_workspace() if workspace is None else workspace)
    if as_json:
        print_json(inspection)
        return
    inventory = inventory_from_rows(inspection["layers"])
    rows = [
        (
            info.name,
            info.kind,
            "×".join(map(str, info.weight_shape)) if info.weight_numel else MISSING,
            count_text(info.params),
            with_prefix(info.macs, "MACs"),
            ", ".join(info.structures) + (f" ({_(info.skip_reason)})" if info.skip_reason else ""),
        )
        for info in inventory
    ]
    print_table(("layer", "kind", "shape", "params", "operations", "can become"), rows)
    print(f"\n{_summary(inventory)}")


def _summary(inventory: Sequence[LayerInfo]) -> str:
    """How much of a network can be factorized, in one sentence."""
    planned = [info for info in inventory if info.planned]
    eligible = [info for info in planned if info.eligible]
    params = sum(info.params for info in eligible) / max(1, sum(info.params for info in inventory))
    macs = sum(info.macs for info in eligible) / max(1, sum(info.macs for info in inventory))
    return say(
        "{count} of {planned} convolution and linear layers can be factorized: "
        "{params} of the parameters, {macs} of the operations.",
        count=len(eligible),
        planned=len(planned),
        params=percent_text(params),
        macs=percent_text(macs),
    ).text(_)


def cost(
    model: Model,
    plan: PlanFile = None,
    ratio: Ratio = None,
    bits: Bits = None,
    act_bits: ActBits = None,
    structure: Structure = None,
    method: MethodName = Method.JOINT,
    convention: Convention = "uniform",
    weights: Weights = None,
    classes: Classes = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """Predicted size, operations and energy under a plan. Needs no weights."""
    from qaf_core.data.models.catalogue import find_model, load_inventory
    from qaf_core.network.plan.cost import original_cost, plan_cost, ratio_cost
    from qaf_core.network.plan.validation import validate_plan

    folder = default_workspace() if workspace is None else workspace
    inventory = load_inventory(find_model(model, weights, classes=classes, workspace=folder))
    if (
        convention == "paper"
        and plan is None
        and ratio is not None
        and bits is not None
        and method != Method.DENSE
    ):
        after = ratio_cost(inventory, ratio, bits, 8 if act_bits is None else act_bits, convention)
    else:
        chosen = make_plan(model, inventory, plan, ratio, bits, act_bits, structure, method, None)
        validate_plan(chosen, inventory, model=model)
        warn_of_ranks(chosen, inventory)
        after = plan_cost(inventory, chosen, convention)
    before = original_cost(inventory, convention)
    if as_json:
        print_json(
            {
                "model": model,
                "convention": convention,
                **after.to_dict(),
                "bops_fraction": after.bops / before.bops,
                "size_fraction": after.size_bytes / before.size_bytes,
                "cost": after.to_dict(),
                "baseline_cost": before.to_dict(),
            }
        )
        return
    echo("{model}, {convention} convention", model=model, convention=convention)
    print_costs(before.to_dict(), after.to_dict())


def sensitivity(
    model: Model,
    act_bits: ActBits = None,
    data: Data = None,
    calibration: Calibration = None,
    seed: Seed = 0,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """What every setting of every layer is expected to harm, and its size and bit operations."""
    from qaf_core.runs.jobs.plans.knowledge import describe_sensitivity

    folder = open_workspace(default_workspace() if workspace is None else workspace)
    _, fields = image_fields(model, data, calibration, seed, weights, classes, preprocessing, folder)
    knowledge, _ = _known(fields, 8 if act_bits is None else act_bits, folder)
    report = describe_sensitivity(knowledge, model)
    if as_json:
        print_json(report)
    else:
        _print_sensitivity(report)


def _print_sensitivity(report: dict[str, Any]) -> None:
    rows = []
    for layer in report["layers"]:
        quantized = [row for row in layer["settings"] if row["bits"] is not None]
        dense = {row["bits"]: row for row in quantized if row["rank"] is None}
        others = [row for row in quantized if row["rank"] is not None]
        best = min(others, key=lambda row: row["harm"] * row["size_bytes"], default=None)
        cells = [f"{dense[bits]['harm']:.2g}" if bits in dense else MISSING for bits in (8, 4, 3, 2)]
        named = ("", "")
        if best is not None:
            rank, bits = rank_text(best["rank"]), bits_text(best["bits"])
            named = (f"{best['structure']} {rank}; {bits} bits", f"{best['harm']:.2g}")
        rows.append((layer["name"], *cells, *named))
    print_table(("layer", "8 bits", "4 bits", "3 bits", "2 bits", "factorized", "harm"), rows)
    echo(
        "harm: expected {unit} of the outputs, by {how}; of the whole network at 8 bits {floor:.2g}",
        unit=report["unit"],
        how=report["how"],
        floor=report["floor"],
    )


def predict(
    model: Model,
    plan: PlanFile = None,
    ratio: Ratio = None,
    bits: Bits = None,
    act_bits: ActBits = None,
    structure: Structure = None,
    data: Data = None,
    calibration: Calibration = None,
    seed: Seed = 0,
    weights: Weights = None,
    classes: Classes = None,
    preprocessing: PreprocessingFile = None,
    as_json: Json = False,
    workspace: Workspace = None,
) -> None:
    """The metric expected of a plan, with its interval, before any run."""
    from qaf_core.data.models.catalogue import load_inventory
    from qaf_core.network.plan.validation import validate_plan
    from qaf_core.runs.jobs.plans.search import predict_plan
    from qaf_core.runs.store.store import Store

    folder = open_workspace(default_workspace() if workspace is None else workspace)
    source, fields = image_fields(model, data, calibration, seed, weights, classes, preprocessing, folder)
    inventory = load_inventory(source)
    chosen = make_plan(model, inventory, plan, ratio, bits, act_bits, structure, Method.JOINT, seed)
    validate_plan(chosen, inventory, model=model)
    knowledge, request = _known(fields, chosen.activation_bits, folder)
    with Store(workspace) as store:
        prediction = predict_plan(knowledge, knowledge.predictor(store, request), chosen)
    if as_json:
        print_json(prediction)
    else:
        print_prediction(prediction["predicted"])
        print_costs(prediction["baseline_cost"], prediction["cost"])


def _known(
    fields: dict[str, Any], activation_bits: int, folder: Path
) -> tuple[Knowledge, SensitivityRequest]:
    """What is known of a model, measured now, in its turn, if need be."""
    from qaf_core.runs.jobs.plans.knowledge import find_knowledge, read_knowledge
    from qaf_core.runs.store.kinds import digest_request
    from qaf_core.runs.store.request import SensitivityRequest
    from qaf_core.runs.store.store import Store

    request = SensitivityRequest(**fields, activation_bits=activation_bits)
    with stop_on_interrupt("finished layers are kept", print_stage) as progress:
        if read_knowledge(digest_request(request, folder), folder) is None:
            with Store(folder) as store:
                execute(store, request, progress)
        return find_knowledge(request, folder, progress), request


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

    request = CheckRequest(
        model=model,
        weights=lasting_weights(weights),
        classes=None if classes is None else str(classes.absolute()),
        preprocessing=None if preprocessing is None else read_preprocessing(preprocessing),
        data=None if data is None else absolute_data(data),
        images=images,
        preview=preview and as_json,
    )
    report = _checked(request, default_workspace() if workspace is None else workspace)
    if as_json:
        print_json(report)
    else:
        _print_check(model, report["data"], report)


def _checked(request: CheckRequest, folder: Path) -> dict[str, Any]:
    """What a check finds: in its turn, or at once where the workspace cannot keep it."""
    from qaf_core.runs.jobs.check import check_model
    from qaf_core.runs.store.store import Store

    store = None
    with contextlib.suppress(WorkspaceError):  # nothing need be kept
        store = Store(folder)
    if store is None:
        return check_model(request, folder)
    with store:
        if store.read_only:
            return check_model(request, folder)
        report = execute(store, request)
    del report["stored"]
    return report


def _print_check(model: str, data: str, report: dict[str, Any]) -> None:
    low, high = map(percent_text, report["ci95"])
    value, n, right = percent_text(report["value"]), f"{report['n']:,}", report["metric"] == "top1"
    headline = say("{value} of {n} images are right", value=value, n=n)
    if not right:
        headline = say("{metric} {value} on {n} images", metric=report["metric"], value=value, n=n)
    echo(
        "{model} on {data}: {told} (95 %: {low} to {high})",
        model=model,
        data=data,
        told=headline,
        low=low,
        high=high,
    )
    print_images(report)
    print()
    rows = [
        (
            retell(trial["form"], trial.get("said") or {}, _),
            percent_text(trial["value"]),
            f"{points_text(trial['gain'])} ({points_text(trial['gain_ci95'][0])}"
            f" to {points_text(trial['gain_ci95'][1])})",
            str(trial["n"]),
        )
        for trial in report["trials"]
    ]
    print_table(("the same images as", "right" if right else report["metric"], "points more", "images"), rows)
    print()
    for finding in report["findings"]:
        kind = _("FAULT") if finding["serious"] else _("note")
        sentence, remedy = (retell(finding[part], finding["said"], _) for part in ("sentence", "remedy"))
        print(f"{kind}: {sentence}\n    {remedy}")
    if report["weights_note"]:
        echo("note: {note}", note=report["weights_note"])
    looked_at = from_plain(Plausibility, report)
    if looked_at.cannot_tell is not None:
        echo("note: {note}", note=looked_at.cannot_tell)
    if looked_at.summary:
        print(" ".join(sentence.text(_) for sentence in looked_at.summary))
