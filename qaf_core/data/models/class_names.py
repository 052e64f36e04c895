"""Names of classes from outside: a text file, a JSON list, the text kept with the weights, or torchvision."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from qaf_core.data.weights.entries import WeightsHeader
from qaf_core.errors import DataError, escape_text
from qaf_core.text.said import Said, either, say

LONGEST_NAME = 80
MOST_CLASSES = 100_000
MOST_BYTES = 8 * 2**20
METADATA_KEYS = ("classes", "class_names")
#: What torchvision's published networks tell apart -> its list of names, and how many there are.
CATEGORY_LISTS = {
    "imagenet": ("_IMAGENET_CATEGORIES", 1000),
    "voc": ("_VOC_CATEGORIES", 21),
    "coco": ("_COCO_CATEGORIES", 91),
}
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
                say("class file {path} is too large", path=path.name),
                got=say("{size:,} bytes", size=size),
                expected=say("at most {most:,}", most=MOST_BYTES),
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, RuntimeError) as error:  # no permission, a name too long, an unknown ~user
        reason = getattr(error, "strerror", None) or "no such file"
        raise DataError(
            say("class file cannot be read: {path}", path=path),
            got=reason,
            expected=_ACCEPTED,
            remedy="check the path",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            say("class file {path} is no UTF-8 text", path=path.name), expected=_ACCEPTED
        ) from error
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


@lru_cache(maxsize=len(CATEGORY_LISTS))
def published_categories(data: str) -> tuple[str, ...]:
    """The classes of a public data set in the order in which published networks put them out.

    The names are torchvision's own, read from the file that holds them: importing torchvision would take
    seconds, as it loads torch. Without torchvision the classes are numbered.

    Args:
        data: `imagenet`, `voc` or `coco`.
    """
    attribute, count = CATEGORY_LISTS[data]
    names = _torchvision_list(attribute)
    if names is None or len(names) != count:
        return tuple(f"class {index}" for index in range(count))
    return clean_class_names(make_unique(names), f"torchvision's {attribute}")


def _torchvision_list(attribute: str) -> list[str] | None:
    with contextlib.suppress(ImportError, OSError, SyntaxError, AttributeError, ValueError):
        package = find_spec("torchvision")
        origin = None if package is None else package.origin
        if origin is not None:
            file = Path(origin).parent / "models" / "_meta.py"
            spec = spec_from_file_location("torchvision_meta_alone", file)
            if spec is not None and spec.loader is not None:
                module = module_from_spec(spec)
                spec.loader.exec_module(module)
                return list(getattr(module, attribute))
    return None


def make_unique(names: Iterable[str]) -> list[str]:
    """Names that stand twice get a number, as the COCO list's unused ``N/A``."""
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


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
            raise DataError(
                say("{where} names too many classes", where=where),
                expected=say("at most {most:,}", most=MOST_CLASSES),
            )
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                say("{where} has no name for class {number}", where=where, number=number),
                got=say("an empty line") if isinstance(name, str) else str(type(name).__name__),
                expected=_ACCEPTED,
            )
        shown = _shown(name)
        if shown in number_of:
            raise DataError(
                say("{where} has a name twice", where=where),
                got=say(
                    "{name}, for classes {one} and {other}",
                    name=shown,
                    one=number_of[shown],
                    other=number,
                ),
                remedy="tell them apart, for example by a number",
            )
        number_of[shown] = number
        cleaned.append(shown)
    if not cleaned:
        raise DataError(say("{where} names no classes", where=where), expected=_ACCEPTED)
    return tuple(cleaned)


def find_classes(names: Sequence[str], classes: Sequence[str], what: Said) -> list[int | None]:
    """The class that each name means: by the same spelling, else by another that means the same.

    Tried one after another, so that names that differ in case alone stay two classes where both are there:
    as it is, as it is shown, composed (Unicode NFC), without case, by compatibility (NFKC: full-width letters
    and ligatures), with ``_`` as a space.

    Args:
        names: Of folders, or in a list.
        classes: Of the model.
        what: What bears the names, for messages.

    Returns:
        A number of a class for each name, None where it is no class.

    Raises:
        DataError: If a name could mean two classes, or two names mean one.
    """
    tables = [_by_spelling(classes, spell) for spell in _SPELLINGS]
    numbers = [_find(name, classes, tables, what) for name in names]
    name_of: dict[int, str] = {}
    for name, number in zip(names, numbers, strict=True):
        if number is not None and name_of.setdefault(number, name) != name:
            raise DataError(
                say("two {what} are one class", what=what),
                got=say("{one} and {other}", one=_shown(name_of[number]), other=_shown(name)),
                expected=say("one for {classes}", classes=classes[number]),
                remedy="join them, or name their classes apart",
            )
    return numbers


def _find(
    name: str, classes: Sequence[str], tables: Sequence[Mapping[str, Sequence[int]]], what: Said
) -> int | None:
    for spell, table in zip(_SPELLINGS, tables, strict=True):
        numbers = table.get(spell(name), ())
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            raise DataError(
                say("one of the {what} could be two classes", what=what),
                got=_shown(name),
                expected=either(classes[number] for number in numbers),
                remedy="spell it as the class it is",
            )
    return None


def _by_spelling(classes: Sequence[str], spell: Callable[[str], str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        table.setdefault(spell(name), []).append(number)
    return table


def _shown(name: str) -> str:
    """A name fit to be shown: on one line, without control characters, not too long."""
    shown = escape_text(" ".join(name.split()))
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", _shown(unicodedata.normalize("NFC", name)))


def _without_case(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _compatible(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _spaced(name: str) -> str:
    return " ".join(_compatible(name).replace("_", " ").split())


#: From the same spelling to one that only means the same.
_SPELLINGS: tuple[Callable[[str], str], ...] = (str, _shown, _composed, _without_case, _compatible, _spaced)


def _parse(text: str, where: str) -> list[Any]:
    try:
        value = json.loads(text)
        if isinstance(value, dict):  # names by number, as {"0": "crack", …}
            value = [value[str(number)] for number in range(len(value))]
    except (ValueError, RecursionError) as error:
        raise DataError(
            say("{where} is no JSON list of names", where=where), got=_reason(error), expected=_ACCEPTED
        ) from error
    except KeyError as error:
        raise DataError(
            say("{where} has no name for class {number}", where=where, number=error.args[0]),
            expected=_ACCEPTED,
        ) from error
    if not isinstance(value, list):
        raise DataError(
            say("{where} is no JSON list of names", where=where), got=type(value).__name__, expected=_ACCEPTED
        )
    return value


def _reason(error: Exception) -> str:
    return "lists nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
