"""What a user gives beside a model's name: weights, names of classes, how images are prepared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qaf_core.data.workspace.uploads import CLASSES_FOLDER
from qaf_core.files import digest_of, write_file
from qaf_core.runs.store.request import InspectRequest


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """A user's own; what is None is the model's.

    Attributes:
        weights: Path of a file, or a name of published weights.
        classes: Path of a file with their names.
        preprocessing: Fields of `Preprocessing` that are other than the model's.
    """

    weights: str | None = None
    classes: str | None = None
    preprocessing: Mapping[str, Any] | None = None

    def of(self, model: str) -> dict[str, Any]:
        """The fields of a request about a model with all this."""
        steps = None if self.preprocessing is None else dict(self.preprocessing)
        return {"model": model, "weights": self.weights, "classes": self.classes, "preprocessing": steps}


NOTHING = Overrides()


def overrides_of(request: InspectRequest) -> Overrides:
    """What was given for a run, or another job."""
    return Overrides(
        weights=request.weights, classes=request.classes, preprocessing=request.preprocessing or None
    )


def keep_class_names(workspace: Path, text: str) -> str | None:
    """Typed names of classes as a file of the workspace, the same for the same names; None for no names."""
    text = text.strip()
    if not text:
        return None
    path = workspace / CLASSES_FOLDER / f"{digest_of(text)}.txt"
    if not path.is_file():
        write_file(path, text.encode())
    return str(path)


def kept_class_names(workspace: Path, digest: str) -> str | None:
    """The typed names that `keep_class_names` kept under a digest, a file's stem; None for none."""
    known = re.fullmatch(r"[0-9a-f]{32}", digest)
    return read_class_text(str(workspace / CLASSES_FOLDER / f"{digest}.txt")) or None if known else None


def read_class_text(path: str | None) -> str:
    """The names as `keep_class_names` was given them; empty where there are none to read."""
    try:
        return Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, ValueError):
        return ""
