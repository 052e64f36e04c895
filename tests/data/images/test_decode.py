"""Pictures of every kind to pixels, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from qaf_core.data.images import decode
from qaf_core.data.images.decode import UndecodableError, decode_picture, fit_picture, read_picture
from qaf_core.data.models.preprocessing import Preprocessing

COLOUR = Preprocessing(crop=(6, 8), mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = Preprocessing(crop=(6, 8), mean=(0.0,), std=(1.0,))


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        (Image.new("RGB", (8, 6), (10, 20, 30)), "PNG", (10, 20, 30)),
        (Image.new("L", (8, 6), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (8, 6), 1), "PNG", (255, 255, 255)),
        (Image.new("LA", (8, 6), (77, 0)), "PNG", (77, 77, 77)),
        (Image.new("RGBA", (8, 6), (10, 20, 30, 128)), "PNG", (10, 20, 30)),
        (Image.new("RGB", (8, 6), (10, 20, 30)).quantize(4), "PNG", (10, 20, 30)),
        (Image.fromarray(np.full((6, 8), 77 * 256 + 3, np.uint16)), "PNG", (77, 77, 77)),
        (Image.fromarray(np.full((6, 8), 77 * 256 + 3, np.int32)), "TIFF", (77, 77, 77)),
        (Image.new("CMYK", (8, 6), (0, 0, 0, 0)), "TIFF", (255, 255, 255)),
        (Image.new("RGB", (8, 6), (10, 20, 30)), "BMP", (10, 20, 30)),
    ],
    ids=["rgb", "grey", "bits", "grey-alpha", "alpha", "palette", "16-bit", "32-bit-of-16", "cmyk", "bmp"],
)
def test_every_mode_becomes_what_the_model_takes(
    picture: Image.Image, kind: str, expected: tuple[int, int, int]
) -> None:
    pixels = decode_picture(encoded(picture, kind), COLOUR)
    assert (pixels.shape, pixels.dtype) == ((6, 8, 3), np.uint8)
    assert (pixels == expected).all()
    grey = decode_picture(encoded(picture, kind), GREY)
    assert grey.shape == (6, 8, 1)
    assert abs(int(grey[0, 0, 0]) - Image.new("RGB", (1, 1), expected).convert("L").getpixel((0, 0))) <= 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close(kind: str) -> None:
    pixels = decode_picture(encoded(Image.new("RGB", (8, 6), (10, 120, 230)), kind), COLOUR)
    assert np.abs(pixels.astype(int) - (10, 120, 230)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_orientation_is_followed(orientation: int) -> None:
    picture = smooth(16, 12)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture, "PNG", exif=exif)
    with Image.open(io.BytesIO(content)) as opened:
        upright = ImageOps.exif_transpose(opened)
    np.testing.assert_array_equal(decode_picture(content, COLOUR), fit_picture(upright, COLOUR))
    assert (orientation == 1) == np.array_equal(decode_picture(content, COLOUR), fit_picture(picture, COLOUR))


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_decoded_small_look_the_same(orientation: int) -> None:
    picture = smooth(1600, 1200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture, "JPEG", quality=95, exif=exif)
    steps = Preprocessing(crop=(48, 64), mean=(0.0,) * 3, std=(1.0,) * 3)
    with Image.open(io.BytesIO(content)) as opened:
        whole = fit_picture(ImageOps.exif_transpose(opened), steps)
    error = np.abs(decode_picture(content, steps).astype(int) - whole)
    assert error.mean() < 1
    assert error.max() <= 6


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("size", [(9_000, 9_000), (12_000, 12_000), (60_000, 60_000)])
def test_huge_pictures_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(UndecodableError, match="more than 64,000,000"):
        decode_picture(png_that_claims(*size), COLOUR)


def test_a_picture_too_narrow_to_be_scaled_is_refused() -> None:
    content = encoded(Image.new("L", (20_000, 1)))
    with pytest.raises(UndecodableError, match="4,480,000×224 pixels, more than"):
        decode_picture(content, Preprocessing(resize=224, crop=(224, 224), mean=(0.0,), std=(1.0,)))


WHOLE_PNG, WHOLE_JPEG = encoded(smooth(200, 150)), encoded(smooth(200, 150), "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (encoded(Image.new("P", (8, 6)), "GIF"), "no picture"),
        (WHOLE_PNG[: len(WHOLE_PNG) // 2], "truncated"),
        (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "truncated"),
        (WHOLE_PNG[:60] + bytes(200) + WHOLE_PNG[260:], "broken|truncated|CRC"),
        (encoded(Image.fromarray(np.full((6, 8), 1 << 20, np.int32)), "TIFF"), "32-bit"),
        (encoded(Image.fromarray(np.full((6, 8), 0.5, np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "svg", "eps", "gif", "half-png", "half-jpeg", "damaged", "32-bit", "float"],
)
def test_what_is_no_picture_is_told_in_one_line(content: bytes, reason: str) -> None:
    with pytest.raises(UndecodableError, match=reason) as caught:
        decode_picture(content, COLOUR)
    assert str(caught.value).strip()
    assert "\n" not in str(caught.value)


def test_only_regular_files_of_bearable_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole.png").write_bytes(WHOLE_PNG)
    assert read_picture(tmp_path / "whole.png", COLOUR).shape == (6, 8, 3)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "whole.png")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (("pipe", "not a regular file"), ("folder", "not a regular|directory")):
        with pytest.raises(UndecodableError, match=reason):
            read_picture(tmp_path / f"{name}.png", COLOUR)
    for name in ("link", "absent"):
        with pytest.raises(UndecodableError):
            read_picture(tmp_path / f"{name}.png", COLOUR)
    monkeypatch.setattr(decode, "LARGEST_FILE_BYTES", 1 << 10)
    with pytest.raises(UndecodableError, match="larger than"):
        read_picture(tmp_path / "whole.png", COLOUR)
