"""Every text a user sees goes through ``_``: the session's language, English where it has no translation.

Where the session wants plain words, ``_`` also puts them in place of the field's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import streamlit as st

from qaf_core.text import glossary
from qaf_core.text.catalogue import LANGUAGES, translator
from qaf_core.text.said import in_words

LANGUAGE_KEY = "language"
ADDRESS_KEY = "lang"
PLAIN_KEY = "plain-words"
PLAIN_ADDRESS_KEY = "plain"


def _(message: str) -> str:
    """The message in the session's language; itself where there is no translation."""
    return translation()(message)


def translation() -> Callable[[str], str]:
    """``_`` of the session's language as it is now: for thousands of texts, where each look for it counts."""
    return translator(language(), plain=plain_words())


def meaning(term: str) -> str:
    """What a term of the glossary means, for a tooltip.

    Args:
        term: A key of ``GLOSSARY``.
    """
    return glossary.meaning(term, translation())


def plural(singular: str, several: str, count: int) -> str:
    """The form of a message that fits ``count``, with ``{count}`` filled in.

    A catalogue holds the second form only: of its languages none tells one from several.
    """
    text = _(several)
    return (singular if count == 1 and text == several else text).format(count=count)


def listed(names: Iterable[object]) -> str:
    """Names after one another, with the commas of the session's language."""
    return str(in_words(list(names), translation()))


def language() -> str:
    """The session's language, such as ``en``: chosen, else named by the address, else the browser's."""
    chosen = st.session_state.get(LANGUAGE_KEY) or st.query_params.get(ADDRESS_KEY)
    return chosen if chosen in LANGUAGES else browser_language()


def plain_words() -> bool:
    """Whether the session wants plain words in place of the field's own."""
    return bool(st.session_state.get(PLAIN_KEY, st.query_params.get(PLAIN_ADDRESS_KEY) == "True"))


def browser_language() -> str:
    """The language the browser asks for, where there is a translation."""
    code = (st.context.locale or "").partition("-")[0].lower()
    return code if code in LANGUAGES else "en"
