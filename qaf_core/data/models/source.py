"""A network that can be compressed, described without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.weights.entries import DEFAULT_LIMITS, WeightLimits


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A network that can be compressed, and what must be known to feed it.

    Attributes:
        id: Name on the command line, for example `inspection/resnet20`.
        title: Name for people.
        architecture: What `build_architecture` makes, or `package.module:factory`.
        preprocessing: The way from a picture to its input, whose size and channels it fixes.
        classes: Class names, in the order of the outputs.
        weights: File of trained weights, or None when there is none yet.
        weights_part: Which of the file's weights, where it holds several sets; None for the averaged ones.
        weights_note: Which of them are taken, in words, where nobody said which.
        task: What the outputs mean: `classification`, `segmentation` or `detection`.
        default_data: Built-in image set that fits, or None.
        shipped: Trained weights come with this package.
        card: The model card of a shipped model.
        weights_url: Where `weights` is fetched from when it is not there yet, or None.
        limits: How much a weights file may hold.
        accuracy: Top-1 its publisher states, or None.
        data: Images to measure on when none are named, or None for the built-in ones.
        registered: It comes from the workspace's settings.
        code_path: Where the package of its factory can be imported from, or None.
        output: Which of its outputs holds the class scores, such as `logits`; None where there is no choice.
        outputs: How many outputs it is built with, where that is not the number of classes (one for two).
    """

    id: str
    title: str
    architecture: str
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    weights: Path | None = None
    weights_part: str | None = None
    weights_note: str | None = field(default=None, compare=False)
    task: str = "classification"
    default_data: Literal["inspection", "digits"] | None = None
    shipped: bool = False
    card: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    weights_url: str | None = None
    limits: WeightLimits = DEFAULT_LIMITS
    accuracy: float | None = None
    data: str | None = None
    registered: bool = False
    code_path: str | None = None
    output: str | None = None
    outputs: int | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        height, width, channels = self.preprocessing.shape
        return channels, height, width
