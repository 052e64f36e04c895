"""Every text a user sees goes through ``_``: gettext catalogues, with the English source text as fallback."""

from __future__ import annotations

import gettext
from functools import lru_cache
from pathlib import Path

import streamlit as st

DOMAIN = "qaf"
LANGUAGE_KEY = "language"
_FOLDER = Path(__file__).parent


def _(message: str) -> str:
    """The message in the session's language; itself where there is no translation."""
    return _catalogue(language()).gettext(message) if message else ""


def plural(singular: str, several: str, count: int) -> str:
    """The form of a message that fits ``count``, with ``{count}`` filled in."""
    return _catalogue(language()).ngettext(singular, several, count).format(count=count)


def language() -> str:
    """The session's language, a code such as ``en``."""
    return str(st.session_state.get(LANGUAGE_KEY, "en"))


@lru_cache(maxsize=8)
def _catalogue(code: str) -> gettext.NullTranslations:
    return gettext.translation(DOMAIN, localedir=str(_FOLDER), languages=[code], fallback=True)
