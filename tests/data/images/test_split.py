"""Calibration and evaluation never see the same picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qaf_core.data.images.image_set import ImageSet
from qaf_core.data.images.split import Choice, calibration_count, describe_split, keep_apart
from qaf_core.errors import DataError
from qaf_core.text.catalogue import translator
from qaf_core.text.said import say


def images(levels: list[int], name: str = "parts") -> ImageSet:
    pixels = np.array(levels, np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    return ImageSet(name=name, images=pixels, labels=np.zeros(len(levels), np.int64), classes=("a", "b"))


@given(st.integers(2, 500), st.integers(0, 5), st.one_of(st.none(), st.integers(1, 600)))
def test_the_parts_are_disjoint_whatever_the_seed_and_limit(count: int, seed: int, limit: int | None) -> None:
    parts = {
        split: set(Choice(split=split, limit=limit, seed=seed, shared=True).among(count, "x")[0].tolist())
        for split in ("calibration", "evaluation")
    }
    assert not parts["calibration"] & parts["evaluation"]
    whole = calibration_count(count)
    assert len(parts["calibration"]) == min(whole, limit or whole)
    assert len(parts["evaluation"]) == min(count - whole, limit or count)
    if limit is None:
        assert parts["calibration"] | parts["evaluation"] == set(range(count))


def test_copies_of_evaluation_images_do_not_calibrate() -> None:
    evaluation, calibration = keep_apart(images([1, 2, 3]), images([3, 4, 1, 5]), say("given separately"))
    assert evaluation.read(range(3))[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert calibration.read(range(2))[:, 0, 0, 0].tolist() == [4, 5]
    assert str(evaluation.split) == (
        "2 images calibrate, 3 others evaluate: given separately, no image in both; "
        "2 copies of evaluation images left out."
    )
    assert calibration.split == evaluation.split


def test_the_same_images_twice_are_refused() -> None:
    with pytest.raises(DataError, match="every calibration image is also an evaluation image; got 2 images"):
        keep_apart(images([1, 2, 3]), images([2, 1]), say("given separately"))


def test_the_split_is_told_in_one_sentence() -> None:
    assert str(describe_split(1500, 500, say("split by seed {seed}", seed=17))) == (
        "500 images calibrate, 1,500 others evaluate: split by seed 17, no image in both."
    )
    one = describe_split(5, 4, say("given separately"), copies=1)
    assert str(one).endswith("; 1 copy of an evaluation image left out.")
    several = describe_split(5, 4, say("given separately"), copies=1200)
    assert str(several).endswith("; 1,200 copies of evaluation images left out.")
    assert several.text(translator("ja")) == (
        "校正に 4 枚、評価に別の 5 枚を使用（別々に指定、重複なし）。評価画像と同じ 1,200 枚を校正から除外。"
    )
