"""Which structure of each layer is the fastest inside the whole network.

A layer timed alone starts with cold caches and ends with a pause; inside a network what comes before and
after changes both, and a profile of the network adds its own time to every operation. So what fits a layer
is timed once more where it stands: the whole network with one structure or another there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qaf_core.deploy.onnx_export.ort_quantizer import write_dense_int8, write_original
from qaf_core.deploy.runtime.measure_kit import one_inference, open_session, ratio_of, time_interleaved
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.errors import ModelError
from qaf_core.network.plan.layer_info import LayerInfo
from qaf_core.pipeline.events import Progress
from qaf_core.search.geometry import LayerGeometry
from qaf_core.search.graph_surgery import swap_layers, swappable_layers
from qaf_core.search.refine import Form
from qaf_core.search.selection import Candidate, Step, WholeTimes
from qaf_core.text.said import say

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from numpy.typing import NDArray
    from torch import Tensor, nn

ROUNDS = 800
SECONDS_PER_KIND = 8.0
TIE = 0.1  # of what a kind of layer gains
DENSE, CHOSEN, PLANNED, ORIGINAL = "dense", "chosen", "planned", "original"


class TimedNetwork(Protocol):
    """What a choice of structures is timed with."""

    @property
    def kinds(self) -> Sequence[Sequence[str]]:
        """Layers that can be exchanged, those of the same geometry together."""

    def time(self, plans: Mapping[str, Mapping[str, Step]]) -> Mapping[str, NDArray[np.float64]]:
        """Milliseconds of every round of the whole network, by plan (structure and rank by layer)."""

    def answer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The dense INT8 network's first output for images ``(B, C, H, W)``."""


class WholeNetwork:
    """A network's dense INT8 model, to be timed with chains in place of its layers.

    Args:
        model: The original; it is not changed.
        inventory: Its rows.
        images: Some normalised calibration images ``(N, C, H, W)``, for the ranges of additions.
        threads: Threads of one operation.
        batch: Images at a time.

    Attributes:
        kinds: Layers that can be exchanged, those of the same geometry together.

    Raises:
        ModelError: If ONNX cannot express the network, or not for so many images at a time, or if it does
            not run.
        WorkspaceError: If the temporary folder has no room for the models.
    """

    def __init__(
        self,
        model: nn.Module,
        inventory: Sequence[LayerInfo],
        images: Tensor,
        *,
        threads: int,
        batch: int = 1,
    ) -> None:
        shape = tuple(images.shape[1:])
        self._threads = threads
        original, self._dense = _write_models(model, inventory, images, batch)
        self._given = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        self._original = _open(original, self._given, threads)
        found = swappable_layers(self._dense)
        geometries = {info.name: LayerGeometry.of(info) for info in inventory if info.name in found}
        self._geometries = {name: row for name, row in geometries.items() if row is not None}
        kinds: dict[LayerGeometry, list[str]] = {}
        for name, geometry in self._geometries.items():
            kinds.setdefault(geometry, []).append(name)
        self.kinds = tuple(tuple(names) for names in kinds.values())

    def time(self, plans: Mapping[str, Mapping[str, Step]]) -> dict[str, NDArray[np.float64]]:
        """Milliseconds of every round of the network with some layers exchanged, by plan, interleaved.

        The original takes its turn among them, as where the models of a run are timed: so no network finds
        all its weights still in the cache.

        Args:
            plans: Structure and rank by layer; layers that are not named, or cannot be exchanged, are dense.
        """
        runs = {}
        for name, steps in plans.items():
            known = {
                layer: step for layer, step in steps.items() if layer in self._geometries and step[0] != DENSE
            }
            model = swap_layers(self._dense, self._geometries, known)
            runs[name] = _open(model, self._given, self._threads)
        try:
            times = time_interleaved(
                {**runs, ORIGINAL: self._original}, rounds=ROUNDS, seconds=SECONDS_PER_KIND
            )
        except Exception as error:  # the runtime's errors have no base class of their own
            raise _cannot_run(error) from error
        return {name: times[name] for name in plans}

    def answer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The dense INT8 network's first output for images ``(B, C, H, W)``."""
        size, parts = len(self._given), []
        try:
            session = self._dense_session
            name = session.get_inputs()[0].name
            for start in range(0, len(images), size):
                part = images[start : start + size]
                full = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
                parts.append(session.run(None, {name: full})[0])
        except Exception as error:  # the runtime's errors have no base class of their own
            raise _cannot_run(error) from error
        found: NDArray[np.float32] = np.concatenate(parts)[: len(images)]
        return found

    @cached_property
    def _dense_session(self) -> onnxruntime.InferenceSession:
        return open_session(self._dense.SerializeToString(), threads=self._threads)


def _write_models(
    model: nn.Module, inventory: Sequence[LayerInfo], images: Tensor, batch: int
) -> tuple[bytes, onnx.ModelProto]:
    """The original in floating point, and its dense INT8 model."""
    import onnx

    with scratch_folder() as folder:
        original, dense = folder / "original.onnx", folder / "dense.onnx"
        any_batch = write_original(model, inventory, original, input_shape=tuple(images.shape[1:]))
        if batch != 1 and not any_batch:
            raise ModelError(
                "this network takes one image at a time", got=say("a batch of {batch}", batch=batch)
            )
        write_dense_int8(original, dense, [images], any_batch=any_batch)
        return original.read_bytes(), onnx.load(str(dense))


def _open(model: bytes, images: NDArray[np.float32], threads: int) -> Callable[[], object]:
    """One inference, ready to be called.

    Raises:
        ModelError: If ONNX Runtime does not take the model.
    """
    try:
        return one_inference(open_session(model, threads=threads), images)
    except Exception as error:  # the runtime's errors have no base class of their own
        raise _cannot_run(error) from error


def _cannot_run(error: Exception) -> ModelError:
    return ModelError("ONNX Runtime cannot run the network", got=" ".join(str(error).split())[:200])


def choose_in_place(
    network: TimedNetwork,
    fitting: Mapping[str, Mapping[str, Candidate]],
    first: Mapping[str, Step],
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, Step], list[list[Form]]]:
    """For every kind of layer the structure with which the whole network is fastest.

    Kinds are taken in turn, the others as they were chosen so far. Layers of one kind change together, each
    to its own rank: so a small difference counts as often as there are layers. A layer that has no form of a
    structure keeps the one it has, or becomes dense; what was chosen so far competes too. What is no faster
    than dense, beyond what the rounds can tell, becomes dense; among those that gain as much as the fastest,
    but for ``TIE`` of it, the one with the least error is taken.

    Args:
        network: Times it.
        fitting: By layer and structure the candidate that may be chosen; ``dense`` always may.
        first: What to begin with.
        progress: Told which kind is timed (stage ``latency``), and asked whether to stop.

    Returns:
        The step of every layer that has something fitting and was timed in place, and for each kind what was
        timed, with its gain.

    Raises:
        RunCancelled: If stopped.
    """
    asked = [[name for name in kind if fitting.get(name)] for kind in network.kinds]
    asked = [kind for kind in asked if kind]
    chosen = {name: first.get(name, (DENSE, None)) for kind in asked for name in kind}
    forms = []
    progress = progress or Progress()
    for index, kind in enumerate(asked):
        message = say(
            "Timing the network as a whole, {number} of {count} kinds of layers",
            number=index + 1,
            count=len(asked),
        )
        progress.step("latency", message, index / len(asked))
        plans = {DENSE: {**chosen, **dict.fromkeys(kind, (DENSE, None))}, CHOSEN: chosen}
        for structure in dict.fromkeys(structure for name in kind for structure in fitting[name]):
            able = {name: _step_of(fitting[name][structure]) for name in kind if structure in fitting[name]}
            plans[structure] = {**chosen, **able}
            plans[f"{structure}, others dense"] = {**plans[DENSE], **able}
        plans = _distinct(plans)
        times = network.time(plans)
        errors = {key: _error_of(fitting, plan) for key, plan in plans.items() if key != DENSE}
        chosen = plans[_best(times, errors)]
        forms.append(
            [
                Form(
                    steps={name: plan[name] for name in kind},
                    gain_ms=float(np.median(times[DENSE]) - np.median(times[key])),
                )
                for key, plan in plans.items()
            ]
        )
    return chosen, forms


def compare_whole(network: TimedNetwork, steps: Mapping[str, Step]) -> WholeTimes:
    """The network as planned beside the dense one."""
    times = network.time({DENSE: {}, PLANNED: steps})
    return WholeTimes(
        dense_ms=float(np.median(times[DENSE])),
        planned_ms=float(np.median(times[PLANNED])),
        ratio=ratio_of(times[PLANNED], times[DENSE]),
    )


def _step_of(row: Candidate) -> Step:
    return row.structure, row.rank


def _distinct(plans: Mapping[str, dict[str, Step]]) -> dict[str, dict[str, Step]]:
    """The plans without those that are another one once more."""
    found: dict[str, dict[str, Step]] = {}
    for key, plan in plans.items():
        if plan not in found.values():
            found[key] = plan
    return found


def _error_of(fitting: Mapping[str, Mapping[str, Candidate]], plan: Mapping[str, Step]) -> float:
    """The sum of the layers' output errors, none for dense ones."""
    rows = (fitting[name].get(step[0]) for name, step in plan.items())
    return sum(row.output_error or 0.0 for row in rows if row is not None)


def _best(times: Mapping[str, NDArray[np.float64]], errors: Mapping[str, float]) -> str:
    """The structure of least error among the fastest, or dense."""
    medians = {structure: float(np.median(rounds)) for structure, rounds in times.items()}
    faster = [name for name in errors if ratio_of(times[name], times[DENSE]).high < 1.0]
    if not faster:
        return DENSE
    least = min(medians[name] for name in faster)
    most = least + TIE * (medians[DENSE] - least)
    return min((name for name in faster if medians[name] <= most), key=lambda name: errors[name])
