"""Model sources: which networks can be compressed, where weights come from, how they are built.

Listing and finding models needs no torch, so that a screen can paint before torch is loaded.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from qaf_core.data.inspection import dataset
from qaf_core.data.models.listed import list_timm, list_torchvision
from qaf_core.data.models.overrides import choose_classes, choose_preprocessing, choose_weights
from qaf_core.data.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from qaf_core.data.models.settings import RegisteredModel, Settings, read_settings
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.timm_names import TIMM_ARCHITECTURE, TIMM_FAMILY, has_timm
from qaf_core.data.workspace.trust import check_trusted
from qaf_core.errors import ModelError, WeightsError
from qaf_core.text.said import Said, say

if TYPE_CHECKING:
    from torch import nn

    from qaf_core.network.plan.layer_info import LayerInfo
    from qaf_core.network.topology.description import Topology

Found = TypeVar("Found")

__all__ = [
    "ModelSource",
    "build_model",
    "build_network",
    "find_model",
    "list_models",
    "load_inventory",
    "load_structure",
    "search_models",
    "weights_path",
]

SAMPLE_MODELS = Path(__file__).resolve().parents[3] / "sample_models"
CARD_SCHEMA_VERSION = 1
CIFAR_ORIGIN = "https://github.com/akamaster/pytorch_resnet_cifar10"
TORCHVISION_ORIGIN = "https://docs.pytorch.org/vision/stable/models.html"

_DIGITS = Preprocessing(crop=(8, 8), mean=(0.305,), std=(0.376,))
_INSPECTION = Preprocessing(crop=(dataset.IMAGE_SIZE,) * 2, mean=dataset.MEAN, std=dataset.STD)
_CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _shipped(
    model_id: str, title: str, architecture: str, data: Literal["inspection", "digits"], **other: Any
) -> ModelSource:
    digits = data == "digits"
    source = ModelSource(
        id=model_id,
        title=title,
        architecture=architecture,
        preprocessing=_DIGITS if digits else _INSPECTION,
        classes=tuple("0123456789") if digits else dataset.CLASSES,
        weights=weights_path(model_id),
        default_data=data,
        shipped=True,
    )
    return replace(source, **other)


def weights_path(model_id: str) -> Path:
    """Where the trained weights of a shipped model lie; its card has the same name and ends in .json."""
    return SAMPLE_MODELS / f"{model_id.replace('/', '_')}.safetensors"


def _cifar(depth: int) -> ModelSource:
    return ModelSource(
        id=f"cifar/resnet{depth}",
        title=f"ResNet-{depth}, CIFAR-10",
        architecture=f"cifar_resnet{depth}",
        preprocessing=Preprocessing(crop=(32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD),
        classes=_CIFAR_CLASSES,
    )


_SHIPPED = (
    _shipped("digits/cnn", "Small CNN, handwritten digits", "digits_cnn", "digits"),
    _shipped("inspection/resnet20", "ResNet-20, surface inspection", "cifar_resnet20", "inspection"),
    _shipped("inspection/resnet18", "ResNet-18, surface inspection", "torchvision.resnet18", "inspection"),
    _shipped("inspection/vgg", "Narrow VGG, surface inspection", "narrow_vgg", "inspection"),
    _shipped(
        "inspection/unet",
        "U-Net, defects by pixel",
        "unet",
        "inspection",
        task="segmentation",
        classes=dataset.SURFACE_CLASSES,
    ),
    _shipped(
        "inspection/detector",
        "FCOS detector, boxes around defects",
        "small_fcos",
        "inspection",
        task="detection",
        classes=dataset.SURFACE_CLASSES,
        preprocessing=replace(_INSPECTION, mean=(0.0,) * 3, std=(1.0,) * 3),
    ),
)
_CIFAR = tuple(_cifar(depth) for depth in (20, 32, 44, 56, 110))


@lru_cache(maxsize=1)
def _sources() -> dict[str, ModelSource]:
    return {source.id: source for source in (*_SHIPPED, *_CIFAR, *list_torchvision())}


def list_models(workspace: Path | None = None) -> tuple[ModelSource, ...]:
    """Every named model: the shipped ones with their cards, the CIFAR ResNets, torchvision's networks.

    Where timm is installed, its well-known networks stand last; `find_model` takes all of them.

    Args:
        workspace: The models registered there stand first; None for none.

    Raises:
        WorkspaceError: When the workspace's settings cannot be read.
    """
    registered = tuple(_registered(model) for model in read_settings(workspace).models)
    return (*registered, *(_with_card(source) for source in _sources().values()), *list_timm())


def search_models(text: str, workspace: Path | None = None) -> tuple[ModelSource, ...]:
    """Models whose id or title holds a text, all of timm's among them where it is installed.

    Args:
        text: What is looked for; case does not matter.
        workspace: The models registered there count too; None for none.

    Raises:
        ModelError: When timm is installed and cannot be imported.
        WorkspaceError: When the workspace's settings cannot be read.
    """
    query = text.strip().lower()
    sources = [source for source in list_models(workspace) if query in f"{source.id} {source.title}".lower()]
    if has_timm():
        from qaf_core.data.models.timm_networks import search_timm

        known = {source.id for source in sources}
        sources += [
            source for source in search_timm(query.removeprefix(TIMM_FAMILY)) if source.id not in known
        ]
    return tuple(sources)


def find_model(
    model_id: str,
    weights: str | Path | None = None,
    *,
    classes: str | Path | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    workspace: Path | None = None,
) -> ModelSource:
    """The source with this id.

    Args:
        model_id: `inspection/NAME`, `digits/NAME`, `cifar/NAME`, `torchvision/NAME`, `timm/NAME`, one
            registered in the workspace, or `package.module:factory` (the user's own code, which is imported
            here).
        weights: Trained weights to use, safetensors or a torch state dict; by default the shipped or
            registered ones. For the networks of torchvision and timm also a name of published weights, as
            `DEFAULT`.
        classes: File with the names of the classes, in the order of the outputs.
        preprocessing: Fields of `Preprocessing` that are other than the model's own.
        workspace: Whose settings count: registered models, limits; None for none.

    Raises:
        ModelError: When there is no such model (names close matches), or the preprocessing is malformed.
        WeightsError: When the weights file does not exist or is not to be trusted.
        DataError: When the classes do not fit.
        WorkspaceError: When the settings cannot be read.
    """
    settings = read_settings(workspace)
    registered = settings.model(model_id)
    if ":" in model_id:
        from qaf_core.data.models.factories import describe_factory

        source = describe_factory(model_id)
    elif registered is not None:
        source = _registered(registered)
    else:
        source = _with_card(_named(model_id, settings))
    source = replace(source, limits=settings.limits)
    if weights is not None:
        source = choose_weights(source, weights, classes, workspace)
    elif classes is not None:
        source = choose_classes(source, classes)
    return source if preprocessing is None else choose_preprocessing(source, preprocessing)


def _registered(model: RegisteredModel) -> ModelSource:
    """A registered model, described without its code: a factory is called only when it is built."""
    # A network of timm is not asked for here: importing timm takes seconds.
    own = ":" in model.base or model.base.startswith(TIMM_FAMILY)
    base = None if own else _named(model.base, Settings())
    same_classes = base is not None and len(base.classes) == len(model.classes)
    return ModelSource(
        id=model.id,
        title=model.title,
        architecture=_architecture_of(model.base) if base is None else base.architecture,
        preprocessing=Preprocessing.from_dict(model.preprocessing),
        classes=model.classes,
        weights=None if model.weights is None else Path(model.weights),
        weights_part=model.weights_part,
        weights_url=model.weights_url,
        task=model.task,
        default_data=base.default_data if base is not None and same_classes else None,
        data=model.data,
        registered=True,
        code_path=model.code_path,
        output=model.output,
        outputs=model.outputs,
    )


def _architecture_of(base: str) -> str:
    if base.startswith(TIMM_FAMILY):
        return TIMM_ARCHITECTURE + base.removeprefix(TIMM_FAMILY)
    return base


def _named(model_id: str, settings: Settings) -> ModelSource:
    sources = _sources()
    if model_id in sources:
        return sources[model_id]
    if model_id.startswith(TIMM_FAMILY):
        from qaf_core.data.models.timm_networks import describe_timm

        return describe_timm(model_id)
    query = model_id.strip().lower()
    names = [*(model.id for model in settings.models), *sources, *(source.id for source in list_timm())]
    same_end = [name for name in names if name.split("/")[-1] == query.split("/")[-1]]
    close = same_end + difflib.get_close_matches(query, names, n=4, cutoff=0.6)
    unique = list(dict.fromkeys(close))[:4]
    raise ModelError(
        "unknown model",
        got=model_id or say("an empty name"),
        expected=say("one of {names}", names=", ".join(unique))
        if unique
        else "a name that `qaf models` lists",
        remedy=say("did you mean {name}?", name=unique[0]) if unique else None,
    )


@lru_cache(maxsize=16)
def _read_card(path: Path, modified_ns: int) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            say("model card {path} cannot be read", path=path.name), got=error, remedy="restore it from git"
        ) from error
    if card.get("schema_version") != CARD_SCHEMA_VERSION:
        raise ModelError(
            say("model card {path} has another version", path=path.name),
            got=card.get("schema_version"),
            expected=CARD_SCHEMA_VERSION,
            remedy="make it again with sample_models/train.py",
        )
    return card


def _with_card(source: ModelSource) -> ModelSource:
    """A shipped source with its card, where there is one."""
    if not source.shipped or source.weights is None:
        return source
    path = source.weights.with_suffix(".json")
    try:
        modified_ns = path.stat().st_mtime_ns
    except FileNotFoundError:
        return source
    return replace(source, card=_read_card(path, modified_ns))


# --- building


def build_model(source: ModelSource, *, with_weights: bool = True) -> nn.Module:
    """Build a model in evaluation mode, float32, on the CPU, captured as a graph of operations.

    Args:
        source: From `find_model`.
        with_weights: Load the trained weights; without, the weights are freshly drawn (to be inspected, never
            to be evaluated).

    Raises:
        ModelError: When the user's factory fails.
        WeightsError: When weights are asked for and are missing, damaged, or made for another network.
    """
    path = source.weights
    if with_weights and path is not None and path.is_file() and _is_built_as_shipped(source):
        return copy.deepcopy(_shipped_model(source.id, path.stat().st_mtime_ns))
    return _build(source, with_weights)


def _is_built_as_shipped(source: ModelSource) -> bool:
    """Whether the user chose nothing that another network would be built from."""
    shipped = _sources().get(source.id) if source.shipped else None
    return shipped is not None and all(
        getattr(source, name) == getattr(shipped, name)
        for name in ("architecture", "weights", "weights_part", "input_shape", "classes", "output", "outputs")
    )


@lru_cache(maxsize=len(_SHIPPED))  # they are small, and capturing one takes longer than copying it
def _shipped_model(model_id: str, _modified_ns: int) -> nn.Module:
    return _build(_sources()[model_id], with_weights=True)


def _build(source: ModelSource, with_weights: bool) -> nn.Module:
    from qaf_core.network.graph.capture import capture

    network = build_network(source)
    if with_weights and (source.weights is not None or ":" not in source.architecture):
        from qaf_core.data.weights.load import load_weights, read_weights

        file = _weights_file(source)
        part = source.weights_part
        load_weights(network, read_weights(file, source.limits, part), file.name, source.id, part)
    network = network.float().eval()
    if ":" in source.architecture or source.outputs is not None:  # all others put out scores by class
        from qaf_core.data.models.outputs import attach_reading
        from qaf_core.network.graph.wrappers import unwrapped

        network = unwrapped(network, source.input_shape)
        attach_reading(network, source)
    return capture(network, source.input_shape)


def build_network(source: ModelSource) -> nn.Module:
    """The network as its author wrote it, with freshly drawn weights, not captured.

    Raises:
        ModelError: When the user's factory fails, or a workspace names it and nobody has trusted it.
    """
    if ":" in source.architecture:
        from qaf_core.data.models.factories import call_factory

        if source.registered:
            check_trusted(source.architecture, source.code_path, source.id)
        return call_factory(source.architecture, source.code_path)
    from qaf_core.data.models.architectures import build_architecture

    return build_architecture(source.architecture, source.outputs or len(source.classes))


def load_inventory(source: ModelSource) -> tuple[LayerInfo, ...]:
    """The layers of a model in forward order: from the card of a shipped model, else by tracing it.

    Raises:
        ModelError: When the network cannot be built or traced.
    """
    from qaf_core.network.plan.layer_info import inventory_from_rows, possible_structures

    if source.shipped and source.card.get("inventory"):
        # The card may be older than some of the structures: they follow from the weight's shape.
        return tuple(
            replace(info, structures=possible_structures(info.weight_shape)) if info.eligible else info
            for info in inventory_from_rows(source.card["inventory"])
        )
    from qaf_core.network.graph.inventory import take_inventory

    return _looked_into(source, lambda network: take_inventory(network, source.input_shape))


def load_structure(source: ModelSource) -> tuple[tuple[LayerInfo, ...], Topology | None]:
    """The layers of a model and how they are connected: from its card, else by tracing it.

    Returns:
        The inventory, and the graph, or None where tensors cannot be followed through the network.

    Raises:
        ModelError: When the network cannot be built or traced.
    """
    from qaf_core.network.topology.description import Topology

    if source.shipped and source.card.get("inventory") and source.card.get("graph"):
        return load_inventory(source), Topology.from_dict(source.card["graph"])
    from qaf_core.network.graph.capture import capture
    from qaf_core.network.graph.inventory import take_inventory
    from qaf_core.network.topology.trace import trace_topology

    def look(network: nn.Module) -> tuple[tuple[LayerInfo, ...], Topology | None]:
        captured = capture(network, source.input_shape)
        inventory = take_inventory(captured, source.input_shape)
        try:
            return inventory, trace_topology(captured, source.input_shape)
        except Exception:  # whatever the network's own code does; its layers are known all the same
            return inventory, None

    return _looked_into(source, look)


def _looked_into(source: ModelSource, look: Callable[[nn.Module], Found]) -> Found:
    """What is found by looking at a network without weights, or with such as are freshly drawn."""
    from qaf_core.network.graph.capture import capture
    from qaf_core.network.graph.weightless import Weightless
    from qaf_core.network.graph.wrappers import needs_values

    try:
        with Weightless():
            network = build_network(source)
        if needs_values(network):
            network = build_network(source)
        return look(network.eval())
    except (NotImplementedError, RuntimeError, ModelError):  # it reads weights, or decides by values
        return look(capture(build_network(source).eval(), source.input_shape, prove=False))


def _origin(source: ModelSource) -> Said:
    if source.architecture.startswith(TIMM_ARCHITECTURE):
        return say("or --weights DEFAULT for those timm publishes")
    place = CIFAR_ORIGIN if source.id.startswith("cifar/") else TORCHVISION_ORIGIN
    return say("public checkpoints: {place}", place=place)


def _weights_file(source: ModelSource) -> Path:
    path = source.weights
    if path is None:
        raise WeightsError(
            say("{source} comes without trained weights", source=source.id),
            expected="a safetensors file or a torch state dict",
            remedy=say("pass --weights FILE ({origin})", origin=_origin(source)),
        )
    if not path.is_file() and source.weights_url is not None:
        from qaf_core.data.models.published import TIMM_SCHEME, fetch_weights
        from qaf_core.data.models.timm_networks import fetch_timm_weights

        fetch = fetch_timm_weights if source.weights_url.startswith(TIMM_SCHEME) else fetch_weights
        fetch(source.weights_url, path, source.limits)
    if not path.is_file():
        remedy = (
            say("make them with: python sample_models/train.py {model}", model=source.id)
            if source.shipped
            else say("check the path")
        )
        raise WeightsError(say("weights file not found: {path}", path=path), remedy=remedy)
    return path
