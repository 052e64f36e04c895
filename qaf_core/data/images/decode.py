"""One picture file to the pixels a model is fed; what is no picture, or too large a one, is told in words."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qaf_core.data.models.preprocessing import Fit, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
#: Formats that are tried, whatever the suffix says: none of them runs other programs.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
LARGEST_FILE_BYTES = 256 * 2**20
LARGEST_PICTURE_PX = 64_000_000

# A JPEG may be decoded at a fraction of its size where at least this many times the wanted size remains, as
# PIL's own thumbnails do: what resizing then makes of it differs by less than a grey level on average.
_REDUCING_GAP = 2
_ORIENTATION_TAG = 0x0112


class UndecodableError(Exception):
    """A picture that cannot be used, with the reason in a few words."""


def read_picture(path: Path, preprocessing: Preprocessing) -> Pixels:
    """The pixels (H, W, C) of a picture file, resized and cut for a model.

    Raises:
        UndecodableError: When it is no picture, damaged, or too large.
    """
    return decode_picture(_read_file(path), preprocessing)


def decode_picture(content: bytes, preprocessing: Preprocessing) -> Pixels:
    """The pixels (H, W, C) of an encoded picture, resized and cut for a model.

    Orientation marks of cameras are followed. Grey, palette, CMYK and 16-bit pictures become what the model
    takes; transparency is left out, as torchvision's image folders do.

    Raises:
        UndecodableError: When it is no picture, damaged, or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _check_size(picture.size)
            fit = preprocessing.fit(upright_size(picture))
            _check_size(fit.size)
            _shrink_while_decoding(picture, fit)
            ImageOps.exif_transpose(picture, in_place=True)
            return fit_picture(picture, preprocessing, fit)
    except UndecodableError:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableError("no picture of a known format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UndecodableError(f"more than {LARGEST_PICTURE_PX:,} pixels") from error
    except MemoryError as error:
        raise UndecodableError("too large for memory") from error
    except Exception as error:  # damaged files make PIL's readers raise nearly anything
        raise UndecodableError(_first_line(error)) from error


def fit_picture(picture: Image, preprocessing: Preprocessing, fit: Fit | None = None) -> Pixels:
    """The pixels (H, W, C) of an opened picture, resized and cut for a model."""
    from PIL import Image

    fit = fit or preprocessing.fit(picture.size)
    height, width, channels = preprocessing.shape
    picture = _converted(picture, "L" if channels == 1 else "RGB")
    if picture.size != fit.size:
        picture = picture.resize(fit.size, Image.Resampling[preprocessing.interpolation.upper()])
    if fit.cut != (0, 0, *fit.size):
        picture = picture.crop(fit.cut)
    return np.asarray(picture, np.uint8).reshape(height, width, channels)


def _read_file(path: Path) -> bytes:
    try:
        # Not opened before its kind is known, nor followed: a pipe would hold us, a link lead elsewhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UndecodableError("not a regular file")
            if status.st_size > LARGEST_FILE_BYTES:
                raise UndecodableError(f"larger than {LARGEST_FILE_BYTES >> 20} MiB")
            return file.read(LARGEST_FILE_BYTES)
    except OSError as error:
        raise UndecodableError(error.strerror or _first_line(error)) from error


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > LARGEST_PICTURE_PX:
        raise UndecodableError(f"{size[0]:,}×{size[1]:,} pixels, more than {LARGEST_PICTURE_PX:,}")


def upright_size(picture: Image) -> tuple[int, int]:
    """Width and height of a picture once it is turned as its camera's mark says."""
    turned = picture.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
    return (picture.height, picture.width) if turned else picture.size


def _shrink_while_decoding(picture: Image, fit: Fit) -> None:
    if picture.format == "JPEG":
        longer, shorter = max(fit.size), min(fit.size)
        size = (longer, shorter) if picture.width >= picture.height else (shorter, longer)
        picture.draft(None, (size[0] * _REDUCING_GAP, size[1] * _REDUCING_GAP))


def _converted(picture: Image, mode: str) -> Image:
    """The picture in 8 bits, grey or RGB."""
    if picture.mode == mode:
        return picture
    if picture.mode.startswith("I"):
        return _from_16_bits(picture).convert(mode)
    if picture.mode == "F":
        raise UndecodableError("floating-point pixels, no picture of 8 or 16 bits")
    return picture.convert(mode)


def _from_16_bits(picture: Image) -> Image:
    from PIL import Image as Images

    pixels = np.asarray(picture)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise UndecodableError("32-bit pixels, no picture of 8 or 16 bits")
    return Images.fromarray((pixels >> 8).astype(np.uint8))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
