"""What several commands take, and the plan they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qaf_core.cli.text import warn
from qaf_core.data.models.torchvision_names import ANNOTATED_SETS, CLASSIFICATION_SETS
from qaf_core.data.workspace.trust import trust
from qaf_core.errors import PlanError
from qaf_core.factorization.effort import Effort
from qaf_core.factorization.options import METHODS, Method
from qaf_core.network.plan.rules import KERNEL_STRUCTURES, MEASURED, USUAL
from qaf_core.quantization.grid import BITS_ACCEPTED
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.data.models.source import ModelSource
    from qaf_core.network.plan.layer_info import LayerInfo
    from qaf_core.network.plan.types import Plan


def _named(model: str) -> str:
    """A model as it is; code that is named on the command line is trusted."""
    if ":" in model:
        trust(model, None)
    return model


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model id, as in: qaf models.", callback=_named)]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its beginning.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything drawn at random.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Workspace = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of runs and caches [default: $QAF_WORKSPACE or the user's]"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="safetensors, a state dict, or the name of weights torchvision or timm publish, as DEFAULT. "
        "FILE#raw, FILE#ema or FILE#NAME where a file holds several sets [default: the averaged ones]",
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Names of the classes, in the order of the outputs, one a line."),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Labelled images: builtin, a folder, a .zip of one, an .npz file, or torchvision:NAME:ROOT, "
        f"where NAME is one of {', '.join((*CLASSIFICATION_SETS, *ANNOTATED_SETS))} and ROOT the folder "
        "it lies in; PATH#255=1 or PATH#255=none where masks hold nothing but 0 and 255 [default: the "
        "model's, or builtin]"
    ),
]
Calibration = Annotated[str | None, typer.Option(help="Calibration images [default: part of the data]")]
PreprocessingFile = Annotated[
    Path | None,
    typer.Option(
        "--preprocessing",
        metavar="FILE",
        help='JSON of what is other than the model\'s own, as {"mean": [0.5], "std": [0.5]}.',
    ),
]
PlanFile = Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="A plan as JSON.")]
Ratio = Annotated[float | None, typer.Option(help="Parameters before over after, of each covered layer.")]
Bits = Annotated[int | None, typer.Option(help=f"Weight bits of the covered layers: {BITS_ACCEPTED}.")]
ActBits = Annotated[int | None, typer.Option(help=f"Activation bits: {BITS_ACCEPTED} [default: 8]")]
Structure = Annotated[
    str | None,
    typer.Option(
        help=f"Of k×k convolutions: {', '.join(KERNEL_STRUCTURES)}, or {MEASURED} (see README) "
        f"[default: {USUAL}; of a plan to write {MEASURED}]"
    ),
]
EffortName = Annotated[
    str, typer.Option("--effort", help=f"How hard each layer is solved: {', '.join(Effort)}.")
]
MethodName = Annotated[str, typer.Option(help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}.")]
Convention = Annotated[str, typer.Option(help="What counts as an operation: uniform or paper.")]


def lasting_weights(weights: str | None) -> str | None:
    """A path that means the same in another working directory, or a name of published weights."""
    from qaf_core.data.models.published import is_published_name
    from qaf_core.data.models.timm_names import looks_like_tag

    if weights is None or is_published_name(weights) or looks_like_tag(weights):
        return weights
    return str(Path(weights).expanduser().absolute())


def warn_of_ranks(plan: Plan, inventory: Sequence[LayerInfo]) -> None:
    """A line on stderr for each rank that makes its layer larger."""
    from qaf_core.network.plan.validation import oversized_ranks

    for warning in oversized_ranks(plan, inventory):
        warn("warning: {warning}", warning=warning)


def image_fields(
    model: str,
    data: str | None,
    calibration: str | None,
    seed: int | None,
    weights: str | None,
    classes: Path | None,
    preprocessing: Path | None,
    folder: Path,
) -> tuple[ModelSource, dict[str, Any]]:
    """The model that a command means, and the fields of an ``ImagesRequest`` for it."""
    from qaf_core.data.formats.sources import absolute_data
    from qaf_core.data.models.catalogue import find_model
    from qaf_core.data.models.overrides import read_preprocessing

    steps = None if preprocessing is None else read_preprocessing(preprocessing)
    source = find_model(model, weights, classes=classes, preprocessing=steps, workspace=folder)
    return source, {
        "model": model,
        "weights": lasting_weights(weights),
        "classes": None if classes is None else str(classes.absolute()),
        "preprocessing": steps,
        "data": absolute_data(data or source.data or "builtin"),
        "calibration": None if calibration is None else absolute_data(calibration),
        "seed": seed or 0,
    }


def refuse_unused(**options: object) -> None:
    """Refuse options of the plan that is measured where another was asked for.

    Raises:
        PlanError: If any has a value.
    """
    named = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if named:
        raise PlanError(
            "only a plan that is measured has a use for this option",
            got=", ".join(named),
            remedy=say("leave it out, or choose --structure {measured}", measured=MEASURED),
        )


def make_plan(
    model: str,
    inventory: tuple[LayerInfo, ...],
    file: Path | None,
    ratio: float | None,
    bits: int | None,
    act_bits: int | None,
    structure: str | None,
    method: str,
    seed: int | None,
) -> Plan:
    """The plan in ``file``, or the one for a ratio and bits."""
    from qaf_core.network.plan.rules import plan_for_ratio, read_plan

    if method not in METHODS:
        raise PlanError("unknown method", got=method, expected=", ".join(METHODS))
    if file is not None:
        if ratio is not None or bits is not None or structure is not None:
            raise PlanError(
                "--plan stands alone",
                got=say("--plan with --ratio, --bits or --structure"),
                expected="one of the two",
            )
        plan = read_plan(file)
        plan = plan if act_bits is None else replace(plan, activation_bits=act_bits)
        return plan if seed is None else replace(plan, seed=seed)
    if method == Method.DENSE and ratio is None:
        ratio = 1.0
    if ratio is None or bits is None:
        needed = "--bits B" if method == Method.DENSE else "--ratio R --bits B"
        raise PlanError(
            "nothing says how to compress", expected=say("--plan FILE, or {needed}", needed=needed)
        )
    return plan_for_ratio(
        inventory,
        model=model,
        ratio=ratio,
        bits=bits,
        activation_bits=8 if act_bits is None else act_bits,
        structure=structure or USUAL,
        method=method,
        seed=seed or 0,
    )
