"""Commands about networks: ``inspect``, ``cost``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qaf_core.cli.options import (
    ActBits,
    Bits,
    Classes,
    Convention,
    Json,
    MethodName,
    Model,
    PlanFile,
    PreprocessingFile,
    Ratio,
    Structure,
    Weights,
    Workspace,
    make_plan,
    warn_of_ranks,
)
from qaf_core.cli.text import print_costs, print_json, print_table
from qaf_core.factorization.options import Method
from qaf_core.review.units import MISSING, count_text, percent_text, with_prefix
from qaf_core.runs.store.workspace import default_workspace

if TYPE_CHECKING:
    from qaf_core.network.plan.layer_info import LayerInfo


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
    told = inspect_model(request, default_workspace() if workspace is None else workspace)
    if as_json:
        print_json(told)
        return
    inventory = inventory_from_rows(told["layers"])
    rows = [
        (
            info.name,
            info.kind,
            "×".join(map(str, info.weight_shape)) if info.weight_numel else MISSING,
            count_text(info.params),
            with_prefix(info.macs, "MACs"),
            ", ".join(info.structures) + (f" ({info.skip_reason})" if info.skip_reason else ""),
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
    return (
        f"{len(eligible)} of {len(planned)} convolution and linear layers can be factorized: "
        f"{percent_text(params)} of the parameters, {percent_text(macs)} of the operations."
    )


def cost(
    model: Model,
    plan: PlanFile = None,
    ratio: Ratio = None,
    bits: Bits = None,
    act_bits: ActBits = None,
    structure: Structure = "cp",
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
    print(f"{model}, {convention} convention")
    print_costs(before.to_dict(), after.to_dict())
