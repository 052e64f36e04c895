"""Names of classes from outside: a text file, a JSON list, or the text kept with the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qaf_core.data.weights_header import WeightsHeader
from qaf_core.errors import DataError, escape_text

LONGEST_NAME = 80
MOST_CLASSES = 100_000
MOST_BYTES = 8 * 2**20
METADATA_KEYS = ("classes", "class_names")
_ACCEPTED = "a text file with one name a line, or a JSON list of names, in the order of the outputs"


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read the names of the classes, in the order of the network's outputs.

    Args:
        path: One name a line, or JSON: a list of names, or names by the number of their output.

    Raises:
        DataError: If the file cannot be read, or the names are empty, twice there, or too many.
    """
    path = Path(path)
    try:
        path = path.expanduser()
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(
                f"class file {path.name} is too large",
                got=f"{size:,} bytes",
                expected=f"at most {MOST_BYTES:,}",
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, RuntimeError) as error:  # no permission, a name too long, an unknown ~user
        reason = getattr(error, "strerror", None) or "no such file"
        raise DataError(
            f"class file cannot be read: {path}", got=reason, expected=_ACCEPTED, remedy="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"class file {path.name} is no UTF-8 text", expected=_ACCEPTED) from error
    where = f"class file {path.name}"
    if text.lstrip()[:1] in ("[", "{"):
        return clean_class_names(_parse(text, where), where)
    return clean_class_names(text.rstrip().splitlines(), where)


def class_names_in(header: WeightsHeader, file: str) -> tuple[str, ...] | None:
    """The names kept with the weights: JSON under ``classes`` in a safetensors file's metadata, or None.

    Raises:
        DataError: If there is such text and it is no list of names.
    """
    text = next((header.metadata[key] for key in METADATA_KEYS if key in header.metadata), None)
    if text is None:
        return None
    where = f"the class list in {file}"
    return clean_class_names(_parse(text, where), where)


def clean_class_names(names: Iterable[object], where: str) -> tuple[str, ...]:
    """Names fit to be shown: without control characters, not too long, each of them once.

    Args:
        names: In the order of the outputs.
        where: What they come from, for messages.

    Raises:
        DataError: If there are none or too many, or one is empty, no text, or there twice.
    """
    cleaned: list[str] = []
    number_of: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if number > MOST_CLASSES:
            raise DataError(f"{where} names too many classes", expected=f"at most {MOST_CLASSES:,}")
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{where} has no name for class {number}",
                got="an empty line" if isinstance(name, str) else str(type(name).__name__),
                expected=_ACCEPTED,
            )
        shown = escape_text(" ".join(name.split()))
        shown = shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"
        if shown in number_of:
            raise DataError(
                f"{where} has a name twice",
                got=f"{shown}, for classes {number_of[shown]} and {number}",
                remedy="tell them apart, for example by a number",
            )
        number_of[shown] = number
        cleaned.append(shown)
    if not cleaned:
        raise DataError(f"{where} names no classes", expected=_ACCEPTED)
    return tuple(cleaned)


def _parse(text: str, where: str) -> list[Any]:
    try:
        value = json.loads(text)
        if isinstance(value, dict):  # names by number, as {"0": "crack", …}
            value = [value[str(number)] for number in range(len(value))]
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is no JSON list of names", got=_reason(error), expected=_ACCEPTED
        ) from error
    except KeyError as error:
        raise DataError(f"{where} has no name for class {error.args[0]}", expected=_ACCEPTED) from error
    if not isinstance(value, list):
        raise DataError(f"{where} is no JSON list of names", got=type(value).__name__, expected=_ACCEPTED)
    return value


def _reason(error: Exception) -> str:
    return "lists nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
