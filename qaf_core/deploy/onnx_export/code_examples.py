"""A few lines each that put an exported file to use, to be copied; a test runs them. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qaf_core.data.models.preprocessing import Preprocessing
    from qaf_core.data.models.source import ModelSource

MOST_CLASSES_NAMED = 20

# Of a model without settings of its own, as ``Preprocessing.fit`` scales: a test holds the two equal.
MARGIN, MARGIN_FROM_PX = "256 / 224", 128

_PICTURE = """\
picture = ImageOps.exif_transpose(Image.open({picture!r})).convert({mode!r})
{fit}pixels = np.asarray(picture, np.float32).reshape({shape}){order} / {scale:g}
images = ((pixels - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)[None]
"""

_PYTORCH = """\
import numpy as np
import torch
from PIL import Image, ImageOps
from qaf_core import load
{factory}
network = load({path!r}{given})
{picture}with torch.inference_mode():
    scores = network(torch.from_numpy(images))[0].numpy()
{answer}"""

_ONNX = """\
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

network = onnxruntime.InferenceSession({path!r}, providers=["CPUExecutionProvider"])
{picture}scores = network.run(None, {{"images": images}})[0][0]
{answer}"""


def pytorch_example(source: ModelSource, path: str, picture: str = "picture.png") -> str:
    """Python lines that run a packed file on one picture and print what it shows.

    Args:
        source: The model, as ``describe_packed`` tells it.
        path: The packed file.
        picture: The picture.
    """
    factory = argument = ""
    if ":" in source.architecture:  # a user's own code, which no file makes us import
        module, _, name = source.architecture.partition(":")
        factory, argument = f"from {module} import {name}\n", f", {name}()"
    return _PYTORCH.format(
        path=path, factory=factory, given=argument, picture=_picture(source, picture), answer=_answer(source)
    )


def onnx_example(source: ModelSource, path: str, picture: str = "picture.png") -> str:
    """The same for an ONNX file, in ONNX Runtime and without this package.

    Args:
        source: The model, as ``describe_packed`` tells it.
        path: The ONNX file.
        picture: The picture.
    """
    return _ONNX.format(path=path, picture=_picture(source, picture), answer=_answer(source))


def _picture(source: ModelSource, picture: str) -> str:
    way = source.preprocessing
    height, width, channels = way.shape
    return _PICTURE.format(
        picture=picture,
        mode="L" if channels == 1 else "RGB",
        fit=_resizing(way) + _cutting(way),
        shape=(height, width, channels),
        order="[..., ::-1]" if way.channel_order == "bgr" else "",
        scale=way.scale,
        mean=list(way.mean),
        std=list(way.std),
    )


def _resizing(way: Preprocessing) -> str:
    """Lines that scale the picture as ``Preprocessing.fit`` says."""
    height, width = way.crop
    blend = f"Image.Resampling.{way.interpolation.upper()}"
    if isinstance(way.resize, tuple):
        return f"picture = picture.resize({way.resize[::-1]}, {blend})\n"
    if way.resize is not None:
        sides = f"[int({way.resize} * side / min(picture.size)) for side in picture.size]"
        return f"picture = picture.resize({sides}, {blend})\n"
    margin = f"{MARGIN} * " if min(height, width) >= MARGIN_FROM_PX else ""
    sides = f"(max({width}, round(picture.width * factor)), max({height}, round(picture.height * factor)))"
    return (
        f"if picture.size != {(width, height)}:\n"
        f"    factor = {margin}max({width} / picture.width, {height} / picture.height)\n"
        f"    picture = picture.resize({sides}, {blend})\n"
    )


def _cutting(way: Preprocessing) -> str:
    """Lines that cut the middle out; black is put around what is smaller."""
    height, width = way.crop
    sides = way.resize if isinstance(way.resize, tuple) else (way.resize, way.resize)
    if sides == (height, width) and isinstance(way.resize, tuple):
        return ""
    left, top = (
        f"round((picture.{name} - {used}) / 2)"
        if side is None or side >= max(way.crop)
        else f"(round((picture.{name} - {used}) / 2) if picture.{name} >= {used}"
        f" else -(({used} - picture.{name}) // 2))"
        for name, used, side in (("width", width, sides[1]), ("height", height, sides[0]))
    )
    return f"left, top = {left}, {top}\npicture = picture.crop((left, top, left + {width}, top + {height}))\n"


def _answer(source: ModelSource) -> str:
    if source.task != "classification" or len(source.classes) > MOST_CLASSES_NAMED:
        return "print(scores.argmax(0))\n"
    return f"print({list(source.classes)}[scores.argmax()])\n"
