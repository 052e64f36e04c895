"""What a user asks for: one compression run, ready to be stored and handed to another process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.errors import DataError, PlanError, QafError

METHODS = ("joint", "paper", "sequential", "dense")
LONGEST_NAME = 120


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One compression run as asked for.

    Attributes:
        model: Model id, such as ``inspection/resnet20``.
        plan: The plan as plain data (``Plan.to_json`` read back), JSON-ready.
        weights: Path of the weights or name of published ones, or None for the model's own.
        classes: Path of the names of the classes, or None for the model's own.
        preprocessing: Fields of the preprocessing that are other than the model's own, or None.
        data: Where evaluation images come from: ``builtin``, a folder, an ``.npz`` or a data set's name.
        calibration: The same for calibration images, or None to take them from ``data``.
        images: At most so many evaluation images, or None for all.
        method: One of ``METHODS``.
        seed: Seed of everything drawn at random.
        name: What the user calls the run, or None.
        check: Look first whether the original does what it should, and stop if not.
        finetune: None to compress; else ``run``, the run whose network is fine-tuned, and the fields of
            ``FinetuneOptions``. Everything else is then that run's.

    Raises:
        QafError: If a field is out of range.
    """

    model: str
    plan: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    classes: str | None = None
    preprocessing: dict[str, Any] | None = None
    data: str = "builtin"
    calibration: str | None = None
    images: int | None = None
    method: str = "joint"
    seed: int = 0
    name: str | None = None
    check: bool = True
    finetune: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PlanError("unknown method", got=self.method, expected=", ".join(METHODS))
        if self.images is not None and not _is_count(self.images, 1):
            raise DataError(
                "number of images out of range", got=self.images, expected="a whole number, at least 1"
            )
        if not _is_count(self.seed, 0):
            raise QafError("seed out of range", got=self.seed, expected="a whole number, at least 0")
        if self.name is not None and len(self.name) > LONGEST_NAME:
            raise QafError(
                "name of the run too long",
                got=f"{len(self.name)} characters",
                expected=f"at most {LONGEST_NAME}",
            )

    def to_json(self) -> str:
        """This request as one JSON object."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> RunRequest:
        """The request written by ``to_json``; fields of newer versions are left out.

        Raises:
            QafError: If ``text`` is not such an object.
        """
        try:
            values = json.loads(text)
            known = {f.name for f in fields(cls)}
            return cls(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise QafError("a run's request cannot be read", got=str(error)) from error


def source_of(request: RunRequest, workspace: Path) -> ModelSource:
    """The model a run is asked for, its images prepared as the run's are.

    Raises:
        QafError: If there is none, or its weights or classes cannot be used.
    """
    return find_model(
        request.model,
        request.weights,
        classes=request.classes,
        preprocessing=request.preprocessing,
        workspace=workspace,
    )


def _is_count(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
