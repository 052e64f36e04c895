"""What a user asks for: jobs, ready to be stored and handed to another process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.source import ModelSource
from qaf_core.data.workspace.trust import check_trusted
from qaf_core.errors import DataError, PlanError, QafError
from qaf_core.factorization.effort import Effort, read_effort
from qaf_core.factorization.options import LARGEST_SEED, Method
from qaf_core.network.plan.validation import check_method
from qaf_core.search.selection import DEFAULT_ANSWER_BOUND
from qaf_core.text.said import say

LONGEST_NAME = 120
FOUND = "found"  # by a search, structures and bits mixed
ROBUSTNESS_IMAGES = 1000
STABILITY_MINUTES = 5.0


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A job as asked for; plain data."""

    def to_json(self) -> str:
        """This request as one JSON object."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
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

    @property
    def about(self) -> str:
        """The model, or the run, it is about."""
        return str(getattr(self, "run", None) or getattr(self, "model", ""))


@dataclass(frozen=True, kw_only=True)
class InspectRequest(JobRequest):
    """A model with what the user gives for it, whose layers are to be looked at.

    Attributes:
        model: Model id, such as ``inspection/resnet20``.
        weights: Path of the weights or name of published ones, or None for the model's own.
        classes: Path of the names of the classes, or None for the model's own.
        preprocessing: Fields of the preprocessing that are other than the model's own, or None.
    """

    model: str
    weights: str | None = None
    classes: str | None = None
    preprocessing: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class RegisterRequest(InspectRequest):
    """A model that is to be kept in the workspace's list.

    Attributes:
        name: The id it gets.
        data: Images to measure on when none are named, or None.
    """

    name: str
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckRequest(InspectRequest):
    """An original that is to be checked on labelled images.

    Attributes:
        data: Where they come from; None for the model's own, or the built-in ones.
        images: At most so many; None for as many as a check takes.
        preview: Whether some images are to be shown with their predictions.
        name: What the model is to be called once it is added; empty where nothing is to be added.
        uploads: ``weights`` or ``data`` that the user's browser sent: ``path`` of the file, and its ``name``
            there; it is checked, stored and used.
    """

    data: str | None = None
    images: int | None = None
    preview: bool = False
    name: str = ""
    uploads: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImagesRequest(InspectRequest):
    """A model, and images to compress it with.

    Attributes:
        data: Where evaluation images come from: ``builtin``, a folder, an ``.npz`` or a data set's name.
        calibration: The same for calibration images, or None to take them from ``data``.
        images: At most so many evaluation images, or None for all.
        seed: Seed of everything drawn at random.
    """

    data: str = "builtin"
    calibration: str | None = None
    images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images is not None and not _is_count(self.images, 1):
            raise DataError(
                "number of images out of range", got=self.images, expected="a whole number, at least 1"
            )
        if not _is_count(self.seed, 0) or self.seed > LARGEST_SEED:
            raise QafError("seed out of range", got=self.seed, expected="a whole number of at most 63 bits")


@dataclass(frozen=True, kw_only=True)
class SensitivityRequest(ImagesRequest):
    """A model whose layers' settings are to be explored.

    Attributes:
        activation_bits: Of the plans to come.
    """

    activation_bits: int = 8

    @property
    def explored(self) -> SensitivityRequest:
        """What is looked at before a plan is sought."""
        return SensitivityRequest(
            **{item.name: getattr(self, item.name) for item in fields(SensitivityRequest)}
        )


@dataclass(frozen=True, kw_only=True)
class PlanRequest(SensitivityRequest):
    """What an automatic plan is asked for; only calibration images decide.

    Attributes:
        bits: Weight bits of all covered layers.
        least_ratio: Ranks of this parameter ratio or more compete; None for all.
        error_bound: Largest relative squared error of a layer's outputs, as measured; None for any.
        answer_bound: Largest share of answers on the calibration images that may differ from the original's,
            beyond those that change with every layer dense at the same bits.
        threads: Threads the layers are timed with; None for all processors.
        batch: Images at a time.
    """

    bits: int = 8
    least_ratio: float | None = None
    error_bound: float | None = None
    answer_bound: float = DEFAULT_ANSWER_BOUND
    threads: int | None = None
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class SearchRequest(SensitivityRequest):
    """A plan that is to be found under budgets; only calibration images are looked at.

    Attributes:
        budgets: As ``size=0.2x``, ``size=60kB``, ``bops=0.02x``, ``drop=1pp`` or ``latency=0.5x``.
        locks: As ``LAYER=keep``, ``LAYER=dense:4``, ``LAYER=cp:32:4``.
        method: ``found``; or for comparison ``dense``, its bits allocated in the same way, or the best
            uniform plan of ``joint``, ``paper`` or ``sequential``.
        time_limit: Seconds after which no further refinement begins; 0 for none.
        then_run: Queue a run of what is found.
        effort: How hard the layers of the plan are solved (``Effort``).

    Raises:
        QafError: If there is no such method or effort.
    """

    budgets: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()
    method: str = FOUND
    time_limit: float = 600.0
    then_run: bool = False
    effort: str = Effort.STANDARD

    def __post_init__(self) -> None:
        super().__post_init__()
        read_effort(self.effort)
        if self.method != FOUND:
            check_method(self.method, ())


@dataclass(frozen=True, kw_only=True)
class RunRequest(ImagesRequest):
    """One compression run as asked for.

    Attributes:
        plan: The plan as plain data (``Plan.to_json`` read back), JSON-ready.
        method: One of ``METHODS``.
        name: What the user calls the run, or None.
        check: Look first whether the original does what it should, and stop if not.
        finetune: None to compress; else ``run``, the run whose network is fine-tuned, and the fields of
            ``FinetuneOptions``. Everything else is then that run's.
        controls: ``ratio``, ``bits`` and ``structure`` that the plan was made from before edits; None for a
            plan made otherwise.

    Raises:
        QafError: If a field is out of range.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    method: str = Method.JOINT
    name: str | None = None
    check: bool = True
    finetune: dict[str, Any] | None = None
    controls: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        rows = self.plan.get("layers") or ()
        if not all(isinstance(row, dict) for row in rows):
            raise PlanError("rows of the plan are malformed", expected="an object for each layer")
        check_method(self.method, [str(row.get("structure")) for row in rows])
        super().__post_init__()
        if self.name is not None and len(self.name) > LONGEST_NAME:
            raise QafError(
                "name of the run too long",
                got=say("{count} characters", count=len(self.name)),
                expected=say("at most {most}", most=LONGEST_NAME),
            )


@dataclass(frozen=True, kw_only=True)
class LatencyRequest(JobRequest):
    """A run whose models are to be timed on this machine.

    Attributes:
        run: Its id.
        threads: Threads of one operation.
        batch: Images at a time.
        images: At most so many evaluation images judge the files; None for those the run was measured on.
        seconds: At most so long, of timing.
    """

    run: str
    threads: int
    batch: int = 1
    images: int | None = None
    seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class DeviceKitRequest(JobRequest):
    """A run whose models are to be packed with what measures them on a device.

    Attributes:
        run: Its id.
        batch: Images at a time.
        target: The device's processor, ``this`` machine's or ``any``.
        folder: A new folder for the kit; None for a zip in the run's folder of exports.
    """

    run: str
    batch: int = 1
    target: str = "any"
    folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExportRequest(JobRequest):
    """A run whose network is to be written as a file to deploy, and checked.

    Attributes:
        run: Its id.
        format: ``packed`` or ``onnx``.
        precision: Of ONNX: ``int8``, ``int8-fast`` or ``fp32``.
        target: The processor for integers, ``this`` machine's or ``any``.
        force: Write the file even if a check fails.
        path: The file; None for one in the run's folder of exports, with its report as JSON beside it.
    """

    run: str
    format: str
    precision: str = "int8"
    target: str = "this"
    force: bool = False
    path: str | None = None

    @property
    def file_name(self) -> str:
        """Of the file, in the run's folder of exports."""
        return "model.safetensors" if self.format == "packed" else f"model-{self.precision}.onnx"


@dataclass(frozen=True, kw_only=True)
class AnswersRequest(JobRequest):
    """A run of an earlier version whose networks are to be asked again, image by image.

    Attributes:
        run: Its id.
    """

    run: str


@dataclass(frozen=True, kw_only=True)
class RobustnessRequest(JobRequest):
    """A run whose networks are to be tried on disturbed and odd images.

    Attributes:
        run: Its id.
        images: At most so many.
    """

    run: str
    images: int = ROBUSTNESS_IMAGES


@dataclass(frozen=True, kw_only=True)
class StabilityRequest(JobRequest):
    """A run whose exported model is to be tried in operation.

    Attributes:
        run: Its id.
        minutes: Length of the soak.
        file: Which of the exported models.
    """

    run: str
    minutes: float = STABILITY_MINUTES
    file: str = "factorized_int8"


def source_of(request: InspectRequest, workspace: Path) -> ModelSource:
    """The model that is asked for, its images prepared as said.

    Raises:
        QafError: If there is none, its weights or classes cannot be used, or it is code not trusted yet.
    """
    if ":" in request.model:
        check_trusted(request.model, None, request.model)
    return find_model(
        request.model,
        request.weights,
        classes=request.classes,
        preprocessing=request.preprocessing,
        workspace=workspace,
    )


def _is_count(value: object, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum
