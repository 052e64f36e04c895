"""The glossary is whole: every term explained, in every language, and every hint of a screen names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import qaf_core
from qaf_core.factorization.options import METHODS
from qaf_core.factorization.structures import STRUCTURES
from qaf_core.network.plan.layer_info import KEEP
from qaf_core.text.catalogue import read_catalogue, translator
from qaf_core.text.glossary import GLOSSARY, GROUPS, meaning, meanings_by_title

DASHBOARD = Path(qaf_core.__file__).parent.parent / "dashboard"
COLUMNS = {"text": 1, "number": 2, "percent": 1, "factor": 1}  # of widgets.columns: where the term stands
# Of issue and README: what people met on the screens without a word of explanation.
ASKED_FOR = (
    *("rank", "bits", "admm", "bops", "calibration", "layer_error", "output_error", "agreement", "paired"),
    *("interval", "sensitivity", "harm", "front", "knee"),
)


def test_every_term_is_explained_in_a_sentence_or_two() -> None:
    assert set(ASKED_FOR) <= set(GLOSSARY)
    for key, term in GLOSSARY.items():
        assert term.group in GROUPS, key
        assert term.meaning.endswith("."), key
        assert 20 < len(term.meaning) < 300, key
        assert 1 <= len(re.findall(r"[.:](?: |$)", term.meaning)) <= 5, key
    assert len({term.title for term in GLOSSARY.values()}) == len(GLOSSARY)


@pytest.mark.parametrize("name", [*STRUCTURES, KEEP, *METHODS])
def test_structures_and_methods_are_terms(name: str) -> None:
    assert name in GLOSSARY


def test_every_term_is_explained_in_japanese() -> None:
    texts, japanese = read_catalogue("ja"), re.compile(r"[\u3041-\u30ff\u4e00-\u9fff]")
    for key, term in GLOSSARY.items():
        assert term.title in texts, key
        assert japanese.search(texts[term.meaning]), key
        assert texts[term.meaning].endswith(("。", "ms")), key
    assert meaning("rank", translator("ja")).startswith("層を再現する")


def test_titles_lead_to_meanings_in_each_language() -> None:
    assert meanings_by_title(translator("en"))["Agreement"] == meaning("agreement")
    assert meanings_by_title(translator("ja"))["一致率"] == meaning("agreement", translator("ja"))


def terms_named() -> list[tuple[str, str]]:
    """What screens ask the glossary for, by file."""
    found = []
    for path in sorted(DASHBOARD.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            told = []
            if getattr(node.func, "id", "") == "meaning":
                told = node.args[:1]
            elif isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "columns":
                place = COLUMNS.get(node.func.attr, 99)
                told = node.args[place : place + 1] + [
                    part.value for part in node.keywords if part.arg == "term"
                ]
            found += [
                (path.name, part.value)
                for part in told
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
    return found


def test_every_hint_names_a_term() -> None:
    named = terms_named()
    assert len(named) > 40
    assert [(path, term) for path, term in named if term not in GLOSSARY] == []
