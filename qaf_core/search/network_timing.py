"""What the structures of layers gain inside the whole network.

A layer timed alone starts with cold caches and ends with a pause; inside a network what comes before and
after changes both, and a profile of the network adds its own time to every operation. So what is fast alone
is timed once more where it stands: the whole network with one structure or another there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from qaf_core.search.selection import DENSE as DENSE_STEP
from qaf_core.search.selection import Step, WholeTimes
from qaf_core.text.said import say

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray
    from torch import Tensor, nn

ROUNDS = 800
SECONDS_PER_KIND = 8.0
LARGEST_GAIN = 2.0  # times what layers gain alone
SMALLEST_MS = 1e-9
DENSE, PLANNED, ORIGINAL = "dense", "planned", "original"


class TimedNetwork(Protocol):
    """What a choice of structures is timed with."""

    @property
    def kinds(self) -> Sequence[Sequence[str]]:
        """Layers that can be exchanged, those of the same geometry together."""

    def time(self, plans: Mapping[str, Mapping[str, Step]]) -> Mapping[str, NDArray[np.float64]]:
        """Milliseconds of every round of the whole network, by plan (structure and rank by layer)."""


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
        self._inputs = np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)
        self._original = _open(original, self._inputs, threads)
        layers = swappable_layers(self._dense)
        geometries = {info.name: LayerGeometry.of(info) for info in inventory if info.name in layers}
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
            exchanged = {layer: step for layer, step in steps.items() if step != DENSE_STEP}
            known = {layer: step for layer, step in exchanged.items() if layer in self._geometries}
            model = swap_layers(self._dense, self._geometries, known)
            runs[name] = _open(model, self._inputs, self._threads)
        try:
            times = time_interleaved(
                {**runs, ORIGINAL: self._original}, rounds=ROUNDS, seconds=SECONDS_PER_KIND
            )
        except Exception as error:  # the runtime's errors have no base class of their own
            raise _cannot_run(error) from error
        return {name: times[name] for name in plans}


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


def gains_in_place(
    network: TimedNetwork,
    forms: Mapping[str, Mapping[str, tuple[Step, float]]],
    *,
    progress: Progress | None = None,
) -> dict[tuple[str, str], float]:
    """How many times what layers gain alone the whole network gains, by layer and structure.

    Layers of one kind change together, all others are dense: so a small difference counts as often as there
    are layers. What is no faster than dense, beyond what the rounds can tell, gains nothing.

    Args:
        network: Times it.
        forms: By layer and structure a typical rank, and the milliseconds it gains alone.
        progress: Told which kind is timed (stage ``latency``), and asked whether to stop.

    Raises:
        RunCancelled: If stopped.
    """
    asked = [kind for every in network.kinds if (kind := [name for name in every if forms.get(name)])]
    gains: dict[tuple[str, str], float] = {}
    progress = progress or Progress()
    for index, kind in enumerate(asked):
        message = say(
            "Timing the network as a whole, {number} of {count} kinds of layers",
            number=index + 1,
            count=len(asked),
        )
        progress.step("latency", message, index / len(asked))
        structures = dict.fromkeys(structure for name in kind for structure in forms[name])
        able = {key: [name for name in kind if key in forms[name]] for key in structures}
        plans = {key: {name: forms[name][key][0] for name in names} for key, names in able.items()}
        times = network.time({DENSE: {}, **plans})
        for key, names in able.items():
            gained = float(np.median(times[DENSE]) - np.median(times[key]))
            expected = sum(forms[name][key][1] for name in names)
            faster = ratio_of(times[key], times[DENSE]).high < 1.0
            gain = min(gained / max(expected, SMALLEST_MS), LARGEST_GAIN) if faster else 0.0
            gains |= {(name, key): gain for name in names}
    return gains


def compare_times(network: TimedNetwork, steps: Mapping[str, Step]) -> WholeTimes:
    """The network as planned beside the dense one."""
    times = network.time({DENSE: {}, PLANNED: steps})
    return WholeTimes(
        dense_ms=float(np.median(times[DENSE])),
        planned_ms=float(np.median(times[PLANNED])),
        ratio=ratio_of(times[PLANNED], times[DENSE]),
    )
