"""timm's networks, where that package is installed: any of them, by the name it has there.

timm imports torch, so this is asked only when a network of timm's is chosen. Names are timm's: `resnet50`, or
`resnet50.a1_in1k` with the tag of published weights, which may stand for another size of images.
"""

from __future__ import annotations

import difflib
import os
import socket
import urllib.request
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qaf_core.data.models.class_names import clean_class_names, make_unique, published_categories
from qaf_core.data.models.listed import sketch_timm
from qaf_core.data.models.preprocessing import from_timm
from qaf_core.data.models.published import SILENCE_SECONDS, TIMM_SCHEME, PublishedWeights
from qaf_core.data.models.source import ModelSource
from qaf_core.data.models.timm_names import TIMM_FAMILY, TimmEntry, has_timm, looks_like_tag
from qaf_core.data.weights.entries import WeightLimits, WeightsHeader
from qaf_core.data.weights.load import match_names
from qaf_core.errors import ModelError, WeightsError, WorkspaceError
from qaf_core.files import appearing
from qaf_core.text.said import say

if TYPE_CHECKING:
    from torch import nn

DEFAULT = "DEFAULT"
IMAGENET_CLASSES = 1000
_REMEDY = "install it with: pip install 'qaf[zoo]'"
_MOST_NAMED = 12
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def describe_timm(model_id: str) -> ModelSource:
    """The source of `timm/NAME`, fed as timm feeds it.

    Raises:
        ModelError: When timm is not installed, has no such network (names close ones), or prepares its images
            in a way that cannot be described.
    """
    name = model_id.removeprefix(TIMM_FAMILY)
    config = _config(name)
    steps = from_timm(_data_config(config))
    return replace(sketch_timm(model_id), classes=_class_names(config), preprocessing=steps)


def search_timm(text: str) -> tuple[ModelSource, ...]:
    """All networks of timm whose name holds a text, as they are listed.

    Raises:
        ModelError: When timm cannot be imported.
    """
    timm = _timm()
    sources = []
    for name in timm.list_models():
        if text.lower() in name.lower():
            config = _config(name)
            entry = TimmEntry(side=_data_config(config)["input_size"][1])
            sources.append(replace(sketch_timm(TIMM_FAMILY + name, entry), classes=_class_names(config)))
    return tuple(sources)


def build_timm(name: str, num_classes: int) -> nn.Module:
    """Build a network of timm's with freshly drawn weights.

    Raises:
        ModelError: When timm is not installed, has no such network, or fails to build it.
    """
    _config(name)
    try:
        network: nn.Module = _timm().create_model(name, pretrained=False, num_classes=num_classes)
    except Exception as error:  # each family of networks has its own ways to fail
        raise ModelError(
            say("timm cannot build {name}", name=name), got=f"{type(error).__name__}: {error}"
        ) from error
    return network


def published_tags(name: str) -> tuple[str, ...]:
    """Tags of the weights timm publishes for a network; none of those without a classifier.

    Args:
        name: The network, with or without a tag of its own.

    Raises:
        ModelError: When timm is not installed or has no such network.
    """
    _config(name)
    network = name.partition(".")[0]
    named = _timm().list_models(network, pretrained=True, include_tags=True)
    complete = [full for full in named if _classes_of(_config(full))]
    return tuple(full.partition(".")[2] or DEFAULT for full in complete)


def is_timm_weights(name: str, weights: object) -> bool:
    """Whether a value given for `--weights` names published weights, as `a1_in1k`, and not a file."""
    if not isinstance(weights, str):
        return False
    if weights == DEFAULT or weights in published_tags(name):
        return True
    return looks_like_tag(weights)  # a name that timm does not know is told by the names it does


def describe_timm_weights(name: str, weights: str) -> PublishedWeights:
    """What timm says about published weights of one of its networks.

    Args:
        name: The network, with or without a tag of its own.
        weights: A tag, or `DEFAULT` for the network's own tag or timm's choice.

    Returns:
        Their `name` is the network's with their tag.

    Raises:
        WeightsError: If there are no such weights with a classifier; names those there are.
    """
    tags = published_tags(name)
    network, _, own = name.partition(".")
    tag = weights if weights != DEFAULT else own or _config(network).get("tag") or DEFAULT
    if tag not in tags:
        names = [*tags[:_MOST_NAMED], *([DEFAULT] if tags else [])]
        raise WeightsError(
            say(
                "timm publishes no weights {weights} with a classifier for {name}", weights=weights, name=name
            ),
            got=weights,
            expected=", ".join(dict.fromkeys(names)) or "a file",
            remedy="name one of these, or a file (./NAME if it has a name like this)",
        )
    full = network if tag == DEFAULT else f"{network}.{tag}"
    config = _config(full)
    return PublishedWeights(
        name=full,
        url=TIMM_SCHEME + full,
        classes=_class_names(config),
        preprocessing=from_timm(_data_config(config)),
    )


def fetch_timm_weights(url: str, path: Path, limits: WeightLimits | None = None) -> None:
    """Have timm fetch weights into its own cache and keep them in a file under the names this network uses.

    Args:
        url: As `describe_timm_weights` gives it.
        path: The safetensors file to make; it appears whole or not at all.
        limits: How large it may be.

    Raises:
        WeightsError: If they cannot be fetched, or are too large.
        WorkspaceError: If they cannot be written.
    """
    name = url.removeprefix(TIMM_SCHEME)
    config = _config(name)
    place = config.get("hf_hub_id") or config.get("url") or name
    unreachable = _why_unreachable(config)
    network: nn.Module
    try:
        if unreachable is not None:
            raise ConnectionError(unreachable)
        network = _timm().create_model(name, pretrained=True)
    except Exception as error:  # each of its sources fails in its own way
        raise WeightsError(
            say("timm's published weights {name} cannot be fetched", name=name),
            got=" ".join(str(error).split())[:160] or type(error).__name__,
            remedy=say("fetch {place} elsewhere and pass --weights FILE", place=place),
        ) from error
    _keep(network, name, path, (limits or WeightLimits()).file_bytes)


def count_timm_outputs(name: str, header: WeightsHeader) -> int | None:
    """Outputs of the classifier in a weights file of one of timm's networks, or None where there is none."""
    classifier = _config(name).get("classifier") or ()
    parts = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    shapes = match_names(header.tensors, None)
    heads = [shapes[f"{part}.weight"].shape for part in parts if f"{part}.weight" in shapes]
    return heads[0][0] if heads and heads[0] else None


def _timm() -> Any:
    """timm itself.

    Raises:
        ModelError: When it is not installed, or cannot be imported.
    """
    if not has_timm():
        raise ModelError("timm is not installed", expected="the package timm", remedy=_REMEDY)
    try:
        return import_module("timm")
    except Exception as error:  # importing runs all of its modules
        raise ModelError(
            "timm cannot be imported", got=f"{type(error).__name__}: {error}", remedy=_REMEDY
        ) from error


def _config(name: str) -> dict[str, Any]:
    """What timm says about a network and its weights.

    Raises:
        ModelError: When timm is not installed or does not know the network, or the tag.
    """
    timm = _timm()
    network, _, tag = name.partition(".")
    there = network in timm.list_models(network)  # names it only takes for others' are none of these
    with_tags = timm.list_models(network, include_tags=True) if there and tag else []
    if not there or (tag and name not in with_tags):
        close = with_tags or difflib.get_close_matches(network.lower(), timm.list_models(), n=4, cutoff=0.6)
        names = [TIMM_FAMILY + each for each in close[:_MOST_NAMED]]
        raise ModelError(
            "unknown model",
            got=TIMM_FAMILY + name,
            expected=say("one of {names}", names=", ".join(names))
            if names
            else "a name that timm.list_models() gives",
            remedy=say("did you mean {name}?", name=names[0])
            if names
            else "look for one with: qaf models --find TEXT",
        )
    config = timm.get_pretrained_cfg(name)
    return {} if config is None else dict(config.to_dict())


def _data_config(config: dict[str, Any]) -> dict[str, Any]:
    """How timm prepares images, by default."""
    resolve = import_module("timm.data").resolve_data_config
    settings: dict[str, Any] = resolve(pretrained_cfg=config or {"input_size": (3, 224, 224)})
    return settings


def _classes_of(config: dict[str, Any]) -> int:
    """Outputs that the published weights have; 0 where they are feature layers alone."""
    return int(config.get("num_classes", IMAGENET_CLASSES) or 0)


def _class_names(config: dict[str, Any]) -> tuple[str, ...]:
    """Names of the outputs; feature layers are built with a classifier for ImageNet, as timm would."""
    return _names_of(_classes_of(config) or IMAGENET_CLASSES)


@lru_cache(maxsize=8)
def _names_of(count: int) -> tuple[str, ...]:
    if count == IMAGENET_CLASSES:
        return published_categories("imagenet")
    data = import_module("timm.data")
    subset = data.infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return tuple(f"class {index}" for index in range(count))
    described = data.ImageNetInfo(subset).label_descriptions()
    return clean_class_names(make_unique(name.partition(",")[0] for name in described), f"timm's {subset}")


def _why_unreachable(config: dict[str, Any]) -> str | None:
    """Why the hub cannot be reached, found out at once: its own client tries again for most of a minute."""
    repository = config.get("hf_hub_id")
    if not repository or urllib.request.getproxies():
        return None
    hub = import_module("huggingface_hub")
    files = (config.get("hf_hub_filename"),) if config.get("hf_hub_filename") else _HUB_FILES
    if any(isinstance(hub.try_to_load_from_cache(repository, file), str) for file in files):
        return None
    place = urlsplit(os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname or "", port), timeout=SILENCE_SECONDS).close()
    except OSError as error:
        return f"{place.hostname or 'no host'}: {error.strerror or error}"
    return None


def _keep(network: nn.Module, name: str, path: Path, limit_bytes: int) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state = {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}
    size = sum(value.numel() * value.element_size() for value in state.values())
    if size > limit_bytes:
        raise WeightsError(
            say("published weights {name} are too large", name=name),
            got=say("{size:,} bytes", size=size),
            expected=say("at most {most:,}", most=limit_bytes),
            remedy="if you trust them, raise weights_bytes in the workspace's settings.json",
        )
    try:
        with appearing(path) as temporary:
            save_file(state, temporary)
    except SafetensorError as error:  # what it raises when the disk is full is its own
        raise WorkspaceError(
            "published weights cannot be kept",
            got=f"{path} ({error})",
            remedy="free some space, or choose another --workspace",
        ) from error
