"""The built-in inspection images: seeded, balanced, with masks that fit the pictures."""

from __future__ import annotations

import numpy as np
import pytest

from qaf_core.data.inspection import dataset, defects
from qaf_core.data.inspection.dataset import CLASSES, IMAGE_SIZE, render
from qaf_core.data.inspection.defects import unchanged
from qaf_core.data.inspection.scene import draw_noise, draw_scene, edge_distance
from qaf_core.errors import DataError

# Of seed 3, images 0 to 15.
LABELS = [4, 3, 1, 6, 0, 2, 5, 7, 5, 4, 3, 0, 2, 6, 1, 7]
BRIGHTNESS = [
    108.42,
    115.86,
    140.39,
    91.32,
    123.61,
    123.57,
    120.86,
    96.19,
    108.63,
    95.99,
    101.61,
    141.14,
    127.15,
    115.88,
    127.75,
    117.05,
]
MASKED_PIXELS = [105, 72, 73, 61, 0, 84, 75, 172, 49, 309, 50, 0, 83, 13, 84, 123]


@pytest.fixture(scope="module")
def drawn() -> dataset.RenderedImages:
    return render(320, seed=11)


def test_shapes_and_types(drawn: dataset.RenderedImages) -> None:
    assert drawn.images.shape == (320, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert drawn.masks.shape == (320, IMAGE_SIZE, IMAGE_SIZE)
    assert (drawn.images.dtype, drawn.labels.dtype, drawn.masks.dtype) == (np.uint8, np.int64, np.bool_)


def test_every_run_of_eight_holds_every_class(drawn: dataset.RenderedImages) -> None:
    groups = drawn.labels.reshape(-1, len(CLASSES))
    assert (np.sort(groups, axis=1) == np.arange(len(CLASSES))).all()
    assert len(np.unique(groups, axis=0)) > 30, "the order of the classes must not give them away"


@pytest.mark.parametrize(("first", "count", "workers"), [(0, 9, 1), (70, 130, 2), (319, 1, 1)])
def test_an_image_depends_only_on_seed_and_number(
    drawn: dataset.RenderedImages, first: int, count: int, workers: int
) -> None:
    part = render(count, seed=11, first=first, workers=workers)
    for whole, taken in zip(drawn, part, strict=True):
        np.testing.assert_array_equal(taken, whole[first : first + count])


def test_seeds_share_no_image(drawn: dataset.RenderedImages) -> None:
    other = render(320, seed=12)
    both = np.concatenate([drawn.images, other.images]).reshape(640, -1)
    assert len({image.tobytes() for image in both}) == 640


def test_masks_agree_with_classes(drawn: dataset.RenderedImages) -> None:
    marked = drawn.masks.any(axis=(1, 2))
    np.testing.assert_array_equal(marked, drawn.labels != CLASSES.index("ok"))
    assert drawn.masks.mean(axis=(1, 2)).max() < 0.25, "a defect is a small part of the picture"


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "ok"])
def test_a_defect_changes_the_picture_inside_its_mask(
    drawn: dataset.RenderedImages, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the same scene, drawn without its defect, differs inside the mask and hardly outside."""
    monkeypatch.setitem(defects.DEFECTS, name, lambda draws, scene: unchanged(scene))
    clean = render(160, seed=11, workers=1)
    chosen = clean.labels == CLASSES.index(name)
    images, masks = drawn.images[:160], drawn.masks[:160][chosen]
    np.testing.assert_array_equal(clean.images[~chosen], images[~chosen])
    change = np.abs(clean.images[chosen].astype(int) - images[chosen]).mean(-1)
    inside = np.array([each[mask].mean() for each, mask in zip(change, masks, strict=True)])
    outside = np.array([each[~mask].mean() for each, mask in zip(change, masks, strict=True)])
    assert np.median(inside) > 12 * max(np.median(outside), 0.1)
    assert (inside > outside).mean() > 0.9


def test_the_images_are_those_the_sample_models_were_trained_on() -> None:
    """A change of the pictures would quietly spoil the shipped weights: train them again, then renew this."""
    drawn = render(16, seed=3)
    assert drawn.labels.tolist() == LABELS
    np.testing.assert_allclose(drawn.images.mean((1, 2, 3)), BRIGHTNESS, atol=0.02)
    assert drawn.masks.sum((1, 2)).tolist() == pytest.approx(MASKED_PIXELS, abs=2)


def test_hole_and_edge_lie_where_a_part_has_them() -> None:
    """The hole is drilled in metal, and both metal and background are in view."""
    scene = draw_scene(draw_noise(range(200), seed=11))
    beyond = edge_distance(scene)
    np.testing.assert_allclose(np.hypot(scene.normal_x, scene.normal_y), 1, atol=1e-6)
    assert ((beyond < 0).mean((1, 2)) > 0.5).all()
    assert ((beyond > 0).any((1, 2))).all()
    to_edge = scene.edge_offset - scene.normal_x * scene.hole_x - scene.normal_y * scene.hole_y
    assert (to_edge > scene.hole_radius + 2).all()


def test_pictures_look_like_photographs(drawn: dataset.RenderedImages) -> None:
    """Neither flat nor blown out, near the stated mean and spread, and no two alike in colour."""
    pixels = drawn.images / 255.0
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), dataset.MEAN, atol=0.03)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), dataset.STD, atol=0.03)
    assert (drawn.images == 255).mean() < 0.02
    assert pixels.std(axis=(1, 2, 3)).min() > 0.03


@pytest.mark.parametrize(
    ("arguments", "field"), [((0, 1, 0), "count"), ((1, -1, 0), "seed"), ((1, 1, -1), "first")]
)
def test_bad_numbers_are_named(arguments: tuple[int, int, int], field: str) -> None:
    count, seed, first = arguments
    with pytest.raises(DataError, match=field):
        render(count, seed, first=first)
