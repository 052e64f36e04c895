"""The plans being made, one a model: what fills them, what was typed, steps back and forth, their files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import streamlit as st

from qaf_core.errors import QafError, WorkspaceError
from qaf_core.files import ContentCache, digest_of, write_file
from qaf_core.network.plan.rules import read_plan
from qaf_core.network.plan.types import Plan

CONTROLS = ("ratio", "bits", "structure", "activation-bits", "method")  # keys of the session, for all models
COLUMNS = ("structure", "rank", "bits")
BOOK_KEY = "plan-book"
FOLDER, DRAFTS = "plans", "drafts"
MOST_STEPS, LONGEST_NAME, ID_LENGTH = 200, 60, 12
Edits = Mapping[str, Mapping[str, str]]
Cell = tuple[str, str, str]  # layer, column, text


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What a model's plan is made from.

    Attributes:
        controls: The values of the controls, which fill all rows.
        base: A plan that fills them instead, or None.
        edits: What was typed since, right or wrong, by layer and column.
    """

    controls: Mapping[str, Any] = field(default_factory=dict)
    base: Plan | None = None
    edits: Edits = field(default_factory=dict)


@dataclass(kw_only=True)
class _Book:
    """The sheet of each model and those before and after it, and what is still to be done with them.

    Attributes:
        sheets: By model, without their controls.
        now, past, future: By model: the sheet as it was noted last, and the steps from and to it.
        taken: By model, the stamp of the last edit that was taken.
        restoring: Values of controls that a step brings back, until the controls have them.
        wiped: Whether typed values were replaced and nobody was told.
    """

    sheets: dict[str, Sheet] = field(default_factory=dict)
    now: dict[str, Sheet] = field(default_factory=dict)
    past: dict[str, list[Sheet]] = field(default_factory=dict)
    future: dict[str, list[Sheet]] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    restoring: Mapping[str, Any] = field(default_factory=dict)
    wiped: bool = False


def _book() -> _Book:
    """The session's. Each use of ``st.session_state`` may end a run at once: change the book without any."""
    book: _Book = st.session_state.setdefault(BOOK_KEY, _Book())
    return book


def sheet_of(model: str) -> Sheet:
    """What a model's plan is made from just now."""
    controls = {name: st.session_state.get(name) for name in CONTROLS}
    return replace(_book().sheets.get(model, Sheet()), controls=controls)


def fill(model: str, plan: Plan | None, edits: Edits | None = None) -> None:
    """Fill all rows of a model's plan: with a plan, or (None) from the controls; what was typed is undone."""
    book = _book()
    book.wiped |= edits is None and bool(book.sheets.get(model, Sheet()).edits)
    book.sheets[model] = Sheet(base=plan, edits=edits or {})


def follow_controls(model: str) -> None:
    """Fill the rows from the controls, where these are other than before.

    A browser that is behind sends values of widgets that are gone, which are told as changes too.
    """
    before = _book().now.get(model)
    if before is None or sheet_of(model).controls != before.controls:
        fill(model, None)


def wiped() -> bool:
    """Whether typed values were replaced since this was asked last."""
    book = _book()
    flag, book.wiped = book.wiped, False
    return flag


def type_in(model: str, *cells: Cell) -> None:
    """Take what was typed into cells."""
    book = _book()
    sheet = book.sheets.get(model, Sheet())
    edits = dict(sheet.edits)
    for layer, column, text in cells:
        edits[layer] = {**edits.get(layer, {}), column: text}
    book.sheets[model] = replace(sheet, edits=edits)


def take_typed(model: str, sent: Iterable[tuple[int, Cell]]) -> None:
    """Take what a table sends again and again until it is told it was taken: each once, in order."""
    book = _book()
    taken = book.taken.get(model, 0)
    waiting = sorted(edit for edit in sent if edit[0] > taken)
    type_in(model, *(cell for _stamp, cell in waiting))
    book.taken[model] = max([taken, *(stamp for stamp, _cell in waiting)])


def taken(model: str) -> int:
    """The stamp of the last edit that was taken."""
    return _book().taken.get(model, 0)


def note_step(model: str) -> None:
    """Remember the sheet as it is, if it is other than before: a step that can be undone."""
    sheet, book = sheet_of(model), _book()
    before = book.now.setdefault(model, sheet)
    if sheet != before:
        book.past[model] = [*book.past.get(model, ()), before][-MOST_STEPS:]
        book.now[model], book.future[model] = sheet, []


def can_step(model: str) -> tuple[bool, bool]:
    """Whether there is a step to undo, and one to do again."""
    book = _book()
    return bool(book.past.get(model)), bool(book.future.get(model))


def undo(model: str) -> None:
    """Go a step back."""
    book = _book()
    _step(book, model, book.past, book.future)


def redo(model: str) -> None:
    """Go a step forward again."""
    book = _book()
    _step(book, model, book.future, book.past)


def _step(book: _Book, model: str, source: dict[str, list[Sheet]], goal: dict[str, list[Sheet]]) -> None:
    if not source.get(model):
        return
    sheet = source[model].pop()
    goal.setdefault(model, []).append(book.now[model])
    book.now[model] = book.sheets[model] = sheet
    book.restoring = sheet.controls


def restore_controls() -> None:
    """Set the controls as a step had them, before they are bound."""
    book = _book()
    for name, value in book.restoring.items():
        st.session_state[name] = value
    book.restoring = {}


def keep_sheet(workspace: Path, model: str) -> str | None:
    """Keep what fills a model's plan beside the controls, for a while; its id, the same for the same.

    None where the controls alone make the plan, or nothing can be written.
    """
    sheet = sheet_of(model)
    if sheet.base is None and not sheet.edits:
        return None
    base = None if sheet.base is None else sheet.base.to_dict()
    content = {"model": model, "base": base, "edits": sheet.edits}
    cache, sheet_id = ContentCache(workspace / FOLDER / DRAFTS), digest_of(content)[:ID_LENGTH]
    if not cache.path(sheet_id).is_file():
        cache.keep(sheet_id, content)
    return sheet_id if cache.path(sheet_id).is_file() else None


def take_sheet(workspace: Path, model: str, sheet_id: str) -> bool:
    """Take up what was kept under an id; whether there is such a thing for this model."""
    if not re.fullmatch(rf"[0-9a-f]{{{ID_LENGTH}}}", sheet_id):
        return False
    sheet = ContentCache(workspace / FOLDER / DRAFTS).read(sheet_id)
    if sheet is None:
        return False
    try:
        if sheet["model"] != model:
            return False
        base = None if sheet["base"] is None else Plan.from_dict(sheet["base"])
        edits = {
            str(layer): {column: str(texts[column]) for column in COLUMNS if column in texts}
            for layer, texts in sheet["edits"].items()
        }
    except (QafError, TypeError, KeyError, AttributeError):
        return False
    fill(model, base, edits)
    return True


def named_plans(workspace: Path, model: str) -> dict[str, Plan]:
    """The plans that were kept for a model, by their names; files of the command line's form."""
    plans = {}
    for path in sorted((workspace / FOLDER).glob("*.json")):
        try:
            plan = read_plan(path)
        except QafError:
            continue
        if plan.model == model:
            plans[path.stem] = plan
    return plans


def keep_plan(workspace: Path, name: str, plan: Plan) -> str:
    """Keep a plan under a name, instead of one of that name; the name as it is kept.

    Raises:
        WorkspaceError: If it cannot be written, or nothing is left of the name.
    """
    kept = re.sub(r"[^\w .,()+-]+", "-", name)[:LONGEST_NAME].strip(" .-")
    if not kept:
        raise WorkspaceError("a plan needs a name", got=name or None, expected="letters or digits")
    write_file(workspace / FOLDER / f"{kept}.json", plan.to_json().encode())
    return kept


def delete_plans(workspace: Path, names: Iterable[str]) -> None:
    """Delete kept plans; names that are none are left alone."""
    for name in names:
        (workspace / FOLDER / f"{Path(name).name}.json").unlink(missing_ok=True)
