"""Images as small pictures for screens and reports. Free of torch."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE_PX = 160
_PNG_SIDE_PX = 64  # up to here a PNG is small enough, and shows every pixel


def image_address(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, C) as a data address of a small picture."""
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    kind = "png" if max(picture.size) <= _PNG_SIDE_PX else "jpeg"
    picture.thumbnail((_SIDE_PX, _SIDE_PX))
    stream = io.BytesIO()
    picture.save(stream, kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
