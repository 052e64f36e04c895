"""Which images calibrate and which evaluate: two parts that never overlap, and how they were told apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from qaf_core.data.images.image_set import ImageSet, shown_name
from qaf_core.errors import DataError
from qaf_core.text.said import Said, say

Split = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_SEED = 17
CALIBRATION_SHARE = 0.25  # of user data that serve both purposes


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of a user's images to take.

    Attributes:
        split: What they are used for.
        limit: At most this many, or None for all.
        seed: Chooses them where there are more.
        shared: The same images serve calibration and evaluation: each takes its part.
    """

    split: Split
    limit: int | None
    seed: int
    shared: bool

    def among(self, count: int, name: str) -> tuple[npt.NDArray[np.intp], str]:
        """Ascending indices into count images, and the name of the choice.

        Raises:
            DataError: When there are too few to be split.
        """
        chosen = np.arange(count)
        if self.shared and self.split != "train":
            if count < 2:
                raise DataError(
                    say("{name} is too small to be split", name=name),
                    got=say("{count} image", count=count),
                    expected="2 or more",
                )
            # The two parts are disjoint and the same on every call.
            order = np.random.default_rng((count, SPLIT_SEED)).permutation(count)
            share = calibration_count(count)
            chosen = order[:share] if self.split == "calibration" else order[share:]
            name = f"{name}, {self.split} part"
        if self.limit is not None and self.limit < len(chosen):
            name = f"{name}, subset of {len(chosen):,}"
            chosen = np.random.default_rng((self.seed, count)).permutation(chosen)[: self.limit]
        return np.sort(chosen), name


def calibration_count(count: int) -> int:
    """How many of a user's images calibrate when the same data serve both purposes."""
    return max(1, round(count * CALIBRATION_SHARE))


def keep_apart(evaluation: ImageSet, calibration: ImageSet, how: Said) -> tuple[ImageSet, ImageSet]:
    """Both sets without common images, and with one sentence that says how they were split.

    An image with the pixels of an evaluation image does not calibrate.

    Args:
        evaluation: The images to evaluate on; they stay as they are.
        calibration: The images to calibrate with.
        how: What made them two sets, such as "split by seed 17".

    Raises:
        DataError: When no image is left to calibrate with.
    """
    calibration, copies = without_copies(
        calibration,
        evaluation,
        fault=say("every calibration image is also an evaluation image"),
        remedy=say("give other images to calibrate with, or none to have the evaluation images split"),
    )
    sentence = describe_split(len(evaluation), len(calibration), how, copies)
    return replace(evaluation, split=sentence), replace(calibration, split=sentence)


def without_copies(
    images: ImageSet, evaluation: ImageSet, *, fault: Said, remedy: Said
) -> tuple[ImageSet, int]:
    """Images without those that have the pixels of an evaluation image, and how many these were.

    Args:
        images: Of any origin.
        evaluation: The images to evaluate on.
        fault, remedy: What is said where none is left.

    Raises:
        DataError: When none is left.
    """
    seen = set(evaluation.digests())
    own = np.array([digest not in seen for digest in images.digests()], bool)
    copies = int(len(own) - own.sum())
    if copies == len(own):
        raise DataError(
            fault,
            got=say("{copies:,} images of {name}", copies=copies, name=shown_name(images.name)),
            remedy=remedy,
        )
    return (images.take(np.flatnonzero(own), images.name) if copies else images), copies


def describe_split(evaluating: int, calibrating: int, how: Said, copies: int = 0) -> Said:
    """How calibration and evaluation images were told apart, in one sentence."""
    values = {"calibrating": f"{calibrating:,}", "evaluating": f"{evaluating:,}", "how": how}
    if not copies:
        return say(
            "{calibrating} images calibrate, {evaluating} others evaluate: {how}, no image in both.", **values
        )
    if copies == 1:
        return say(
            "{calibrating} images calibrate, {evaluating} others evaluate: {how}, no image in both; 1 copy "
            "of an evaluation image left out.", **values,
        )  # fmt: skip
    return say(
        "{calibrating} images calibrate, {evaluating} others evaluate: {how}, no image in both; {copies:,} "
        "copies of evaluation images left out.", **values, copies=copies,
    )  # fmt: skip
