"""Solved layers kept by content: the same weight, structure, rank, grid, options and seed are solved once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from qaf_core.factorization.admm import OnEvent
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.options import SolverOptions, Status
from qaf_core.factorization.solve import SolveResult, solve_layer
from qaf_core.files import ContentCache, digest_of
from qaf_core.quantization.spec import QuantSpec

# Raised with every change of the solver that changes its codes: older entries are then not found.
SOLVER_VERSION = 7


@dataclass(frozen=True, kw_only=True)
class SolveTask:
    """What is asked of the solver for one weight; fields as in ``solve_layer``."""

    structure: str
    rank: int | tuple[int, int] | None
    spec: QuantSpec
    options: SolverOptions
    method: str
    seed: int
    input_covariance: Tensor | None = None

    def solve(self, weight: Tensor, *, layer: str, on_event: OnEvent | None) -> SolveResult:
        """Run the solver."""
        return solve_layer(
            weight,
            structure=self.structure,
            rank=self.rank,
            spec=self.spec,
            options=self.options,
            method=self.method,
            seed=self.seed,
            input_covariance=self.input_covariance,
            on_event=on_event,
            layer=layer,
        )


class SolveCache:
    """Solve results in a folder, one safetensors file each, named by the hash of what they were solved from.

    Args:
        folder: Made when the first result is kept.
        helpers: How many processes a run may start to solve small layers beside its own, where there is
            enough for them to do. The codes are the same with and without.

    Attributes:
        folder, helpers: The same.
    """

    def __init__(self, folder: Path, helpers: int = 0) -> None:
        self.folder, self.helpers, self._cache = folder, helpers, ContentCache(folder, ".safetensors")

    def holds(self, key: str) -> bool:
        """Whether a result is kept under ``key``, damaged or not."""
        return self._cache.path(key).is_file()

    def key(self, weight: Tensor, task: SolveTask) -> str:
        """The digest of everything the solve of ``weight`` depends on."""
        described = {
            "version": SOLVER_VERSION,
            "torch": torch.__version__,
            "shape": list(weight.shape),
            "dtype": str(weight.dtype),
            "device": weight.device.type,
            **{name: value for name, value in asdict(task).items() if name != "input_covariance"},
        }
        tensors = [tensor for tensor in (weight, task.input_covariance) if tensor is not None]
        flat = [tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
        return digest_of(described, *(tensor.numpy().data for tensor in flat))

    def load(self, key: str) -> SolveResult | None:
        """The kept result, or None if there is none or its file is damaged; ``seconds`` is what the solve
        took then.
        """
        return self._cache.read(key, _read_result)

    def keep(self, key: str, result: SolveResult) -> None:
        """Keep a result that ran to its own end."""
        if result.status in (Status.CANCELLED, Status.TIME_LIMIT, Status.NONFINITE):
            return
        factors = result.factors
        record = {
            "structure": factors.structure,
            "weight_shape": list(factors.weight_shape),
            "bits": list(factors.bits),
            "relative_error": result.relative_error,
            "float_relative_error": result.float_relative_error,
            "status": result.status.value,
            "iterations": result.iterations,
            "seconds": result.seconds,
            "worst_row_error": result.worst_row_error,
            "lost_rows": result.lost_rows,
        }
        tensors = {f"codes.{i}": codes.cpu().contiguous() for i, codes in enumerate(factors.codes)}
        tensors |= {f"scales.{i}": scales.cpu().contiguous() for i, scales in enumerate(factors.scales)}
        self._cache.keep(key, save(tensors, metadata={"result": json.dumps(record)}))


def _read_result(path: Path) -> SolveResult:
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["result"])
        codes, scales = (
            tuple(file.get_tensor(f"{part}.{i}") for i in range(len(record["bits"])))
            for part in ("codes", "scales")
        )
    factors = Factors(
        structure=record.pop("structure"),
        weight_shape=tuple(record.pop("weight_shape")),
        codes=codes,
        scales=scales,
        bits=tuple(record.pop("bits")),
    )
    return SolveResult(factors=factors, status=Status(record.pop("status")), **record)
