"""Sentences that were kept are told in other languages by the templates kept beside them."""

from __future__ import annotations

import json

import pytest

from qaf_core.deploy.onnx_export.report import Check
from qaf_core.pipeline.check.class_order import ClassOrder
from qaf_core.pipeline.check.findings import describe_order
from qaf_core.pipeline.check.plausibility import Finding
from qaf_core.records import from_plain, to_plain
from qaf_core.text import said
from qaf_core.text.catalogue import translator
from qaf_core.text.said import from_plain as read_template
from qaf_core.text.said import listing, retell, said_of, say, templates_of

JAPANESE = translator("ja")
TOLD = say("split by seed {seed}", seed=17)


def test_a_kept_sentence_is_told_in_another_language() -> None:
    kept = json.loads(json.dumps(templates_of(TOLD, "as it stands")))
    assert list(kept) == ["split by seed 17"]
    assert retell("split by seed 17", kept, JAPANESE) == "シード 17 で分割"
    assert said_of("split by seed 17", kept).text() == "split by seed 17"


@pytest.mark.parametrize(
    "kept",
    [
        {}, {"x": 1}, {"split by seed 17": "other words"}, {"split by seed 17": {"template": "{a} {"}},
        {"split by seed 17": {"template": "{a.__class__}", "values": {"a": 1}}},
        {"split by seed 17": {"template": "a lie {seed}", "values": {"seed": 17}}},
    ],
)  # fmt: skip
def test_what_cannot_be_told_by_a_template_stays_as_it_was(kept: dict[str, object]) -> None:
    assert retell("split by seed 17", kept, JAPANESE) == "split by seed 17"


@pytest.mark.parametrize("values", [[1, 2], "seed", 3])
def test_values_without_names_are_refused(values: object) -> None:
    with pytest.raises(ValueError, match="without names"):
        read_template({"template": "split by seed {seed}", "values": values})


def test_findings_are_told_in_japanese_after_they_were_kept() -> None:
    order = ClassOrder(order=(1, 0), as_is=0.1, value=0.9, p_value=0.0, moved=2, sorted_names=True)
    found = describe_order(order, ["cat", "dog"], 100)
    assert "of 100 images 10.0 % are right as they are" in found.sentence
    again = from_plain(Finding, json.loads(json.dumps(to_plain(found))))
    sentence, remedy = again.told(JAPANESE)
    assert sentence == (
        "出力の順序がクラスの順序と異なるようです。100 枚のうち、現在の順序では 10.0 %、"
        "名前順に並べ替えると 90.0 % が正解です。"
    )
    assert "dog, cat" in remedy
    assert again.told(str) == (found.sentence, found.remedy)


def test_checks_of_exports_are_told_in_japanese() -> None:
    check = Check.of(say("integer operators"), True, say("on the processor, as it is"))
    again = from_plain(Check, json.loads(json.dumps(to_plain(check))))
    assert again.told(JAPANESE) == "整数演算: CPU でそのまま実行"
    assert Check(name="old", passed=True, detail="kept before").told(JAPANESE) == "old: kept before"


def test_names_are_joined_by_the_commas_of_the_language() -> None:
    say_in_japanese = translator("ja")
    few, many = listing(["a", "b"]), listing("abcdefg", limit=2)
    assert (few.text(), few.text(say_in_japanese)) == ("a, b", "a、b")
    assert many.text() == "a, b and 5 more"
    assert many.text(say_in_japanese).startswith("a、b")
    kept = json.loads(json.dumps(said.to_plain(many)))
    assert said.from_plain(kept).text(say_in_japanese) == many.text(say_in_japanese)
