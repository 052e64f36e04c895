"""What a weights file announces: its tensors and their sizes, within limits. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qaf_core.errors import QafError, WeightsError
from qaf_core.text.said import say

LONGEST_NAME = 512


MOST_DIMENSIONS = 16


ZIP_MAGIC = b"PK\x03\x04"


#: Bytes of one element, by the names of the safetensors format.
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WeightLimits:
    """How much a weights file may hold.

    Attributes:
        file_bytes: Of the whole file, and of all its tensors together.
        tensors: Number of tensors.
        header_bytes: Of the part that names them.

    Raises:
        QafError: If a limit is not a positive whole number.
    """

    file_bytes: int = 8 * 2**30
    tensors: int = 50_000
    header_bytes: int = 32 * 2**20

    def __post_init__(self) -> None:
        for name in ("file_bytes", "tensors", "header_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise QafError(
                    say("limit {name} out of range", name=name),
                    got=value,
                    expected="a whole number, at least 1",
                )


DEFAULT_LIMITS = WeightLimits()


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor as a header announces it: its type as safetensors names it (``F32``), and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class WeightsHeader:
    """What a weights file announces.

    Attributes:
        tensors: By name.
        metadata: The text kept with them (safetensors only).
        note: Which of several sets of weights these are, in words, where nobody said which; else None.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None


def check_entry(file: str, name: str, shape: Iterable[object]) -> tuple[int, ...]:
    """A tensor's shape, once it and its name are in range.

    Raises:
        WeightsError: If not.
    """
    sizes = tuple(shape)
    if len(name) > LONGEST_NAME:
        raise WeightsError(
            say("weights file {file} has a tensor name that is too long", file=file),
            got=say("{count:,} characters", count=len(name)),
            expected=say("at most {most}", most=LONGEST_NAME),
        )
    if len(sizes) > MOST_DIMENSIONS:
        raise WeightsError(
            say("tensor {name} in {file} has too many dimensions", name=name, file=file),
            got=len(sizes),
            expected=say("at most {most}", most=MOST_DIMENSIONS),
        )
    checked = tuple(size for size in sizes if type(size) is int and size >= 0)
    if len(checked) != len(sizes):
        raise WeightsError(
            say("tensor {name} in {file} has an impossible shape", name=name, file=file),
            expected="whole numbers, 0 or more",
        )
    return checked
