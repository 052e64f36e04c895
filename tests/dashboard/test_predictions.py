"""Images with their answers, as pages show them."""

from __future__ import annotations

from typing import Any

from streamlit.testing.v1 import AppTest

PICTURE = "data:image/jpeg;base64,AAAA"


def drawn(rows: list[dict[str, Any]]) -> str:
    test = AppTest.from_string(
        f"from dashboard.widgets import predictions\npredictions.show({rows!r})", default_timeout=30
    ).run()
    assert not test.exception
    return "".join(part.proto.body for part in test.get("html")) + "".join(row.value for row in test.caption)


def row(task: str, missed: float, invented: float) -> dict[str, Any]:
    right = not missed and not invented
    return {
        "image": PICTURE, "label": "<b>pit", "task": task, "right": right,
        "found": {"right": 1.0, "missed": missed, "invented": invented},
    }  # fmt: skip


def test_objects_are_counted_and_marked() -> None:
    text = drawn([row("detection", 1.0, 0.0), row("detection", 0.0, 0.0)])
    assert "✗ missed 1, invented 0" in text
    assert "✓ missed 0, invented 0" in text
    assert "missed (hatched or dashed)" in text
    assert "&lt;b&gt;pit" in text
    assert "against the truth" in text


def test_masks_are_told_in_shares_without_a_verdict() -> None:
    text = drawn([row("segmentation", 0.021, 0.0)])
    assert "missed 2.1 %, invented 0.0 %" in text
    assert "✗" not in text
    assert 'class="wrong"' not in text


def test_both_networks_stand_beside_each_other() -> None:
    whole = row("detection", 0.0, 0.0)
    text = drawn([{**whole, "compressed": row("detection", 0.0, 2.0)}])
    assert text.count("<img") == 2
    assert "Compressed" in text
    assert "missed 0, invented 2" in text
    assert drawn([{**whole, "compressed": {"image": "javascript:alert(1)"}}]).count("<img") == 1
