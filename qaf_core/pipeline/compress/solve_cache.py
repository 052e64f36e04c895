"""Solved layers kept by content: the same weight, structure, rank, grid, options and seed are solved once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qaf_core.factorization.admm import OnEvent
from qaf_core.factorization.factors import Factors
from qaf_core.factorization.options import SolverOptions, Status
from qaf_core.factorization.solve import SolveResult, solve_layer
from qaf_core.quantization.spec import QuantSpec

# Raised with every change of the solver that changes its codes: older entries are then not found.
SOLVER_VERSION = 6


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

    Attributes:
        folder: The same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, key: str) -> bool:
        """Whether a result is kept under ``key``, damaged or not."""
        return self._path(key).is_file()

    def key(self, weight: Tensor, task: SolveTask) -> str:
        """The hash of everything the solve of ``weight`` depends on, as hexadecimal digits."""
        described = {
            "version": SOLVER_VERSION,
            "torch": torch.__version__,
            "shape": list(weight.shape),
            "dtype": str(weight.dtype),
            "device": weight.device.type,
            **{name: value for name, value in asdict(task).items() if name != "input_covariance"},
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for tensor in (weight, task.input_covariance):
            if tensor is not None:
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def load(self, key: str) -> SolveResult | None:
        """The kept result, or None if there is none or its file is damaged; ``seconds`` is what the solve
        took then.
        """
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["result"])
                count = len(told["bits"])
                codes = tuple(file.get_tensor(f"codes.{i}") for i in range(count))
                scales = tuple(file.get_tensor(f"scales.{i}") for i in range(count))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        factors = Factors(
            structure=told["structure"],
            weight_shape=tuple(told["weight_shape"]),
            codes=codes,
            scales=scales,
            bits=tuple(told["bits"]),
        )
        return SolveResult(
            factors=factors,
            relative_error=told["relative_error"],
            float_relative_error=told["float_relative_error"],
            status=Status(told["status"]),
            iterations=told["iterations"],
            seconds=told["seconds"],
            worst_row_error=told.get("worst_row_error", 0.0),
            lost_rows=told.get("lost_rows", 0),
        )

    def keep(self, key: str, result: SolveResult) -> None:
        """Keep a result that ran to its own end; written aside and renamed. A full disk is no reason to
        stop a run.
        """
        if result.status in (Status.CANCELLED, Status.TIME_LIMIT, Status.NONFINITE):
            return
        factors = result.factors
        told = {
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
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".part")
            os.close(handle)
            try:
                save_file(tensors, aside, metadata={"result": json.dumps(told)})
                os.replace(aside, path)
            except BaseException:
                os.unlink(aside)
                raise
        except (OSError, SafetensorError):
            return

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
