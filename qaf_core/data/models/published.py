"""Published weights, by the name torchvision gives them, such as ``IMAGENET1K_V2``, or timm.

What a name means (classes, image size, normalisation, address) is known without a network; the weights
themselves are fetched once and kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from qaf_core.data.models.class_names import clean_class_names, make_unique
from qaf_core.data.models.preprocessing import Preprocessing, from_torchvision
from qaf_core.data.weights.entries import WeightLimits
from qaf_core.errors import WeightsError, WorkspaceError
from qaf_core.text.said import say

TIMM_SCHEME = "timm:"  # what follows is timm's name of the weights
MIRROR_VARIABLE = "QAF_WEIGHTS_MIRROR"
SILENCE_SECONDS = 20.0
_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_HASH = re.compile(r"-([a-f0-9]{8,})\.")


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One set of published weights.

    Attributes:
        name: As its publisher calls it; ``DEFAULT`` is resolved.
        url: Where they are; of timm's, which are in several places, ``timm:`` and their name.
        classes: Names of the outputs.
        preprocessing: How images are prepared for them.
        accuracy: The published top-1 accuracy as a fraction, or None.
    """

    name: str
    url: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    accuracy: float | None = None

    @property
    def file_name(self) -> str:
        """Name of the file they are kept in; torchvision's ends in the beginning of their SHA-256."""
        if self.url.startswith(TIMM_SCHEME):
            return f"timm-{self.url.removeprefix(TIMM_SCHEME)}.safetensors"
        return Path(urlsplit(self.url).path).name


def is_published_name(weights: object) -> bool:
    """Whether a value given for ``--weights`` is a name of published weights and not a path."""
    return isinstance(weights, str) and _NAME.fullmatch(weights) is not None


def describe_published(network: str, name: str, crop: tuple[int, int]) -> PublishedWeights:
    """What torchvision says about published weights of one of its networks.

    Args:
        network: Torchvision's name, for example ``resnet18``.
        name: ``DEFAULT``, ``IMAGENET1K_V1`` …
        crop: (height, width) of the input where they do not say, as those for segmentation and detection.

    Raises:
        WeightsError: If that network has no such weights; names those it has.
    """
    from torchvision import models

    published = models.get_model_weights(network)
    # Some have no classes: they are the feature layers alone, without a classifier.
    complete = [weights.name for weights in published if weights.meta.get("categories")]
    names = [*complete, "DEFAULT"] if complete else []
    if name not in names:
        raise WeightsError(
            say("torchvision publishes no weights {name} for {network}", name=name, network=network),
            got=name,
            expected=", ".join(names) or "a file",
            remedy="name one of these, or a file (./NAME if it has a name like this)",
        )
    weights = published[name]
    accuracy = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return PublishedWeights(
        name=weights.name,
        url=weights.url,
        classes=clean_class_names(make_unique(weights.meta["categories"]), f"torchvision's {weights.name}"),
        preprocessing=from_torchvision(weights.transforms(), crop),
        accuracy=None if accuracy is None else accuracy / 100,
    )


def published_path(published: PublishedWeights, workspace: Path | None) -> Path:
    """Where the weights lie or are to lie: torch's own cache if they are there, else the workspace's."""
    import torch

    kept = Path(torch.hub.get_dir()) / "checkpoints" / published.file_name
    if kept.is_file() or workspace is None:
        return kept
    return workspace / "cache" / "weights" / published.file_name


def fetch_weights(url: str, path: Path, limits: WeightLimits | None = None) -> None:
    """Fetch published weights into a file, with progress on stderr, and check them by their name.

    The file appears whole or not at all. ``QAF_WEIGHTS_MIRROR`` names another place that holds files of the
    same names.

    Args:
        url: Its last part ends in the beginning of the file's SHA-256, as ``resnet18-f37072fd.pth``.
        path: The file to make.
        limits: How large it may be.

    Raises:
        WeightsError: If they cannot be reached, are not there, too large, or not what the name says.
        WorkspaceError: If they cannot be written.
    """
    import torch

    name = Path(urlsplit(url).path).name
    stated = _HASH.search(name)
    mirror = os.environ.get(MIRROR_VARIABLE)
    place = f"{mirror.rstrip('/')}/{name}" if mirror else url
    remedy = say("download {name} elsewhere ({url}) and pass --weights FILE", name=name, url=url)
    if stated is None:
        raise WeightsError("published weights without a checksum in their name are not fetched", got=name)
    try:
        with _impatience():
            _check_size(place, name, (limits or WeightLimits()).file_bytes)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(place, str(path), stated.group(1), progress=True)
    except urllib.error.HTTPError as error:
        raise WeightsError(
            say("published weights {name} are not at their address", name=name),
            got=f"HTTP {error.code}",
            remedy=remedy,
        ) from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            "torchvision's published weights cannot be reached",
            got=f"{urlsplit(place).hostname or 'no host'}: {getattr(reason, 'strerror', None) or reason}",
            remedy=remedy,
        ) from error
    except RuntimeError as error:  # what torch.hub raises when the checksum differs
        raise WeightsError(
            say("published weights {name} arrived damaged or changed", name=name),
            got=say("another checksum than their name says"),
            remedy=remedy,
        ) from error
    except ValueError as error:
        raise WeightsError(
            say("{name} is no address", name=MIRROR_VARIABLE),
            got=mirror,
            expected="https://…",
        ) from error
    except OSError as error:
        raise WorkspaceError(
            "published weights cannot be kept",
            got=f"{path} ({error.strerror or error})",
            remedy="free some space, or choose another --workspace",
        ) from error


def _check_size(place: str, name: str, limit_bytes: int) -> None:
    request = urllib.request.Request(place, method="HEAD", headers={"User-Agent": "torch.hub"})
    with urllib.request.urlopen(request) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
    if size > limit_bytes:
        raise WeightsError(
            say("published weights {name} are too large", name=name),
            got=say("{size:,} bytes", size=size),
            expected=say("at most {most:,}", most=limit_bytes),
            remedy="if you trust them, raise weights_bytes in the workspace's settings.json",
        )


@contextlib.contextmanager
def _impatience() -> Iterator[None]:
    """A connection that says nothing for a while is given up; torch.hub itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
