"""What a user gives beside a model's name: weights, names of classes, how images are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qaf_core.data.workspace.uploads import CLASSES_FOLDER
from qaf_core.files import digest_of, write_file
from qaf_core.runs.store.request import RunRequest


@dataclass(frozen=True, kw_only=True)
class Given:
    """A user's own; what is None is the model's.

    Attributes:
        weights: Path of a file, or a name of published weights.
        classes: Path of a file with their names.
        preprocessing: Fields of `Preprocessing` that are other than the model's.
    """

    weights: str | None = None
    classes: str | None = None
    preprocessing: Mapping[str, Any] | None = None

    def arguments(self, workspace: Path) -> list[str]:
        """The same as options of a ``qaf`` command, the workspace among them."""
        found = ["--workspace", str(workspace)]
        if self.weights:
            found += ["--weights", self.weights]
        if self.classes:
            found += ["--classes", self.classes]
        if self.preprocessing:
            text = json.dumps(self.preprocessing, sort_keys=True)
            found += ["--preprocessing", _keep(workspace / "cache" / "preprocessing", text, "json")]
        return found

    def identity(self) -> list[Any]:
        """What tells it from others, as plain JSON types: another content of a file is something else."""
        steps = None if self.preprocessing is None else dict(self.preprocessing)
        return [self.weights, file_stamp(self.weights), self.classes, file_stamp(self.classes), steps]


NOTHING = Given()


def given_in(request: RunRequest) -> Given:
    """What was given for a run."""
    return Given(
        weights=request.weights, classes=request.classes, preprocessing=request.preprocessing or None
    )


def file_stamp(path: str | Path | None) -> list[int] | None:
    """Size and time of the last change of a file; None where there is none."""
    try:
        found = Path(path).expanduser().stat() if path else None
    except (OSError, RuntimeError, ValueError):  # no such file, an unknown ~user, a null character
        found = None
    return None if found is None else [found.st_size, found.st_mtime_ns]


def keep_class_names(workspace: Path, text: str) -> str | None:
    """Typed names of classes as a file of the workspace, the same for the same names; None for no names."""
    text = text.strip()
    return _keep(workspace / CLASSES_FOLDER, text, "txt") if text else None


def read_class_text(path: str | None) -> str:
    """The names as `keep_class_names` was given them; empty where there are none to read."""
    try:
        return Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, ValueError):
        return ""


def _keep(folder: Path, text: str, suffix: str) -> str:
    path = folder / f"{digest_of(text)}.{suffix}"
    if not path.is_file():
        write_file(path, text.encode())
    return str(path)
