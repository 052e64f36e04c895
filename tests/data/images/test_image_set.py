"""Image sets: reading, taking parts, telling images apart, showing a few."""

from __future__ import annotations

import numpy as np
import pytest

from qaf_core.data.images.image_set import ImageSet, digest_pixels, one_of_each, preview, shown_name

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
IMAGES = ImageSet(
    name="ten",
    images=PIXELS,
    labels=np.array([0, 0, 0, 0, 2, 2, 2, 1, 1, 0]),
    classes=("left", "right", "up"),
    targets={"y": np.arange(10)},
)


def test_indices_and_chunks_give_the_same_pixels() -> None:
    np.testing.assert_array_equal(IMAGES.read([3, 1, 1]), PIXELS[[3, 1, 1]])
    chunks = list(IMAGES.in_chunks(4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(chunks), PIXELS)


def test_taking_some_takes_all_that_belongs_to_them() -> None:
    some = IMAGES.take(np.array([9, 4]), "two")
    assert (some.name, len(some), some.labels.tolist()) == ("two", 2, [0, 2])
    assert some.targets["y"].tolist() == [9, 4]
    assert some.digests() == (IMAGES.digests()[9], IMAGES.digests()[4])


def test_digests_tell_images_apart_and_ignore_how_they_lie_in_memory() -> None:
    assert len(set(IMAGES.digests())) == 10
    turned = np.asfortranarray(PIXELS[0])
    assert digest_pixels(turned) == IMAGES.digests()[0]


def test_a_preview_shows_one_of_each_class_first() -> None:
    shown = preview(IMAGES, count=4, turn=1)
    assert [name for _, name in shown[:3]] == ["left", "right", "up"]
    assert len(shown) == 4
    np.testing.assert_array_equal(shown[0][0], PIXELS[1])
    assert len(preview(IMAGES, count=99)) == 10
    assert one_of_each([5, 5], 1) == [0]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain.png", "plain.png"),
        ("部品 été.png", "部品 été.png"),
        ("a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("caf\udce9", "caf\\udce9"),
        ("x" * 100, "x" * 79 + "…"),
    ],
)
def test_names_from_outside_are_shown_escaped(name: str, shown: str) -> None:
    assert shown_name(name) == shown
    assert shown_name(name).encode()
