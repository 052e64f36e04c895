"""The state of a page in its address, so that F5, Back, Forward and a sent link bring the page back.

A page binds what is to be kept where it draws the widget::

    limit = st.selectbox(_("Largest loss"), LIMITS, key=address.choice("loss", LIMITS, "any"))
    shown = st.pills(_("Methods"), names, selection_mode="multi", key=address.several("method", names, names))
    least = st.number_input(_("Accuracy"), 0.0, 100.0, key=address.number("accuracy", None, 0.0, 100.0))
    words = st.text_input(_("Search"), key=address.text("find"))
    table = st.toggle(_("As a table"), key=address.choice("table", (False, True), False))

Each gives the widget's key; its value stands in the session before the widget is drawn, so the widget is
given no ``index``, ``value``, ``default`` or ``persist_state``. Options are told apart by ``str``: use ids,
never words of a language (``format_func`` shows these). Without a widget, read and set
``st.session_state[key]``; set it before it is bound or in a callback. What is no such value uses `given` and
`tell`; `tell` after binding has a default stand in the address too.

The session's value counts, even after a look at another page; one that a followed address names goes before
it. Back and Forward restore all: what the address does not name is as at first. A value that is the default
is left out. What an address says is foreign: values that cannot be are left out and told (`faults`).

`drawing` surrounds a page and writes the address once, at its end; a fragment that binds ends with `settle`
(``ui.guarded`` does both right). Nothing else writes to ``st.query_params``: then a late click, which still
carries the address of a moment ago, cannot be mistaken for a link that was followed.

Streamlit's own ``bind="query-params"`` puts the words shown into the address, which are another language's
elsewhere, leaves no step to go back to, and holds nothing but single widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from dashboard.text import _

STATE_KEY = "address"
MOST_PENDING = 32
LONGEST_TEXT = 1000
LONGEST_TOLD = 40
Values = tuple[str, ...]


@dataclass(kw_only=True)
class _Address:
    """What a session knows of its address.

    Attributes:
        page: The page it was drawn for last.
        drawing: Whether a whole page is being drawn, which writes at its end.
        going_back: Whether it was come to by Back or Forward.
        named: What it named when it was come to, and nobody has taken up yet.
        met: The names bound or told since then.
        bound: What is to stand in it; nothing for a default.
        kept: The values by key, which outlive their widgets.
        defaults: The defaults by key when the values were kept.
        written: The addresses that a click may still carry, oldest first.
        faults: What it says that cannot be, in words.
    """

    page: str = ""
    drawing: bool = False
    going_back: bool = False
    named: dict[str, Values] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)
    bound: dict[str, Values] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    written: list[dict[str, Values]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def choice(name: str, options: Sequence[Hashable], default: Hashable, *, key: str | None = None) -> str:
    """Bind one of some options, or ``default``, which may be none of them; the widget's key."""
    by_text = {str(option): option for option in options}
    return _bind(
        name, key, default,
        fit=lambda value: value if value in options else default,
        read=lambda texts: by_text[texts[-1]],
        write=lambda value: (str(value),),
    )  # fmt: skip


def several(name: str, options: Sequence[Hashable], default: Sequence[Any], *, key: str | None = None) -> str:
    """Bind any number of some options, as a list; the widget's key."""
    by_text = {str(option): option for option in options}

    def read(texts: Values) -> list[Any]:
        """Those that there are, whatever else is named; of the others the first is told."""
        named = [text for text in dict.fromkeys(texts) if text]
        known = [by_text[text] for text in named if text in by_text]
        unknown = [text for text in named if text not in by_text]
        for text in unknown[:1]:
            fault(name, text)
        return known if known or not unknown else list(default)

    return _bind(
        name, key, list(default),
        fit=lambda value: _still(value, options, default),
        read=read,
        write=lambda value: tuple(map(str, value)) or ("",),
    )  # fmt: skip


def _still(value: Sequence[Any], options: Sequence[Hashable], default: Sequence[Any]) -> list[Any]:
    """What of a value there still is; the default where nothing of it is left."""
    kept = [each for each in value if each in options]
    return kept if kept or not value else list(default)


def number(name: str, default: float | None, low: float, high: float, *, key: str | None = None) -> str:
    """Bind a number between two others, of the type of the lower; None for none; the widget's key."""

    def read(texts: Values) -> float:
        value = type(low)(texts[-1])
        if not low <= value <= high:
            raise ValueError
        return value

    return _bind(
        name, key, default,
        fit=lambda value: value if value is not None and low <= value <= high else default,
        read=read,
        write=lambda value: (f"{value:.12g}",),
    )  # fmt: skip


def text(name: str, default: str = "", *, key: str | None = None) -> str:
    """Bind a line of text; the widget's key."""

    def read(texts: Values) -> str:
        if len(texts[-1]) > LONGEST_TEXT or not texts[-1].isprintable():
            raise ValueError
        return texts[-1]

    return _bind(name, key, default, fit=lambda value: value, read=read, write=lambda value: (value,))


def values_of(name: str) -> Values:
    """What the address that was come to says of a name, until something is told of it."""
    return _state().named.get(name, ())


def going_back(name: str) -> bool:
    """Whether Back or Forward led here, and nothing was told of a name since."""
    state = _state()
    return state.going_back and name not in state.met


def leave_back() -> None:
    """Have Back and Forward restore nothing that is bound from here on: the page has set it itself."""
    _state().going_back = False


def set_values(name: str, *values: str) -> None:
    """Have the address say something of a name; without values, nothing."""
    state = _state()
    state.met.add(name)
    state.named.pop(name, None)
    state.bound[name] = values


def fault(name: str, value: str) -> None:
    """Note that the address says of a name what cannot be."""
    _note_fault(_state(), name, value)


def _note_fault(state: _Address, name: str, value: str) -> None:
    shown = value if len(value) <= LONGEST_TOLD else value[:LONGEST_TOLD] + "…"
    template = _("The address asks for {name} “{value}”, which is not known here: it is left out.")
    state.faults.append(template.format(name=name, value=shown))


def faults() -> list[str]:
    """What the address says that cannot be, each told once; foreign text."""
    state = _state()
    notes, state.faults = list(dict.fromkeys(state.faults)), []  # a page that leads on names them twice
    return notes


@contextmanager
def drawing(page: str) -> Iterator[None]:
    """Draw a whole page: look how it was come to, and write its address at the end."""
    state, now = _state(), _read()
    context = get_script_run_ctx()
    going_back = context is not None and context.is_history_navigation
    if page != state.page or going_back or now not in state.written:
        state.page, state.going_back, state.named = page, going_back, dict(now)
        state.met, state.written = set(), [now]
    else:
        del state.written[: state.written.index(now)]
    state.bound, state.drawing = {}, True
    try:
        yield
    finally:
        state.drawing = False
    settle()


def settle() -> None:
    """Write the address where it says other than what is bound; while a whole page is drawn, nothing."""
    state = _state()
    if state.drawing:
        return
    now = _read()
    target = {name: values for name, values in now.items() if name not in state.met}
    target |= {name: values for name, values in state.bound.items() if values}
    if target != now:
        state.written = [*state.written, target][-MOST_PENDING:]
        st.query_params.from_dict(target)


def _bind(
    name: str,
    key: str | None,
    default: Any,
    *,
    fit: Callable[[Any], Any],
    read: Callable[[Values], Any],
    write: Callable[[Any], Values],
) -> str:
    state = _state()
    key = key or f"{state.page}-{name}"
    restored = state.going_back and name not in state.met
    value = st.session_state.get(key, state.kept.get(key, default))
    value = default if restored or value == state.defaults.get(key, default) else fit(value)
    wrong = None
    if state.named.get(name):
        try:
            value = read(state.named[name])
        except (ValueError, KeyError, OverflowError):
            wrong = state.named[name][-1]
    # Only what differs: a widget whose value is set in the session loses what is being typed into it.
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value
    # From here on nothing ends the run, as each use of the session may.
    state.named.pop(name, None)
    state.met.add(name)
    state.kept[key], state.defaults[key] = value, default
    state.bound[name] = () if value == default else write(value)
    if wrong is not None:
        _note_fault(state, name, wrong)
    return key


def _state() -> _Address:
    state: _Address = st.session_state.setdefault(STATE_KEY, _Address())
    return state


def _read() -> dict[str, Values]:
    return {name: tuple(st.query_params.get_all(name)) for name in st.query_params}
