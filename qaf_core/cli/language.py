"""The language of the command line: ``--lang``, else ``QAF_LANG``, else what the system is set to."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from qaf_core.text.catalogue import translator
from qaf_core.text.said import Said, Translate, untranslated

VARIABLE = "QAF_LANG"
_SYSTEM = ("LC_ALL", "LC_MESSAGES", "LANG")
_translate: Translate = untranslated


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
    told = next((environment[name] for name in _SYSTEM if environment.get(name)), "")
    return "ja" if told.startswith("ja") else "en"


def _(text: str) -> str:
    """A text in the language of the command line."""
    return _translate(text)


def status_word(status: str) -> str:
    """How far a run is, or how it ended; a catalogue tells it from what a check comes to."""
    told = _(f"run: {status}")
    return status if told.startswith("run: ") else told


def tell(template: str, **values: Any) -> None:
    """Print a line."""
    print(Said(template, values).text(_), flush=True)


def warn(template: str, **values: Any) -> None:
    """Print a line on stderr."""
    print(Said(template, values).text(_), file=sys.stderr)
