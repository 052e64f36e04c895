"""What a network is for, and how well it does it: one small object a task.

A task of your own is an object with the members of :class:`~qaf_core.pipeline.tasks.base.Task`. Where every
image has a score of its own, deriving it from :class:`~qaf_core.pipeline.tasks.base.ScoredTask` leaves three
short methods to write::

    class Brightness(ScoredTask):
        name, metric_name = "brightness", "closeness"

        def forward(self, model, images):       # normalised batch (B, C, H, W)
            return {"value": model(images).reshape(-1).numpy()}

        def collate(self, images):              # the ImageSet; y of an .npz is images.targets["y"]
            return {"value": images.targets["y"]}

        def scores(self, predictions, targets):  # one number an image, higher is better
            return 1 - np.abs(predictions["value"] - targets["value"])

    register_task(Brightness())

Call ``register_task`` in the module of your model factory, and put ``task = "brightness"`` on the factory.
Predictions and targets are named arrays, so that they can be stored without pickle.
"""

from __future__ import annotations

from qaf_core.errors import ModelError
from qaf_core.pipeline.tasks.base import Arrays, ScoredTask, Task, predict
from qaf_core.pipeline.tasks.classification import Classification
from qaf_core.pipeline.tasks.detection import Detection
from qaf_core.pipeline.tasks.segmentation import Segmentation

__all__ = ["Arrays", "ScoredTask", "Task", "find_task", "predict", "register_task"]

_TASKS: dict[str, Task] = {}


def register_task(task: Task) -> None:
    """Make a task known by its name; a later one of the same name takes its place."""
    _TASKS[task.name] = task


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ModelError: If none is registered.
    """
    if name not in _TASKS:
        raise ModelError(
            "unknown task",
            got=name,
            expected=", ".join(_TASKS),
            remedy="register it with qaf_core.pipeline.tasks.register_task in the module of the model",
        )
    return _TASKS[name]


for _task in (Classification(), Segmentation(), Detection()):
    register_task(_task)
