"""Errors a user can mend: each says what is wrong, what was got, what is accepted and what to do."""

from __future__ import annotations

import unicodedata


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

    Args:
        what: The fault, naming the field, file or layer.
        got: What was found, if that helps.
        expected: What is accepted.
        remedy: What to do about it.
    """

    def __init__(
        self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None
    ) -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.remedy = remedy
        parts = [what.rstrip(".")]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if remedy is not None:
            parts.append(remedy.rstrip("."))
        line = escape_text(" ".join("; ".join(parts).split()))
        super().__init__(line if line.endswith("?") else line + ".")


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
