"""How the command line prints, and in which language: lines, JSON objects, tables, costs.

The language is that of ``--lang``, else of ``QAF_LANG``, else what the system is set to.
"""

from __future__ import annotations

import json
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qaf_core.pipeline.events import stage_text
from qaf_core.text.catalogue import translator
from qaf_core.text.said import Said, Translate, listing, said_of, say, untranslated
from qaf_core.text.units import count_text, percent_text, size_text, times_text, with_prefix

if TYPE_CHECKING:
    from qaf_core.pipeline.events import RunEvent

VARIABLE = "QAF_LANG"
_SYSTEM = ("LC_ALL", "LC_MESSAGES", "LANG")
_translate: Translate = untranslated
_SKIPPED_NAMED = 3


def choose_language(named: str | None = None) -> None:
    """Tell everything from now on in a language.

    Args:
        named: Its code; None for what the environment says.

    Raises:
        QafError: If there is no catalogue of the language named here, or in ``QAF_LANG``.
    """
    global _translate
    _translate = untranslated
    _translate = translator(named or os.environ.get(VARIABLE) or system_language(os.environ))


def system_language(environment: Mapping[str, str]) -> str:
    """``ja`` where the system speaks Japanese, else ``en``; the first variable that is set counts."""
    language = next((environment[name] for name in _SYSTEM if environment.get(name)), "")
    return "ja" if language.startswith("ja") else "en"


def _(text: str) -> str:
    """A text in the language of the command line."""
    return _translate(text)


def status_word(status: str) -> str:
    """How far a run is, or how it ended; a catalogue tells it from what a check comes to."""
    word = _(f"run: {status}")
    return status if word.startswith("run: ") else word


def echo(template: str, **values: Any) -> None:
    """Print a line."""
    print(Said(template, values).text(_), flush=True)


def warn(template: str, **values: Any) -> None:
    """Print a line on stderr."""
    print(Said(template, values).text(_), file=sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object; numbers JSON does not know (NaN, infinity) become null."""
    print(json.dumps(_finite(value)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_stage(event: RunEvent) -> None:
    """A line on stderr for a terminal; a script finds only faults there."""
    if sys.stderr.isatty():
        print(stage_text(event.data, _), file=sys.stderr)


def print_prediction(predicted: dict[str, Any]) -> None:
    """Print what is expected of a plan."""
    low, high = predicted["ci95"]
    echo(
        "expected {metric} {value} (95 %: {low} to {high}), learnt from {source}",
        metric=predicted["metric"],
        value=percent_text(predicted["value"]),
        low=percent_text(low),
        high=percent_text(high),
        source=predicted["learnt_from"],
    )
    named = ", ".join(f"{row['name']} ({percent_text(row['share'], 0)})" for row in predicted["worst"])
    if named:
        echo("most harm is done by {named}", named=named)
    if predicted["unknown"]:
        echo(
            "nothing is known of {layers}: what they harm is not counted",
            layers=", ".join(predicted["unknown"]),
        )
    if predicted["warning"]:
        collapse = say(
            "The network is expected to collapse under this plan. Most harm is done by {layers}.",
            layers=named,
        )
        echo("warning: {warning}", warning=collapse)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell; the header is told in the user's language."""
    lines = [[_(cell) if cell else "" for cell in header], *rows]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def _width(text: str) -> int:
    """Columns of a terminal that a text takes: signs of East Asia two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def print_images(data: dict[str, Any]) -> None:
    """Print how images were split and which of them are left out, where there is something to tell.

    Args:
        data: As in a run's result: ``split``, ``skipped`` (rows of ``name`` and ``reason``) and
            ``skipped_count``, and ``warnings`` in words; each may be missing.
    """
    kept = data.get("said") or {}
    for warning in data.get("warnings") or ():
        echo("warning: {warning}", warning=said_of(warning, kept))
    if data.get("split"):
        echo("images: {split}", split=said_of(data["split"], kept))
    skipped = data.get("skipped") or []
    count = data.get("skipped_count", len(skipped))
    if count:
        named = [f"{image['name']} ({image['reason']})" for image in skipped[:_SKIPPED_NAMED]]
        images = (
            listing(named, limit=count)
            if count == len(named)
            else say("{names} and {count} more", names=", ".join(named), count=f"{count - len(named):,}")
        )
        if count == 1:
            echo("1 image is left out, unreadable: {images}", images=images)
        else:
            echo("{count:,} images are left out, unreadable: {images}", count=count, images=images)


def print_costs(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Print the original's cost beside the compressed network's."""
    quantities: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        (_("parameters"), "params", count_text),
        (_("size"), "size_bytes", size_text),
        (_("operations"), "macs", lambda value: with_prefix(value, "MACs")),
        (_("bit operations"), "bops", lambda value: with_prefix(value, "BOPs")),
    )
    rows = [
        (title, show(before[field]), show(after[field]), times_text(before[field], after[field]))
        for title, field, show in quantities
    ]
    print_table(("", "original", "compressed", "smaller"), rows)


def describe_usage(error: Any) -> Said:
    """One sentence without its full stop.

    Args:
        error: An error of click, of which Typer may carry a copy of its own: known by its name.
    """
    kind, name = type(error).__name__, _named(error)
    if kind == "NoSuchOption":
        possible = list(getattr(error, "possibilities", None) or ())
        if possible:
            return say("there is no option {name} (did you mean {possible}?)", name=name, possible=possible)
        return say("there is no option {name}", name=name)
    if kind == "MissingParameter":
        return say("{name} is missing", name=name)
    if kind == "BadOptionUsage":
        return say("{name} needs a value", name=name)
    if kind == "BadParameter":
        return say("the value of {name} cannot be used: {fault}", name=name, fault=Said(_message(error)))
    if kind in ("UsageError", "NoSuchCommand") and "No such command" in _message(error):
        return say("there is no such command: {name}", name=_message(error).split("'")[1])
    return Said(_message(error))


def _message(error: Any) -> str:
    return str(getattr(error, "message", None) or error.format_message()).rstrip(".")


def _named(error: Any) -> str:
    """The option or argument an error is about, as it is typed."""
    if getattr(error, "option_name", None):
        return str(error.option_name)
    parameter = getattr(error, "param", None)
    if parameter is None:
        return str(getattr(error, "param_hint", None) or "?")
    options = [text for text in getattr(parameter, "opts", ()) if text.startswith("-")]
    return options[-1] if options else str(parameter.name).upper()
