"""Plain words stand for words the screens use, cover every end of a solve, and exist in every language."""

from __future__ import annotations

import pytest

from qaf_core.factorization.options import Status
from qaf_core.review.labels import solve_labels
from qaf_core.text.catalogue import read_catalogue, translator
from qaf_core.text.plain import PLAIN_WORDS
from tests.text.test_text import TEXTS, fields

PLAIN_ALREADY = ("At work", "Stopped")


def test_they_stand_for_what_screens_say() -> None:
    assert [text for text in PLAIN_WORDS if text not in TEXTS] == []
    assert [told for told in PLAIN_WORDS.values() if told in PLAIN_WORDS] == []


def test_they_take_the_same_values() -> None:
    assert {text: told for text, told in PLAIN_WORDS.items() if fields(text) != fields(told)} == {}


def test_every_end_of_a_solve_has_a_word_that_does_not_read_as_a_failure() -> None:
    labels = solve_labels(str)
    assert {*map(str, Status), "solving"} == set(labels)
    told = {status: translator("en", plain=True)(label) for status, label in labels.items()}
    assert all(label in PLAIN_WORDS or label in PLAIN_ALREADY for label in labels.values())
    assert told[Status.MAX_ITERATIONS] == "Best in given steps"
    assert len(set(told.values())) == len(told)


def test_they_are_told_in_the_language() -> None:
    assert translator("ja", plain=True)("Limit reached") == "規定反復内で最良"
    assert translator("ja")("Limit reached") == "反復上限"
    assert translator("ja", plain=True)("Models") == translator("ja")("Models")
    assert translator("en", plain=True)("Models") == "Models"


@pytest.mark.parametrize("told", sorted(set(PLAIN_WORDS.values())))
def test_they_have_a_translation(told: str) -> None:
    assert told in read_catalogue("ja")
