"""The workspace's settings file: the models registered there, and limits.

``settings.json`` is versioned and written whole. What it holds is checked when it is read: it may have been
edited by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from qaf_core.data.models.class_names import clean_class_names
from qaf_core.data.models.preprocessing import Preprocessing
from qaf_core.data.weights.entries import DEFAULT_LIMITS, WeightLimits
from qaf_core.errors import QafError, WorkspaceError, escape_text
from qaf_core.files import write_json
from qaf_core.text.said import Said, say

SETTINGS_NAME = "settings.json"
SETTINGS_VERSION = 1
LONGEST_TITLE = 120
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9][A-Za-z0-9._-]{0,63})?")


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A model of the user's, as the settings file keeps it: enough to list and feed it without its code.

    Attributes:
        id: Name on the command line; letters, digits, ``.``, ``_`` and ``-``, at most one ``/``.
        title: Name for people.
        base: The named model it is made like, or ``package.module:factory``.
        code_path: Where that package can be imported from, or None.
        weights: Path of the weights, or None.
        weights_part: Which of the file's weights, or None.
        weights_url: Where the weights are fetched from when they are not there, or None.
        input_shape: (C, H, W) of one image.
        classes: Names in the order of the outputs.
        preprocessing: How images are prepared, as `Preprocessing.to_dict` gives it.
        data: Images to measure on when none are named, or None.
        task: What the outputs mean.
        output: Which of the outputs holds the class scores, or None.
        outputs: Number of outputs where that is not the number of classes, or None.

    Raises:
        QafError: If a field is malformed.
    """

    id: str
    title: str
    base: str
    code_path: str | None = None
    weights: str | None = None
    weights_part: str | None = None
    weights_url: str | None = None
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    data: str | None = None
    task: str = "classification"
    output: str | None = None
    outputs: int | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        for name in ("title", "base", "task"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise _malformed(self.id, name, say("text"))
        for name in ("code_path", "weights", "weights_part", "weights_url", "data", "output"):
            if not isinstance(getattr(self, name), str | None):
                raise _malformed(self.id, name, say("text or null"))
        if self.outputs is not None and (type(self.outputs) is not int or self.outputs < 1):
            raise _malformed(self.id, "outputs", say("a whole number, at least 1"))
        shape = self.input_shape
        if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
            raise _malformed(self.id, "input_shape", say("[channels, height, width]"))
        if not isinstance(self.preprocessing, Mapping):
            raise _malformed(self.id, "preprocessing", say("an object"))
        fitted = Preprocessing.from_dict(self.preprocessing).shape
        if fitted != (*shape[1:], shape[0]):
            raise _malformed(
                self.id, "preprocessing", say("a crop and means for {shape}", shape="×".join(map(str, shape)))
            )
        object.__setattr__(self, "title", escape_text(" ".join(self.title.split()))[:LONGEST_TITLE])
        object.__setattr__(self, "classes", clean_class_names(self.classes, f"model {self.id}"))

    @property
    def named_weights(self) -> str | None:
        """The weights as ``--weights`` takes them: the path, and the part where one is named."""
        return self.weights if self.weights_part is None else f"{self.weights}#{self.weights_part}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the settings file holds; ``other`` is kept as it is, for parts this version does not know."""

    models: tuple[RegisteredModel, ...] = ()
    limits: WeightLimits = DEFAULT_LIMITS
    other: Mapping[str, Any] = field(default_factory=dict)

    def model(self, model_id: str) -> RegisteredModel | None:
        """The registered model with this id, or None."""
        return next((model for model in self.models if model.id == model_id), None)


def check_id(model_id: object) -> str:
    """The id, if it can name a registered model.

    Raises:
        WorkspaceError: If not.
    """
    if not isinstance(model_id, str) or not _ID.fullmatch(model_id):
        raise WorkspaceError(
            "a model's id is malformed",
            got=str(model_id)[:80] or say("an empty name"),
            expected="letters, digits, '.', '_' and '-', and at most one '/', as in parts/resnet",
        )
    return model_id


def read_settings(workspace: Path | None) -> Settings:
    """The settings of a workspace; the default ones where there is no file, or no workspace.

    Raises:
        WorkspaceError: If the file cannot be read, is malformed, or of another version.
    """
    if workspace is None:
        return Settings()
    path = workspace / SETTINGS_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return Settings()
    except (OSError, ValueError, RecursionError) as error:
        raise WorkspaceError(
            "the workspace's settings cannot be read",
            got=f"{path} ({str(error)[:80]})",
            remedy=say("mend or remove {name}", name=SETTINGS_NAME),
        ) from error
    if not isinstance(values, dict) or values.get("schema_version") != SETTINGS_VERSION:
        version = values.get("schema_version") if isinstance(values, dict) else "no object"
        raise WorkspaceError(
            say("{name} of the workspace has another version", name=SETTINGS_NAME),
            got=version,
            expected=SETTINGS_VERSION,
        )
    rows, limits = values.get("models", []), values.get("limits", {})
    if not isinstance(rows, list) or not isinstance(limits, dict):
        raise WorkspaceError(
            say("{name} is malformed", name=SETTINGS_NAME),
            expected="models as a list, limits as an object",
        )
    models = tuple(_read_model(row) for row in rows)
    if len({model.id for model in models}) < len(models):
        raise WorkspaceError(
            say("{name} has two models of the same id", name=SETTINGS_NAME),
            remedy="remove one of them",
        )
    other = {key: value for key, value in values.items() if key not in ("schema_version", "models", "limits")}
    return Settings(models=models, limits=_read_limits(limits), other=other)


def change_settings(workspace: Path, change: Callable[[Settings], Settings]) -> Settings:
    """Read, change and write the settings, alone among all processes; what was written.

    Raises:
        WorkspaceError: If they cannot be read or written.
    """
    with _locked(workspace):
        changed = change(read_settings(workspace))
        limits = asdict(changed.limits)
        content = {
            "schema_version": SETTINGS_VERSION,
            "limits": {f"weights_{name.removeprefix('file_')}": value for name, value in limits.items()},
            "models": [asdict(model) for model in changed.models],
            **changed.other,
        }
        write_json(workspace / SETTINGS_NAME, content, for_people=True)
    return changed


@contextlib.contextmanager
def _locked(workspace: Path) -> Iterator[None]:
    try:
        workspace.mkdir(parents=True, exist_ok=True)
        file = (workspace / "settings.lock").open("a")
    except OSError as error:
        raise WorkspaceError(
            "the workspace cannot be written to",
            got=f"{workspace} ({error.strerror or error})",
            remedy="choose a folder you can write to with --workspace",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_model(row: object) -> RegisteredModel:
    if not isinstance(row, dict):
        raise WorkspaceError(
            say("{name} is malformed", name=SETTINGS_NAME),
            got=str(row)[:80],
            expected="an object per model",
        )
    known = {item.name for item in fields(RegisteredModel)}
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
    }
    try:
        return RegisteredModel(**{key: value for key, value in values.items() if key in known})
    except (TypeError, ValueError) as error:
        raise WorkspaceError(
            say("a model in {name} is malformed", name=SETTINGS_NAME),
            got=str(error)[:120],
            remedy="add it again",
        ) from error


def _read_limits(values: Mapping[str, Any]) -> WeightLimits:
    names = {
        "weights_bytes": "file_bytes",
        "weights_tensors": "tensors",
        "weights_header_bytes": "header_bytes",
    }
    try:
        return replace(DEFAULT_LIMITS, **{names[key]: value for key, value in values.items() if key in names})
    except QafError as error:
        raise WorkspaceError(say("{name} is malformed: {error}", name=SETTINGS_NAME, error=error)) from error


def _malformed(model_id: str, name: str, expected: Said) -> WorkspaceError:
    return WorkspaceError(
        say("{name} of model {model_id} is malformed", name=name, model_id=model_id),
        expected=expected,
        remedy="add it again",
    )
