"""What a file of ``torch.save`` announces, read and checked without torch."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import IO, Any

from qaf_core.data.weights.checkpoints import pick_weights
from qaf_core.data.weights.entries import (
    LONGEST_NAME,
    ZIP_MAGIC,
    TensorEntry,
    WeightLimits,
    WeightsHeader,
    check_entry,
)
from qaf_core.data.weights.pickle_reader import (
    ELEMENT_BYTES,
    DamagedPickle,
    ForeignObject,
    PickleReader,
    TensorRecord,
)
from qaf_core.errors import WeightsError
from qaf_core.text.said import say

_ONLY_TENSORS = "tensors by name, and nothing that runs"
_SAVE_AGAIN = say("save only the tensors: safetensors.torch.save_file(model.state_dict(), FILE)")


def read_torch_header(path: Path, size: int, limits: WeightLimits, part: str | None = None) -> WeightsHeader:
    """The tensors a file of ``torch.save`` announces, checked against what it holds.

    Args:
        path: The file.
        size: Its bytes.
        limits: How much it may hold.
        part: Which of its weights, see `checkpoints`.

    Raises:
        WeightsError: If it is damaged, lies about its size, holds more than tensors, or not this part.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == ZIP_MAGIC
            file.seek(0)
            loaded, storages = _read_zip(path, size, limits) if zipped else _read_legacy(file, size, limits)
    except ForeignObject as error:
        raise _describe_foreign(path, error) from error
    except (DamagedPickle, OSError, ValueError, KeyError, RuntimeError, NotImplementedError, struct.error,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise WeightsError(
            say("weights file {path} cannot be read", path=path.name),
            got=say("a damaged or unknown file"),
            expected="a safetensors file or a torch state dict that loads with weights_only=True",
        ) from error
    chosen = pick_weights(loaded, part, path.name)
    return replace(_describe(path, chosen.state, storages, limits), note=chosen.note)


def _describe_foreign(path: Path, error: ForeignObject) -> WeightsError:
    """What a file holds that is more than tensors, named as what it is, with the way to its weights."""
    what, remedy = say("holds Python objects; nothing of it was run"), _SAVE_AGAIN
    got: str | None = str(error)
    if error.kind == "torchscript":
        what, got = say("is a TorchScript program; nothing of it was run"), None
        remedy = say("save its weights: safetensors.torch.save_file(torch.jit.load(FILE).state_dict(), NEW)")
    elif error.kind == "exported":
        what, got = say("is a program of torch.export; nothing of it was run"), None
        remedy = say(
            "save its weights: safetensors.torch.save_file(dict(torch.export.load(FILE).state_dict), NEW)"
        )
    elif error.kind == "network":
        what = say("holds a whole pickled network; nothing of it was run")
        code = "safetensors.torch.save_file(torch.load(FILE, weights_only=False).state_dict(), FILE)"
        remedy = say("where its code is: save only the tensors: {code}", code=code)
    return WeightsError(
        say("weights file {path} {what}", path=path.name, what=what),
        got=got,
        expected=_ONLY_TENSORS,
        remedy=remedy,
    )


def _describe(path: Path, loaded: Any, storages: Mapping[str, int], limits: WeightLimits) -> WeightsHeader:
    """Every tensor of a state dict, once each fits its storage, and each storage the file."""
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsError(
            say("weights file {path} holds no state dict", path=path.name),
            got=say("no tensors") if loaded == {} else _kind(loaded),
            expected="tensors by name",
            remedy=_SAVE_AGAIN,
        )
    if len(loaded) > limits.tensors:
        raise WeightsError(
            say("weights file {path} holds too many tensors", path=path.name),
            got=f"{len(loaded):,}",
            expected=say("at most {most:,}", most=limits.tensors),
        )
    entries, total = {}, 0
    for name, value in loaded.items():
        entry = _describe_tensor(path, str(name), value if isinstance(name, str) else None, storages)
        total += prod(entry.shape) * ELEMENT_BYTES[entry.dtype]
        entries[str(name)] = entry
    if total > limits.file_bytes:
        raise WeightsError(
            say("the tensors of {path} are too large", path=path.name),
            got=say("{size:,} bytes", size=total),
            expected=say("at most {most:,}", most=limits.file_bytes),
        )
    return WeightsHeader(tensors=entries)


def _kind(value: Any) -> str:
    return (
        "one tensor" if isinstance(value, TensorRecord) else f"a {type(value).__name__.lstrip('_').lower()}"
    )


def _describe_tensor(path: Path, name: str, value: Any, storages: Mapping[str, int]) -> TensorEntry:
    if not isinstance(value, TensorRecord):
        raise WeightsError(
            say("weights file {path} holds no state dict", path=path.name),
            got=say("{kind} as {name}", kind=_kind(value), name=name[:LONGEST_NAME]),
            expected="tensors by name",
            remedy=_SAVE_AGAIN,
        )
    if value.odd is not None or value.storage is None:
        raise WeightsError(
            say("tensor {name} in {path} cannot be used", name=name[:LONGEST_NAME], path=path.name),
            got=say("a tensor that is {odd}", odd=value.odd),
            expected="a plain tensor of floating-point numbers",
        )
    shape = check_entry(path.name, name, value.shape)
    needed = prod(shape) * ELEMENT_BYTES[value.dtype]
    available = storages.get(value.storage.key, 0)
    stated = value.storage.numel * ELEMENT_BYTES[value.storage.dtype]
    if stated > available or needed > stated:
        raise WeightsError(
            say("tensor {name} in {path} is larger than its data", name=name, path=path.name),
            got=say("{stated:,} bytes stated, {held:,} there", stated=max(stated, needed), held=available),
            remedy="download or export it again",
        )
    return TensorEntry(dtype=value.dtype, shape=shape)


# --- the two formats of torch.save


def _read_zip(path: Path, size: int, limits: WeightLimits) -> tuple[Any, dict[str, int]]:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if len(parts) > limits.tensors + 64:
            raise WeightsError(
                say("weights file {path} has too many parts", path=path.name),
                got=f"{len(parts):,}",
                expected=limits.tensors,
            )
        names = [part.filename for part in parts]
        if any(name.endswith("/constants.pkl") for name in names):
            raise ForeignObject("a TorchScript program", kind="torchscript")
        if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
            raise ForeignObject("a program of torch.export", kind="exported")
        unpacked = sum(part.file_size for part in parts)
        packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
        if packed or unpacked > size:
            raise WeightsError(
                say("weights file {path} would unpack to more than it holds", path=path.name),
                got=say("{unpacked:,} bytes in a file of {size:,}", unpacked=unpacked, size=size),
                expected="parts stored as they are, as torch.save writes them",
            )
        sizes = {part.filename: part.file_size for part in parts}
        tops = [name.removesuffix("data.pkl") for name in sizes if name.endswith("/data.pkl")]
        if len(tops) != 1 or len(sizes) != len(parts):
            raise DamagedPickle("not one data.pkl")
        if sizes[f"{tops[0]}data.pkl"] > limits.header_bytes:
            raise WeightsError(
                say("weights file {path} has too long a list of tensors", path=path.name),
                got=say("{size:,} bytes", size=sizes[f"{tops[0]}data.pkl"]),
                expected=say("at most {most:,}", most=limits.header_bytes),
            )
        reader = PickleReader()
        loaded = reader.read(io.BytesIO(archive.read(f"{tops[0]}data.pkl")))
    return loaded, {key: sizes.get(f"{tops[0]}data/{key}", 0) for key in reader.storages}


def _read_legacy(file: IO[bytes], size: int, limits: WeightLimits) -> tuple[Any, dict[str, int]]:
    """The form before torch 1.6: five pickles, then each storage's length and its bytes."""
    head = io.BytesIO(file.read(limits.header_bytes))
    for _ in range(3):  # magic number, version, system
        PickleReader().read(head)
    reader = PickleReader()
    loaded = reader.read(head)
    keys = PickleReader().read(head)
    place, sizes = head.tell(), {}
    for key in keys:
        file.seek(place)
        numel = struct.unpack("<q", file.read(8))[0]
        storage = reader.storages[str(key)]
        length = storage.numel * ELEMENT_BYTES[storage.dtype]
        place += 8 + length
        if numel != storage.numel or place > size:
            break  # what is not there has no bytes: the check of the tensors says which
        sizes[str(key)] = length
    return loaded, sizes
