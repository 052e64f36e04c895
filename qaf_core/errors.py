"""Errors a user can mend: each says what is wrong, what was got, what is accepted and what to do."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from qaf_core.text.said import Said, Translate, from_plain, in_words, to_plain, untranslated


def escape_text(text: str) -> str:
    """Text from outside as it may be shown: control and direction characters as ``\\x1b``, ``\\u202e``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character).startswith("C")
        else character
        for character in text
    )


class QafError(Exception):
    """Bad input, told in one line.

    A text is a template with its values, made by ``say``, or a finished one; catalogues hold both, so that
    they are told in any language. What was got is data, and stands as it is unless it is made by ``say``.

    Args:
        what: The fault, naming the field, file or layer.
        got: What was found, if that helps.
        expected: What is accepted.
        remedy: What to do about it.
    """

    def __init__(
        self,
        what: str | Said,
        *,
        got: object = None,
        expected: object = None,
        remedy: str | Said | None = None,
    ) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.remedy = remedy
        super().__init__(self.text())

    def text(self, _: Translate = untranslated) -> str:
        """The line in the language of ``_``."""
        parts = {
            name: _part_text(name, getattr(self, name), _)
            for name in PIECES
            if getattr(self, name) is not None
        }
        form = frame(parts)
        if parts != {
            "what": _part_text("what", self.what, untranslated)
        }:  # a line that no catalogue has stays
            form = _(form)
        line = re.sub(r"\s+([.。])$", r"\1", form.format(**parts))
        return re.sub(r"([?？])[.。]$", r"\1", escape_text(" ".join(line.split())))

    def to_plain(self) -> dict[str, Any]:
        """Its parts as JSON can hold them; ``reread`` reads them."""
        return {name: to_plain(getattr(self, name)) for name in PIECES}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


#: How the parts of an error stand in its line.
PIECES = {"what": "{what}", "got": "got {got}", "expected": "expected {expected}", "remedy": "{remedy}"}


def frame(parts: Iterable[str]) -> str:
    """The line of an error that has these parts, a template of the catalogues."""
    return "; ".join(PIECES[name] for name in parts) + "."


def _part_text(name: str, part: object, _: Translate) -> str:
    text = _(part) if isinstance(part, str) and name != "got" else str(in_words(part, _))
    return text.rstrip(".。") if name in ("what", "remedy") else text


def _restore(kind: type[QafError], args: tuple[Any, ...], state: dict[str, Any]) -> QafError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def reread(stored: object, line: str) -> QafError:
    """An error that was stored.

    Args:
        stored: What ``to_plain`` gave; anything else where it was not kept.
        line: The error in English, for where its parts cannot be read.
    """
    try:
        return QafError(**{name: from_plain(part) for name, part in dict(stored).items()})  # type: ignore[call-overload]
    except (TypeError, ValueError, LookupError, AttributeError):
        return QafError(line)


class ModelError(QafError):
    """An unknown model, or a network that cannot be handled."""


class WeightsError(QafError):
    """Weights that are missing, damaged or made for another network."""


class DataError(QafError):
    """Images or labels that cannot be used."""


class PlanError(QafError):
    """A plan that is malformed, out of range, or made for another model."""


class SolverError(QafError):
    """A tensor or an option the solver cannot take."""


class WorkspaceError(QafError):
    """A workspace, port or file that cannot be used."""


class RunCancelled(Exception):
    """The user asked a run to stop; not a fault."""
