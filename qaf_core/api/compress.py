"""Compressing a network in memory, and what comes of it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from qaf_core.api.images import BATCH_SIZE, Images, each_batch, first_images
from qaf_core.deploy.packed.read import load_packed, without_numbers
from qaf_core.deploy.packed.write import save_packed
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.errors import ModelError, PlanError
from qaf_core.factorization.options import Method, SolverOptions
from qaf_core.files import write_file
from qaf_core.network.graph.capture import capture
from qaf_core.network.graph.inference import on_cpu
from qaf_core.network.graph.inventory import take_inventory
from qaf_core.network.plan.cost import Cost, original_cost, plan_cost
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.network.plan.rules import plan_done, plan_for_ratio, read_plan
from qaf_core.network.plan.types import Plan
from qaf_core.network.plan.validation import validate_plan
from qaf_core.pipeline.check.equivalence import file_differs
from qaf_core.pipeline.compress.compress import compress_network
from qaf_core.pipeline.compress.result import LayerOutcome, read_options
from qaf_core.pipeline.events import Progress, RunEvent
from qaf_core.quantization.grid import Grid
from qaf_core.text.said import say

if TYPE_CHECKING:
    from qaf_core.deploy.onnx_export.report import ExportReport

_log = logging.getLogger("qaf_core")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Compressed:
    """A compressed network, what was done to it and what it costs.

    Attributes:
        network: The network as its packed file, read back, holds it: float images (N, C, H, W) in, what the
            original puts out out; its chains compute on integers.
        original: What it was made from, captured.
        plan: The plan as it was carried out.
        layers: What became of each layer that the plan changes, in the order in which they run.
        cost, baseline_cost: Of one image, after and before.
        notes: What is to be said of it, one sentence each.
        seconds: By stage: `factorize` and `calibrate`.
        content: The packed file's bytes.
        calibration: The images it was fitted with (N, C, H, W).
    """

    network: nn.Module
    original: nn.Module
    plan: Plan
    layers: tuple[LayerOutcome, ...]
    cost: Cost
    baseline_cost: Cost
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    content: bytes
    calibration: Tensor

    def report(self) -> dict[str, Any]:
        """All numbers as plain JSON types, under the keys that `qaf compress --json` prints."""
        return {
            "model": self.plan.model,
            "plan": self.plan.to_dict(),
            "cost": self.cost.to_dict(),
            "baseline_cost": self.baseline_cost.to_dict(),
            "layers": [outcome.row.to_dict() for outcome in self.layers],
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
            "file": {"size_bytes": len(self.content)},
        }

    def __str__(self) -> str:
        """A table of the layers under the sizes, and the notes."""
        before, size = self.baseline_cost, len(self.content)
        bops = 100 * self.cost.bops / max(before.bops, 1)
        width = max((len(outcome.name) for outcome in self.layers), default=0)
        rows = [("layer", "structure", "rank", "bits", "error")]
        for row in self.layers:
            rank = "" if row.rank is None else str(row.rank)
            rows.append((row.name, row.structure, rank, str(row.bits), f"{row.relative_error:.3f}"))
        return "\n".join(
            [
                f"{self.plan.model}: {before.size_bytes / 1000:,.1f} kB to {size / 1000:,.1f} kB, "
                f"{bops:.3g} % of the bit-operations",
                *(f"{a:<{max(width, 5)}}  {b:<9}  {c:>10}  {d:>4}  {e:>5}" for a, b, c, d, e in rows),
                *self.notes,
            ]
        )

    __repr__ = __str__

    def save(self, path: str | Path) -> int:
        """Write the packed file, which `load` opens; its size in bytes.

        Raises:
            WorkspaceError: If it cannot be written.
        """
        write_file(Path(path).expanduser().absolute(), self.content)
        return len(self.content)

    def export(
        self, path: str | Path, images: Images | None = None, *, precision: str = "int8", force: bool = False
    ) -> ExportReport:
        """Write an ONNX file and compare it with the network in ONNX Runtime.

        Args:
            path: The file.
            images: To compare both on; the calibration images when None.
            precision: `int8` (the network's own outputs), `int8-fast` (rounds more, runs faster) or `fp32`.
            force: Write the file even if a check fails.

        Returns:
            What was made and checked; `agreement` says how far both answer the same.

        Raises:
            ModelError: If the precision is unknown, or ONNX cannot express the network.
            ExportRejected: If a check fails, without `force`.
            WorkspaceError: If the file cannot be written.
        """
        from qaf_core.deploy.onnx_export.export import export_onnx, with_ranges
        from qaf_core.deploy.onnx_export.export_fast import export_fast
        from qaf_core.deploy.onnx_export.report import Precision

        if precision not in list(Precision):
            raise ModelError("unknown precision", got=precision, expected=", ".join(Precision))
        calibration, network = torch.split(self.calibration, BATCH_SIZE), self.network
        arguments: dict[str, Any] = {
            "input_shape": tuple(self.calibration.shape[1:]),
            "images": (batch for batch, _ in each_batch(self.calibration if images is None else images)),
            "card": {"model": self.plan.model},
            "force": force,
        }
        file = Path(path).expanduser().absolute()
        if precision == Precision.FAST:
            return export_fast(network, file, calibration=calibration, **arguments)
        integer = precision == Precision.INT8
        if integer and Grid.of(self.plan.activation_bits).is_float:
            network = with_ranges(network, calibration)
        return export_onnx(network, file, integer=integer, **arguments)


class PlanSettings(TypedDict, total=False):
    """What else a plan is made from, or goes before what a given plan says."""

    structure: str
    activation_bits: int
    seed: int


def compress(
    model: nn.Module,
    images: Images,
    *,
    plan: Plan | str | Path | None = None,
    ratio: float | None = None,
    bits: int | None = None,
    method: str = Method.JOINT,
    options: SolverOptions | Mapping[str, Any] | None = None,
    **settings: Unpack[PlanSettings],
) -> Compressed:
    """Factorize and quantize a network, as `qaf compress` does; progress goes to the logger `qaf_core`.

    Args:
        model: Any network; it is not changed.
        images: To fit with, as the network takes them in, without labels: an array (N, C, H, W), or batches
            (of pairs, as a `DataLoader` gives, the first). The first 1,024 are used.
        plan: A plan, or the path of a plan file; instead of ratio, bits and structure.
        ratio: Parameters before over after, of every layer that can be factorized but the first convolution
            and the classifier; `dense` needs none.
        bits: Weight bits of these layers, 2 to 8, or 32 for floating point.
        method: `joint`, `paper`, `sequential` or `dense`.
        options: The solver's, or by name as in plan files; they go before the plan's.
        settings: `structure` of k×k convolutions, `cp` when not given, `tucker2`, `svd`, `spatial`, or
            `cp-or-tucker2` for CP unless it needs more operations than the layer; `activation_bits`, 8 when
            not given, or 32 for floating point; `seed` of all that is drawn at random.

    Raises:
        ModelError: If the network does not run on the images, or cannot be captured.
        PlanError: If the plan, or what it is made from, is missing, malformed or out of range.
        DataError: If the images are none, not finite, or not as a network takes them in.
        WeightsError: If a planned layer's weight is not finite.
    """
    if unknown := sorted(settings.keys() - PlanSettings.__annotations__.keys()):
        known = ", ".join(("plan, ratio, bits, method, options", *PlanSettings.__annotations__))
        raise PlanError("compress has no such argument", got=", ".join(unknown), expected=known)
    calibration, kind = first_images(images), type(model)
    shape = tuple(calibration.shape[1:])
    original = capture(_without_doubles(on_cpu(model)), shape)
    inventory = take_inventory(original, shape)
    if plan is None:
        chosen = _plan_by_rule(kind.__name__, inventory, ratio, bits, method, settings)
    else:
        chosen = _resolve_plan(plan, ratio, bits, settings)
    chosen = replace(chosen, options={**chosen.options, **_named_options(options)})
    validate_plan(chosen, inventory)
    card = {
        "model": chosen.model, "architecture": f"{kind.__module__}:{kind.__qualname__}", "method": method,
        "activation_bits": chosen.activation_bits, "seed": chosen.seed, "input_shape": shape,
    }  # fmt: skip
    return _compress(original, inventory, chosen, calibration, card)


def _without_doubles(model: nn.Module) -> nn.Module:
    """The network, or one of double precision as what it computes in single precision, as images come."""
    if all(parameter.dtype != torch.float64 for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).float()


def _named_options(options: object) -> dict[str, Any]:
    """By name; of a `SolverOptions` those that differ from its defaults, which a plan's go before."""
    if isinstance(options, SolverOptions):
        usual = asdict(SolverOptions())
        return {name: value for name, value in asdict(options).items() if value != usual[name]}
    if options is None or isinstance(options, Mapping):
        return dict(options or {})
    raise PlanError(
        "these are no options", got=type(options).__name__, expected="SolverOptions, or values by name"
    )


def _plan_by_rule(
    model: str,
    inventory: Sequence[LayerInfo],
    ratio: float | None,
    bits: int | None,
    method: str,
    settings: PlanSettings,
) -> Plan:
    if method == Method.DENSE and ratio is None:
        ratio = 1.0
    if ratio is None or bits is None:
        needed = "bits=B" if method == Method.DENSE else "ratio=R and bits=B"
        raise PlanError("nothing says how to compress", expected=say("plan=PLAN, or {needed}", needed=needed))
    return plan_for_ratio(inventory, model=model, ratio=ratio, bits=bits, method=method, **settings)


def _resolve_plan(plan: object, ratio: float | None, bits: int | None, settings: PlanSettings) -> Plan:
    if ratio is not None or bits is not None or "structure" in settings:
        raise PlanError(
            "a plan stands alone", got=say("plan with ratio, bits or structure"), expected="one of the two"
        )
    if isinstance(plan, str | Path):
        plan = read_plan(Path(plan).expanduser())
    if not isinstance(plan, Plan):
        raise PlanError("this is no plan", got=type(plan).__name__, expected="a Plan, or a plan file's path")
    changes: dict[str, Any] = {**settings}
    return replace(plan, **changes)


def _compress(
    original: nn.Module,
    inventory: Sequence[LayerInfo],
    plan: Plan,
    calibration: Tensor,
    card: Mapping[str, Any],
) -> Compressed:
    """Carry a plan out; the network is that of the packed file, read back."""
    compression = compress_network(
        original,
        plan,
        inventory,
        method=card["method"],
        calibration=calibration,
        options=read_options(plan),
        progress=Progress(_print_event),
    )
    # Another process may have the network built with other numbers, also where its code draws them.
    anew = without_numbers(original, of_code=True)
    with scratch_folder() as folder:
        path = folder / "packed.safetensors"
        save_packed(path, compression.model, inventory, card, anew)
        content, network = path.read_bytes(), load_packed(path, anew)
    of_file = file_differs(compression.model, network, calibration[:2])
    done = plan_done(plan, [outcome.name for outcome in compression.layers])
    return Compressed(
        network=network,
        original=original,
        plan=done,
        layers=compression.layers,
        cost=plan_cost(inventory, done),
        baseline_cost=original_cost(inventory),
        notes=tuple(map(str, (*compression.notes, *([] if of_file is None else [of_file])))),
        seconds=compression.seconds,
        content=content,
        calibration=calibration,
    )


def _print_event(event: RunEvent) -> None:
    """What a terminal would show, for the log."""
    if event.kind == "stage":
        _log.info("%s: %s", event.data["stage"], event.data["message"])
