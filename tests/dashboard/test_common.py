"""Text from outside is shown as it stands."""

from __future__ import annotations

import pytest

from dashboard.widgets import ui

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
