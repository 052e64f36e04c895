"""What a weights file says it holds, read and checked before a single tensor is loaded. Needs no torch.

A header that lies (offsets outside the file, sizes that do not fit, parts that unpack to more than the file
holds) is refused here, so that nothing behind it is ever given such a file.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from qaf_core.data.weights.checkpoints import check_part
from qaf_core.data.weights.entries import (
    DEFAULT_LIMITS,
    DTYPE_BYTES,
    LONGEST_NAME,
    ZIP_MAGIC,
    TensorEntry,
    WeightLimits,
    WeightsHeader,
    check_entry,
)
from qaf_core.errors import WeightsError
from qaf_core.text.said import Said, say


def read_header(path: Path, limits: WeightLimits | None = None, part: str | None = None) -> WeightsHeader:
    """Read and check what a weights file says it holds.

    Args:
        path: A safetensors file, or what ``torch.save`` writes (recognized by its content).
        limits: How much it may hold; the default limits when None.
        part: Which of its weights, see `checkpoints`; None where there is one set, or for the averaged ones.

    Raises:
        WeightsError: If it is missing, too large, damaged, lies about itself, holds more than tensors, or not
            this part.
    """
    limits = limits or DEFAULT_LIMITS
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(
            say("weights file {path} cannot be read", path=path.name),
            got=error.strerror or say("no file"),
            remedy="check the path",
        ) from error
    if size > limits.file_bytes:
        raise WeightsError(
            say("weights file {path} is too large", path=path.name),
            got=say("{size:,} bytes", size=size),
            expected=say("at most {most:,}", most=limits.file_bytes),
            remedy="if you trust it, raise weights_bytes in the workspace's settings.json",
        )
    if is_safetensors(path.name, start):
        header = _read_safetensors_header(path, size, limits)
        return replace(header, note=check_part(header.tensors, part, path.name))
    from qaf_core.data.weights.torch_header import read_torch_header

    return read_torch_header(path, size, limits, part)


def is_safetensors(name: str, start: bytes) -> bool:
    """Whether a file with this name and first 9 bytes is to be read as safetensors."""
    return name.endswith(".safetensors") or (start[8:9] == b"{" and start[:4] != ZIP_MAGIC)


# --- safetensors


def _read_safetensors_header(path: Path, size: int, limits: WeightLimits) -> WeightsHeader:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > size - 8:
            raise _invalid(
                path, say("a header of {length:,} bytes in a file of {size:,}", length=length, size=size)
            )
        if length > limits.header_bytes:
            raise _invalid(
                path,
                say("a header of {length:,} bytes", length=length),
                say("at most {most:,}", most=limits.header_bytes),
            )
        text = file.read(length)
    rows = _parse(path, text)
    metadata = rows.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid(path, say("metadata that is not text by name"))
    if len(rows) > limits.tensors:
        raise _invalid(
            path, say("{count:,} tensors", count=len(rows)), say("at most {most:,}", most=limits.tensors)
        )
    entries, spans = {}, []
    for name, row in rows.items():
        entry, span = _read_row(path, name, row)
        entries[name] = entry
        spans.append((*span, name))
    _check_spans(path, spans, size - 8 - length)
    return WeightsHeader(tensors=entries, metadata=metadata)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise _invalid(path, say("the name {name} twice in its header", name=twice[:LONGEST_NAME]))
        return record

    try:
        rows = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise _invalid(path, say("a header nested too deeply")) from error
    except ValueError as error:
        raise _invalid(path, say("a header that is no JSON")) from error
    if not isinstance(rows, dict):
        raise _invalid(path, say("a header that is no JSON object"))
    return rows


def _read_row(path: Path, name: str, row: object) -> tuple[TensorEntry, tuple[int, int]]:
    if not isinstance(row, dict) or not {"dtype", "shape", "data_offsets"} <= row.keys():
        raise _invalid(
            path, say("no dtype, shape and data_offsets for tensor {name}", name=name[:LONGEST_NAME])
        )
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise _invalid(
            path,
            say("type {dtype} for tensor {name}", dtype=str(dtype)[:40], name=name[:LONGEST_NAME]),
            known,
        )
    if not isinstance(shape, list):
        raise _invalid(path, say("no list of sizes as the shape of tensor {name}", name=name[:LONGEST_NAME]))
    sizes = check_entry(path.name, name, shape)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(place) is int for place in offsets)):
        raise _invalid(path, say("malformed offsets for tensor {name}", name=name))
    begin, end = offsets
    stated = prod(sizes) * DTYPE_BYTES[dtype]
    if not 0 <= begin <= end or end - begin != stated:
        raise _invalid(
            path,
            say("offsets {begin} to {end} for tensor {name}", begin=begin, end=end, name=name),
            say("{size:,} bytes for {shape} {dtype}", size=stated, shape=list(sizes), dtype=dtype),
        )
    return TensorEntry(dtype=dtype, shape=sizes), (begin, end)


def _check_spans(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Tensors lie one after another and fill the file, as the format demands."""
    spans.sort()
    for (_, end, before), (begin, _, after) in pairwise(spans):
        if begin != end:
            if begin < end:
                raise _invalid(path, say("overlapping tensors {one} and {other}", one=before, other=after))
            raise _invalid(path, say("a gap between tensors {one} and {other}", one=before, other=after))
    last = spans[-1][1] if spans else 0
    if (spans and spans[0][0] != 0) or last != data_bytes:
        what = say("cut off") if last > data_bytes else say("followed by other content")
        fault = say(
            "tensors of {last:,} bytes but {size:,} bytes of data: it is {what}",
            last=last,
            size=data_bytes,
            what=what,
        )
        raise _invalid(path, fault)


def _invalid(path: Path, got: Said, expected: Said | str | None = None) -> WeightsError:
    return WeightsError(
        say("weights file {path} is no valid safetensors file", path=path.name),
        got=got,
        expected=expected,
        remedy="download or export it again",
    )
