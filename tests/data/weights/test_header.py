"""Headers of safetensors files: read without torch, and every lie in them told in one line."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from qaf_core.data.weights.entries import WeightLimits
from qaf_core.data.weights.header import read_header
from qaf_core.errors import QafError, WeightsError

SOUND = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(folder: Path, header: dict[str, Any] | str | bytes, data: bytes = b"\0" * 8) -> Path:
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    path = folder / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def message(path: Path, limits: WeightLimits | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        read_header(path, limits)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_sound_header_is_read_without_torch(tmp_path: Path) -> None:
    save_file(
        {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.tensor(7)},
        tmp_path / "w.safetensors",
        metadata={"classes": '["x"]'},
    )
    code = (
        "import sys; from pathlib import Path; from qaf_core.data.weights.header import read_header\n"
        "header = read_header(Path(sys.argv[1]))\n"
        "found = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}\n"
        "assert found == {'a': ('F32', (2, 3)), 'b': ('BF16', (4,)), 'c': ('I64', ())}, found\n"
        "assert header.metadata == {'classes': '[\"x\"]'}\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "w.safetensors")], check=True, timeout=60)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"a": {**SOUND, "data_offsets": [0, 800]}}, "offsets 0 to 800 for tensor a; expected 8 bytes"),
        ({"a": {**SOUND, "data_offsets": [8, 16]}}, "tensors of 16 bytes but 8 bytes of data"),
        ({"a": {**SOUND, "data_offsets": [-8, 0]}}, "offsets -8 to 0"),
        ({"a": {**SOUND, "data_offsets": [8, 0]}}, "offsets 8 to 0"),
        ({"a": {**SOUND, "data_offsets": [0]}}, "malformed offsets for tensor a"),
        ({"a": {**SOUND, "data_offsets": [0.0, 8.0]}}, "malformed offsets for tensor a"),
        ({"a": {**SOUND, "data_offsets": [False, 8]}}, "malformed offsets for tensor a"),
        ({"a": {**SOUND, "dtype": "F64"}}, "expected 16 bytes for [2] F64"),
        ({"a": {**SOUND, "dtype": "Q4"}}, "type Q4 for tensor a"),
        ({"a": {**SOUND, "dtype": ["F32"]}}, "type ['F32'] for tensor a"),
        ({"a": {**SOUND, "shape": [2**62, 2]}}, "for tensor a; expected 36,893,488,147,419,103,232 bytes"),
        ({"a": {**SOUND, "shape": [-1, -2]}}, "impossible shape"),
        ({"a": {**SOUND, "shape": [True, 2]}}, "impossible shape"),
        ({"a": {**SOUND, "shape": "2"}}, "no list of sizes"),
        ({"a": {**SOUND, "shape": [1] * 40}}, "too many dimensions"),
        ({"a": {"dtype": "F32"}}, "no dtype, shape and data_offsets"),
        ({"a": 3}, "no dtype, shape and data_offsets"),
        ({"a": SOUND, "b": SOUND}, "overlapping tensors a and b"),
        ({"a": {**SOUND, "shape": [1], "data_offsets": [4, 8]}}, "followed by other content"),
        ({}, "followed by other content"),
        ({"a" * 600: SOUND}, "tensor name that is too long"),
        ({"a": SOUND, "__metadata__": {"x": 3}}, "metadata that is not text"),
        ({"a": SOUND, "__metadata__": []}, "metadata that is not text"),
        ('{"a": {}, "a": {}}', "the name a twice"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ("[]", "no JSON object"),
        ("{nonsense", "no JSON"),
        (b"\xff\xfe\x00{", "no JSON"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, told: str) -> None:
    text = message(write(tmp_path, header))
    assert told in text
    assert "w.safetensors" in text


def test_lengths_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for length, data in ((2**63, b"{}"), (2**32, b"{}"), (100, b"{}"), (3, b"{}")):
        path.write_bytes(struct.pack("<Q", length) + data)
        assert "a header of" in message(path)
    path.write_bytes(b"\x08")
    assert "a header of" in message(path)
    sound = write(tmp_path, {"a": SOUND}).read_bytes()
    path.write_bytes(sound[:-1])
    assert "it is cut off" in message(path)
    path.write_bytes(sound + b"\0")
    assert "followed by other content" in message(path)


def test_limits_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": {**SOUND, "shape": [1], "data_offsets": [0, 4]},
                            "b": {**SOUND, "shape": [1], "data_offsets": [4, 8]}})  # fmt: skip
    assert len(read_header(path, WeightLimits(tensors=2)).tensors) == 2
    assert "2 tensors; expected at most 1" in message(path, WeightLimits(tensors=1))
    assert "a header of" in message(path, WeightLimits(header_bytes=20))
    assert "is too large" in message(path, WeightLimits(file_bytes=100))
    assert "settings.json" in message(path, WeightLimits(file_bytes=100))
    for value in (0, -1, True, 2.5):
        with pytest.raises(QafError, match="limit tensors out of range"):
            WeightLimits(tensors=value)  # type: ignore[arg-type]


def test_hostile_names_are_shown_escaped(tmp_path: Path) -> None:
    text = message(write(tmp_path, {"\x1b[2Jgone\u202e\n": {**SOUND, "dtype": "F64"}}))
    assert r"\x1b[2Jgone\u202e" in text


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "none.safetensors")
    assert "cannot be read" in message(tmp_path)


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_no_bytes_at_all_make_it_stumble(tmp_path_factory: Any, content: bytes, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    for start in (b"", struct.pack("<Q", length), struct.pack("<Q", len(content))):
        path.write_bytes(start + content)
        with contextlib.suppress(WeightsError):
            read_header(path)
