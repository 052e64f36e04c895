"""Text from outside is shown as it stands."""

from __future__ import annotations

import ast
from types import SimpleNamespace

import pytest

from dashboard import text as texts
from dashboard.widgets import ui

from .conftest import ROOT, Draw

HOSTILE = (
    "![x](https://evil.example/a.png)", "<b>b</b>", ":red[x]", "$x^2$", "# h", "- item", "1. item", "> q",
    "**b** _i_ ~~s~~ `c`", "www.evil.example", "https://evil.example/a", "a@evil.example", ":smile:",
    ":material/home:", "a -> b <- c", "&lt;", "| a | b |", "[a](javascript:alert(1))", "C:\\x\\*y*", "---",
    ":red-background[x]", "- [ ] x", "+ a", "layer_1_x: (2, 3); pass --x.",
)  # fmt: skip


@pytest.mark.parametrize("text", ["weights hold NaN; got layer1.0.conv1.", "98 % of 256 images", "my/parts"])
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert ui.plain(text) == text


def test_marks_are_escaped_and_lines_joined() -> None:
    assert ui.plain("<b>\n:red[x]") == "\\<b\\> \\:red\\[x\\]"
    assert ui.plain("![x](y)") == "!\\[x\\](y)"
    assert ui.plain("1. a") == "1\u2060. a"


def test_what_is_cached_does_not_depend_on_the_language() -> None:
    """Functions that are cached and put something in words, by others of their module too, are told it."""
    for path in sorted((ROOT / "dashboard").rglob("*.py")):
        made = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        named = {
            node.name: {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} for node in made
        }
        speaks = {"_", "plural"}
        while more := {name for name, used in named.items() if used & speaks} - speaks:
            speaks |= more
        for node in made:
            if any("st.cache_" in ast.unparse(mark) for mark in node.decorator_list) and node.name in speaks:
                assert "in_language" in [given.arg for given in node.args.args], f"{path}: {node.name}"


def test_cards_are_in_the_language_of_the_session(draw: Draw) -> None:
    cards = [
        "".join(str(block.proto.body) for block in draw("explore", lang=language).get("html"))
        for language in ("en", "ja")
    ]
    assert ["Parameters" in card for card in cards] == [True, False]
    assert ["表面検査" in card for card in cards] == [False, True]


@pytest.mark.parametrize(
    ("chosen", "address", "browser", "told"),
    [
        (None, None, "ja-JP", "ja"),
        (None, None, "ja", "ja"),
        (None, None, "de-DE", "en"),
        (None, None, None, "en"),
        (None, "en", "ja-JP", "en"),
        (None, "xx", "ja-JP", "ja"),
        ("ja", "en", "en-GB", "ja"),
    ],
)
def test_the_language_is_the_chosen_one_else_the_addresss_else_the_browsers(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, address: str | None, browser: str | None, told: str
) -> None:
    session = {} if chosen is None else {texts.LANGUAGE_KEY: chosen}
    query = {} if address is None else {texts.ADDRESS_KEY: address}
    page = SimpleNamespace(session_state=session, query_params=query, context=SimpleNamespace(locale=browser))
    monkeypatch.setattr(texts, "st", page)
    assert texts.language() == told
