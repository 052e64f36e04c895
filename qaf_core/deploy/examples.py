"""A few lines each that put an exported file to use, to be copied; a test runs them. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qaf_core.data.preprocessing import preprocessing_of

if TYPE_CHECKING:
    from qaf_core.data.models import ModelSource

MOST_CLASSES_NAMED = 20

_PICTURE = """\
picture = Image.open({picture!r}).convert({mode!r}).resize({size})
pixels = np.asarray(picture, np.float32).reshape({shape}){order} / {scale:g}
images = ((pixels - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)[None]
"""

_PYTORCH = """\
import numpy as np
import torch
from PIL import Image
from qaf_core.deploy.packed import open_packed

network = open_packed({path!r})
{picture}with torch.inference_mode():
    scores = network(torch.from_numpy(images))[0].numpy()
{answer}"""

_ONNX = """\
import numpy as np
import onnxruntime
from PIL import Image

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
    return _PYTORCH.format(path=path, picture=_picture(source, picture), answer=_answer(source))


def onnx_example(source: ModelSource, path: str, picture: str = "picture.png") -> str:
    """The same for an ONNX file, in ONNX Runtime and without this package.

    Args:
        source: The model, as ``describe_packed`` tells it.
        path: The ONNX file.
        picture: The picture.
    """
    return _ONNX.format(path=path, picture=_picture(source, picture), answer=_answer(source))


def _picture(source: ModelSource, picture: str) -> str:
    way = preprocessing_of(source)
    height, width, channels = way.shape
    return _PICTURE.format(
        picture=picture,
        mode="L" if channels == 1 else "RGB",
        size=(width, height),
        shape=(height, width, channels),
        order="[..., ::-1]" if way.channel_order == "bgr" else "",
        scale=way.scale,
        mean=list(way.mean),
        std=list(way.std),
    )


def _answer(source: ModelSource) -> str:
    if source.task != "classification" or len(source.classes) > MOST_CLASSES_NAMED:
        return "print(scores.argmax(0))\n"
    return f"print({list(source.classes)}[scores.argmax()])\n"
