"""What the solver is given, checked before anything is solved: weight, rank, seed and covariance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from qaf_core.errors import SolverError
from qaf_core.factorization.algebra import ALGEBRAS
from qaf_core.factorization.options import LARGEST_SEED, METHODS
from qaf_core.factorization.rounding import damped
from qaf_core.factorization.structures import STRUCTURES, Rank
from qaf_core.quantization.spec import whole_number
from qaf_core.text.said import Said, say

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NEEDS = "a plain tensor of real floating-point numbers"


def checked_weight(weight: object) -> Tensor:
    """The weight as a plain tensor without gradient, its numbers and type unchanged.

    Raises:
        SolverError: If it holds no numbers, or they do not lie one after another as real numbers.
    """
    values = _plain(weight, say("weight"))
    if values.ndim not in (2, 3, 4, 5) or values.numel() == 0:
        raise SolverError(
            "weight has a shape the solver does not take",
            got=tuple(values.shape),
            expected="(C_out, C_in, k, …) with a kernel of 1 to 3 dimensions or (out, in), not empty",
        )
    return values


def as_target(weight: Tensor, structure: str, method: str) -> Tensor:
    """The weight as its structure's solver sees it.

    Args:
        weight: From :func:`checked_weight`; narrower than float32 it is widened.
        structure, method: As in ``solve_layer``.

    Raises:
        SolverError: If structure, method and shape do not go together.
    """
    if method not in METHODS:
        raise SolverError("unknown method", got=method, expected=", ".join(METHODS))
    if structure not in STRUCTURES:
        raise SolverError("unknown structure", got=structure, expected=", ".join(STRUCTURES))
    if not STRUCTURES[structure].can_write(weight.shape):
        raise SolverError(
            say("structure {structure} takes convolution weights", structure=structure),
            got=tuple(weight.shape),
            remedy="use structure svd",
        )
    work = weight if weight.dtype in (torch.float32, torch.float64) else weight.to(torch.float32)
    return ALGEBRAS[structure](work.shape).target(work)


def check_published(structure: str, method: str, weight_shape: Sequence[int]) -> None:
    """Raise SolverError if the published method is asked for what it does not have."""
    if method == "paper" and not STRUCTURES[structure].published(weight_shape):
        raise SolverError(
            "the published method solves CP only",
            got=say("{structure} of a k×k kernel", structure=structure),
            remedy="use structure cp or method joint",
        )


def checked_rank(rank: object, structure: str, weight_shape: Sequence[int]) -> Rank:
    """The rank in whole numbers of Python, whatever kind of whole number was given.

    Raises:
        SolverError: If it is out of range for such a weight.
    """
    largest = STRUCTURES[structure].largest_rank(weight_shape)
    if largest is None:
        return None
    if isinstance(largest, tuple):
        if not isinstance(rank, tuple | list) or len(rank) != 2:
            raise SolverError(
                say("structure {structure} takes a pair of ranks", structure=structure),
                got=rank,
                expected="(R_out, R_in)",
            )
        pair = [whole_number(value) for value in rank]
        if any(value is None or not 1 <= value <= limit for value, limit in zip(pair, largest, strict=True)):
            raise SolverError(
                "rank out of range",
                got=tuple(rank),
                expected=say("whole numbers from 1 to {largest}", largest=largest),
            )
        return int(rank[0]), int(rank[1])
    number = whole_number(rank)
    if number is None or number < 1:
        raise SolverError("rank out of range", got=rank, expected="a whole number, at least 1")
    if number > largest:
        raise SolverError("rank larger than useful", got=number, expected=say("at most {most}", most=largest))
    return number


def checked_seed(seed: object) -> int:
    """The seed as a whole number of Python.

    Raises:
        SolverError: If it is none, or too large for a generator.
    """
    number = whole_number(seed)
    if number is None or abs(number) > LARGEST_SEED:
        raise SolverError("seed out of range", got=seed, expected="a whole number of at most 63 bits")
    return number


def checked_covariance(covariance: object, weight: Tensor, target: Tensor) -> Tensor | None:
    """The second moment in the target's type, its largest number one; None where nothing reaches the layer.

    Raises:
        SolverError: If it has another shape, is not finite, or no second moment.
    """
    if covariance is None:
        return None
    channels, inputs = weight.shape[1], weight[0].numel()
    if isinstance(covariance, Tensor) and covariance.dtype in _WHOLE:
        covariance = covariance.to(target.dtype)
    moment = _plain(covariance, say("input covariance"))
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or moment.shape[0] not in (channels, inputs):
        raise SolverError(
            "input covariance has the wrong shape",
            got=tuple(moment.shape),
            expected=say(
                "({inputs}, {inputs}) or ({channels}, {channels})", inputs=inputs, channels=channels
            ),
        )
    if not bool(torch.isfinite(moment).all()):
        raise SolverError(
            "input covariance holds NaN or infinite values", remedy="check the calibration images"
        )
    largest = moment.abs().max()
    if float(largest) == 0.0:
        return None  # nothing reaches the layer: all weights count alike
    symmetric = (moment / largest).to(target.device, target.dtype)
    symmetric = (symmetric + symmetric.mT) / 2
    if int(torch.linalg.cholesky_ex(damped(symmetric, 1e-3))[1]) != 0:
        raise SolverError("input covariance has negative eigenvalues", expected="a second moment, E[x·xᵀ]")
    return symmetric


def _plain(value: object, what: Said) -> Tensor:
    """A tensor of real floating-point numbers that are there, without its gradient."""
    if not isinstance(value, Tensor):
        type_name = "numpy.ndarray" if type(value).__module__ == "numpy" else type(value).__name__
        remedy = say("give torch.from_numpy of it") if type_name == "numpy.ndarray" else None
        raise SolverError(
            say("{what} is not a floating-point tensor", what=what), got=type_name, remedy=remedy
        )
    if is_lazy(value):
        raise _no_numbers(what, say("a lazy parameter"), say("run the network once before"))
    kind = str(value.dtype).removeprefix("torch.")
    if value.is_quantized or value.is_complex() or not value.is_floating_point():
        remedies = {
            value.is_quantized: say("give its values, dequantize()"),
            value.is_complex(): say("give its real and its imaginary part one after the other"),
        }
        raise SolverError(
            say("{what} is not a floating-point tensor", what=what),
            got=f"torch.{kind}",
            remedy=remedies.get(True),
        )
    if value.is_meta:
        raise _no_numbers(what, say("a tensor on the meta device"), say("load its weights before"))
    if value.is_nested or value.layout != torch.strided:
        got = (
            say("a nested tensor")
            if value.is_nested
            else f"layout {str(value.layout).removeprefix('torch.')}"
        )
        raise SolverError(
            say("{what} is not dense", what=what), got=got, expected=_NEEDS, remedy="give its to_dense()"
        )
    plain = value.detach()
    try:
        if plain.numel():
            float(plain[(0,) * plain.ndim].to(torch.float32))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise _no_numbers(what, f"{type(value).__name__} of {kind}", None) from error
    return plain


def _no_numbers(what: Said, got: Said | str, remedy: Said | None) -> SolverError:
    return SolverError(
        say("{what} holds no numbers that can be read", what=what), got=got, expected=_NEEDS, remedy=remedy
    )
