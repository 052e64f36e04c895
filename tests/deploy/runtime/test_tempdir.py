"""A temporary folder without room is told as that, whoever was writing there and in whatever words."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from qaf_core.deploy.onnx_export.ort_quantizer import write_dense_int8
from qaf_core.deploy.runtime import tempdir
from qaf_core.deploy.runtime.layer_profile import profile_layers
from qaf_core.deploy.runtime.tempdir import scratch_folder
from qaf_core.errors import DataError, WorkspaceError

FULL = "temporary folder takes no more files; got .*; .*TMPDIR"


def test_the_folder_goes_and_other_faults_stay_what_they_are() -> None:
    with scratch_folder() as folder:
        (folder / "file").write_bytes(b"x")
    assert not folder.exists()
    for error in (ValueError("odd"), DataError("bad data")):
        with pytest.raises(type(error)), scratch_folder() as folder:
            raise error
        assert not folder.exists()


def test_a_full_folder_is_found_by_its_error_or_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(WorkspaceError, match=FULL), scratch_folder():
            raise RuntimeError("something went wrong") from OSError(number, "full")
    monkeypatch.setattr(tempdir, "_has_room", lambda *_: False)
    with pytest.raises(WorkspaceError, match=FULL), scratch_folder():
        raise RuntimeError("Protobuf serialization failed")


def test_a_folder_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", fail)
    with pytest.raises(WorkspaceError, match=FULL), scratch_folder():
        pass


def test_a_quantizer_without_room_does_not_blame_the_model(
    original_onnx: Path, images: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", fail)
    with pytest.raises(WorkspaceError, match=FULL):
        write_dense_int8(original_onnx, tmp_path / "dense.onnx", images)
    assert not (tmp_path / "dense.onnx").exists()


@pytest.mark.parametrize("content", ["[{", None])
def test_a_profile_that_ends_early_is_told(
    original_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    """ONNX Runtime says nothing when the disk is full: the profile is cut off, or not there."""
    cut = tmp_path / "profile.json"
    if content is not None:
        cut.write_text(content, encoding="utf-8")

    class Session:
        def get_inputs(self) -> list[object]:
            return [type("Input", (), {"name": "images"})]

        def run(self, *_: object) -> None:
            return None

        def end_profiling(self) -> str:
            return str(cut)

    monkeypatch.setattr("qaf_core.deploy.runtime.layer_profile.open_session", lambda *_, **__: Session())
    with pytest.raises(WorkspaceError, match=FULL):
        profile_layers({"a": original_onnx}, np.zeros((1, 3, 16, 16), np.float32), [], threads=1, rounds=1)
