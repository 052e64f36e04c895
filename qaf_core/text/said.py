"""Findings as a template and its values, so that a catalogue of another language can hold the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Translate = Callable[[str], str]


def untranslated(text: str) -> str:
    """The translation function of those who want English."""
    return text


@dataclass(frozen=True)
class Said:
    """One sentence.

    Attributes:
        template: In English, with ``{name}`` where a value stands; the key of the catalogues.
        values: Plain JSON values by name; a ``Said`` is put in words first.
    """

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def text(self, _: Translate = untranslated) -> str:
        """The sentence in the language of ``_``."""
        values = {
            key: value.text(_) if isinstance(value, Said) else value for key, value in self.values.items()
        }
        return _(self.template).format(**values)


def say(template: str, **values: Any) -> Said:
    """A sentence of a template and its values."""
    return Said(template, values)
