"""The languages, and their catalogues: what stands for an English text, a file for each part."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from pathlib import Path

from qaf_core.errors import QafError
from qaf_core.text.plain import PLAIN_WORDS
from qaf_core.text.said import Translate, untranslated

#: What each language calls itself.
LANGUAGES = {"en": "English", "ja": "日本語"}
_FOLDER = Path(__file__).parent


def translator(language: str, *, plain: bool = False) -> Translate:
    """The function that puts an English text into a language; a text without translation stays English.

    Args:
        language: Its code.
        plain: Whether plain words stand in place of the field's own.

    Raises:
        QafError: If there is no catalogue of this language.
    """
    if language not in LANGUAGES:
        raise QafError("unknown language", got=language[:40], expected=", ".join(LANGUAGES))
    if language == "en":
        return (lambda text: PLAIN_WORDS.get(text, text)) if plain else untranslated
    texts = read_catalogue(language)
    if plain:
        return lambda text: texts.get(PLAIN_WORDS.get(text, text), text)
    return lambda text: texts.get(text, text)


@lru_cache(maxsize=4)
def read_catalogue(language: str) -> dict[str, str]:
    """The translations of a language by English text."""
    texts: dict[str, str] = {}
    for path in sorted((_FOLDER / language).glob("*.toml")):
        with path.open("rb") as file:
            for part in tomllib.load(file).values():
                texts.update(part)
    return texts
