"""Reads a pickle of tensors without running anything in it: no import, no call, no attribute set.

The opcodes are those that ``torch.load`` accepts with ``weights_only=True``. Classes and functions the pickle
refers to are compared with a list by name, never looked up, and tensors become descriptions of themselves.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any

from qaf_core.data.weights.checkpoints import WRAPPERS, is_averaged
from qaf_core.data.weights.entries import DTYPE_BYTES, LONGEST_NAME

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8",
    "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128",
    "QInt8Storage": "QI8", "QUInt8Storage": "QU8", "QInt32Storage": "QI32",
}  # fmt: skip
ELEMENT_BYTES = {**DTYPE_BYTES, "C128": 16, "QI8": 1, "QU8": 1, "QI32": 4}
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "complex64": "C64", "complex128": "C128", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_TENSORS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
_PARAMETERS = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
_ODD_TENSORS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_qtensor": "quantized",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "without data (on the meta device)",
    "_rebuild_device_tensor_from_numpy": "of another device",
    "_rebuild_wrapper_subclass": "of a special class",
}
_DICTS = {"OrderedDict", "defaultdict", "Counter", "dict"}
_OTHERS = {
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("collections", "Counter"),
    ("builtins", "dict"), ("torch", "Size"), ("torch", "device"), ("_codecs", "encode"),
    ("torch.serialization", "_get_layout"), ("torch.nn.parameter", "Parameter"), ("torch", "Tensor"),
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch", "per_tensor_affine"),
    ("torch", "per_channel_affine"),
}  # fmt: skip
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_NOTHING = {"PROTO", "FRAME"}
#: Modules whose classes are no networks.
_NO_NETWORKS = ("numpy", "argparse", "builtins", "collections", "posix", "os", "nt", "subprocess", "pathlib")


class DamagedPickle(Exception):
    """The pickle is cut off, malformed, or of a kind no state dict is."""


class ForeignObject(Exception):
    """The pickle refers to something that a file of weights has no need of; the message names it.

    Attributes:
        kind: ``network`` of a whole module, ``torchscript`` or ``exported`` of a program, else empty.
    """

    def __init__(self, what: str, kind: str = "") -> None:
        super().__init__(what)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class StorageEntry:
    """A run of elements, shared by one or more tensors: type, name in the file, number of elements."""

    dtype: str
    key: str
    numel: int


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A tensor as the pickle describes it; ``odd`` says why it cannot be used."""

    storage: StorageEntry | None = None
    dtype: str = ""
    shape: tuple[Any, ...] = ()
    odd: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Name:
    """A class or function the pickle refers to."""

    module: str
    name: str


@dataclass(kw_only=True)
class PickleReader:
    """One pickle, read from where the file stands.

    Attributes:
        storages: Those the pickle mentions, by key, once it is read.
    """

    storages: dict[str, StorageEntry] = field(default_factory=dict)
    _stack: list[Any] = field(default_factory=list)
    _below: list[list[Any]] = field(default_factory=list)  # the stacks under each mark
    _memo: dict[int, Any] = field(default_factory=dict)

    def read(self, file: IO[bytes]) -> Any:
        """The object, in plain containers, strings, numbers and `TensorRecord`.

        Raises:
            ForeignObject: If it refers to any other class or function.
            DamagedPickle: If it cannot be read.
        """
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
            raise DamagedPickle(str(error)) from error
        raise DamagedPickle("no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "TUPLE":
            self._append(tuple(self._pop_to_mark()))
        elif name in _TUPLE_SIZES:
            size = _TUPLE_SIZES[name]
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._pop_to_mark()
            self._stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._pop_to_mark()
            self._stack[-1].update(_by_name(zip(items[::2], items[1::2], strict=True)))
        elif name not in _NOTHING:
            self._step_over_object(name, argument)

    def _step_over_object(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "GLOBAL":
            self._refer(*argument.split(" ", 1))
        elif name == "STACK_GLOBAL":
            symbol = stack.pop()
            self._refer(stack.pop(), symbol)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack.append(_rebuild(stack.pop(), arguments))
        elif name == "BUILD":  # attributes, such as the _metadata of a state dict: of no use here
            stack.pop()
        else:
            raise ForeignObject(f"an object made by the opcode {name}")

    def _refer(self, module: Any, name: Any) -> None:
        """Put a class or function on the stack, if it is a known one."""
        if _is_known(module, name):
            self._stack.append(_Name(module=module, name=name))
            return
        # A whole object begins with its class, and one of a dict follows its key.
        key = self._stack[-1] if self._stack and isinstance(self._stack[-1], str) else ""
        is_root = not self._stack and not self._below and not str(module).startswith(_NO_NETWORKS)
        network = is_root or str(module).startswith("torch.nn.") or key in WRAPPERS or is_averaged(key)
        under = f" under {key}" if key else ""
        raise ForeignObject(f"{module}.{name}{under}"[:LONGEST_NAME], kind="network" if network else "")

    def _append(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def _storage(self, reference: Any) -> StorageEntry:
        kind, storage_type, key, _location, numel = reference[:5]
        if kind != "storage" or type(numel) is not int or numel < 0 or not isinstance(key, str | int):
            raise ValueError("malformed storage")
        storage = StorageEntry(dtype=STORAGES[storage_type.name], key=str(key), numel=numel)
        self.storages[storage.key] = storage
        return storage


def _is_known(module: Any, name: Any) -> bool:
    return (
        (module in ("torch", "torch.storage") and (name in STORAGES or name in _DTYPES))
        or (module == "torch._utils" and (name in _TENSORS | _PARAMETERS or name in _ODD_TENSORS))
        or (module, name) in _OTHERS
    )


def _rebuild(function: Any, arguments: Any) -> Any:
    """What a call in the pickle would give, in plain terms."""
    if not isinstance(function, _Name):
        raise ForeignObject("a call of something that is no function")
    name = function.name
    if name in _ODD_TENSORS:
        return TensorRecord(odd=_ODD_TENSORS[name])
    if name in _PARAMETERS:
        return arguments[0]
    if name == "_rebuild_from_type_v2":
        return _rebuild(arguments[0], arguments[2])
    if name in _TENSORS:
        storage, shape = arguments[0], tuple(arguments[2])
        if not isinstance(storage, StorageEntry):
            raise ValueError("a tensor without storage")
        dtype = _DTYPES[arguments[6].name] if name == "_rebuild_tensor_v3" else storage.dtype
        return TensorRecord(storage=storage, dtype=dtype, shape=shape)
    if name in _DICTS:
        pairs = arguments[-1] if arguments and isinstance(arguments[-1], list | dict) else []
        return _by_name(pairs.items() if isinstance(pairs, dict) else pairs)
    if name == "Size":
        return tuple(arguments[0])
    return function  # of no use for weights: a device, a layout, bytes


def _by_name(pairs: Iterable[Any]) -> dict[Any, Any]:
    """A dict, if its names can be hashed at once: of tuples nested in themselves that would take for ever."""
    mapping = {}
    for name, value in pairs:
        if not isinstance(name, str | int | float):
            raise ValueError("a name that is no text")
        mapping[name] = value
    return mapping
