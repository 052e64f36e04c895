"""Files of torch.save: announced shapes, and files that hold code, lie about sizes, or are no state dict."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qaf_core.data.weights.entries import WeightLimits
from qaf_core.data.weights.header import read_header
from qaf_core.data.weights.load import read_weights
from qaf_core.data.weights.pickle_reader import DamagedPickle, ForeignObject, PickleReader
from qaf_core.errors import WeightsError


def save(folder: Path, value: Any, **options: Any) -> Path:
    torch.save(value, folder / "w.pth", **options)
    return folder / "w.pth"


def message(path: Path, limits: WeightLimits | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        read_weights(path, limits)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_shapes_and_types_are_known_before_loading(tmp_path: Path, zipped: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    state = {**network.state_dict(), "half": torch.zeros(2, dtype=torch.bfloat16), "view": torch.ones(8)[2:5]}
    path = save(tmp_path, state, _use_new_zipfile_serialization=zipped)
    header = read_header(path)
    assert {name: entry.shape for name, entry in header.tensors.items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    assert {header.tensors[name].dtype for name in ("half", "0.weight", "1.num_batches_tracked")} == {
        "BF16", "F32", "I64",
    }  # fmt: skip
    for name, value in read_weights(path).items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_training_state_around_the_weights_does_no_harm(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = {
        "epoch": 3,
        "best": 0.5,
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "size": torch.Size([1]),
        "state_dict": network.state_dict(),
    }
    assert read_header(save(tmp_path, saved)).tensors.keys() == {"weight", "bias"}
    parameters = {"state_dict": dict(network.named_parameters())}
    assert read_header(save(tmp_path, parameters)).tensors["weight"].shape == (3, 2)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {mark}",)

    pickle.loads(pickle.dumps(Bomb()))
    assert mark.exists(), "the bomb is real"
    mark.unlink()
    path = save(tmp_path, {"w": torch.zeros(1), "b": Bomb()}, _use_new_zipfile_serialization=zipped)
    text = message(path)
    assert "holds Python objects; nothing of it was run; got" in text
    assert "system" in text
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb()))
    message(tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Bomb()))
    message(tmp_path / "w.safetensors")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (lambda: {"w": torch.zeros(1), "args": argparse.Namespace(a=1)}, "argparse.Namespace"),
        (lambda: {"w": torch.zeros(1), "best": np.float64(1)}, "numpy"),
        (lambda: {"w": np.array([None])}, "numpy"),
        (lambda: {"a": torch.ones(2).to_sparse()}, "a tensor that is sparse"),
        (lambda: {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "that is quantized"),
        (lambda: {"a": torch.zeros(2, device="meta")}, "a tensor that is without data"),
        (lambda: {"a": "text"}, "got a str as a"),
        (lambda: {"a": [torch.zeros(1)]}, "got a list as a"),
        (lambda: {3: torch.zeros(1)}, "holds no state dict"),
        (dict, "got no tensors"),
        (lambda: [torch.zeros(1)], "got a list"),
        (lambda: torch.zeros(1), "got one tensor"),
        (lambda: {"state_dict": {}}, "got a dict as state_dict"),
        (lambda: {("a",): torch.zeros(1)}, "cannot be read"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_state_dict_is_told(tmp_path: Path, make: Callable[[], Any], told: str) -> None:
    assert told in message(save(tmp_path, make()))


def test_programs_are_refused(tmp_path: Path) -> None:
    exported = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(exported, tmp_path / "w.pt2")
    assert "is a program of torch.export" in message(tmp_path / "w.pt2")
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("w/data.pkl", "w/constants.pkl", "w/code/__torch__.py"):
            archive.writestr(name, b"\x80\x02}.")
    told = message(tmp_path / "w.pt")
    assert "is a TorchScript program; nothing of it was run; expected tensors by name" in told
    assert "torch.jit.load(FILE).state_dict()" in told


def test_a_real_program_of_torchscript_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is being given up
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "w.pt"))
    assert "is a TorchScript program" in message(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (lambda: Own(), "Own"),
        (lambda: {"epoch": 1, "model": Own()}, "Own under model"),
        (lambda: {"ema": Own()}, "Own under ema"),
        (lambda: {"anything": nn.Sequential(nn.Linear(1, 1))}, "torch.nn.modules.container.Sequential"),
    ],
)
def test_whole_pickled_networks_are_named(tmp_path: Path, make: Callable[[], Any], told: str) -> None:
    text = message(save(tmp_path, make()))
    assert (
        f"holds a whole pickled network; nothing of it was run; got {'' if told[0] == 't' else __name__}"
        in text
    )
    assert told in text
    assert "where its code is: save only the tensors: safetensors.torch.save_file(torch.load(FILE" in text


class Own(nn.Linear):
    """A network of one's own."""

    def __init__(self) -> None:
        super().__init__(2, 2)


def rezip(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """The archive with changed parts, as someone with a grudge would write it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))
    return path


def test_archives_that_unpack_to_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.zeros(250_000)})
    packed = rezip(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 10_000
    assert "would unpack to more than it holds; got 1,0" in message(packed)


def test_archives_whose_parts_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.zeros(1000)})
    with zipfile.ZipFile(path, "a") as archive:
        original = next(part for part in archive.infolist() if part.filename.endswith("data/0"))
        for number in range(1, 50):  # more names for the same bytes
            twin = zipfile.ZipInfo(original.filename[:-1] + str(number))
            twin.header_offset, twin.CRC = original.header_offset, original.CRC
            twin.compress_size = twin.file_size = original.file_size
            archive.filelist.append(twin)
        archive._didModify = True
    assert "would unpack to more than it holds" in message(path)


def test_tensors_larger_than_their_data_are_refused(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(10**6, 10**6)  # a view that repeats one number
    assert "tensor w in w.pth is larger than its data; got 4,000,000,000,000 bytes" in message(
        save(tmp_path, {"w": wide})
    )
    path = save(tmp_path, {"w": torch.zeros(1000)})
    short = rezip(path, lambda name, content: content[:8] if name.endswith("data/0") else content)
    assert "tensor w in w.pth is larger than its data; got 4,000 bytes stated, 8 there" in message(short)
    legacy = save(tmp_path, {"w": torch.zeros(1000)}, _use_new_zipfile_serialization=False)
    legacy.write_bytes(legacy.read_bytes()[:-100])
    assert "larger than its data" in message(legacy)


def test_limits_are_kept(tmp_path: Path) -> None:
    path = save(tmp_path, {f"w{number}": torch.zeros(10) for number in range(100)})
    assert len(read_weights(path)) == 100
    assert "holds too many tensors" in message(path, WeightLimits(tensors=50))
    assert "too long a list" in message(path, WeightLimits(header_bytes=500))
    assert "too large" in message(path, WeightLimits(file_bytes=1000))
    shared = torch.zeros(1000)
    path = save(tmp_path, {f"w{number}": shared for number in range(100)})
    assert "tensors of w.pth are too large" in message(path, WeightLimits(file_bytes=100_000))
    with zipfile.ZipFile(path, "a") as archive:
        for number in range(200):
            archive.writestr(f"w/more/{number}", b"")
    assert "too many parts" in message(path, WeightLimits(tensors=100))


def test_damaged_archives_are_told(tmp_path: Path) -> None:
    sound = save(tmp_path, {"w": torch.zeros(10)}).read_bytes()
    for content in (sound[: len(sound) // 2], sound[:200] + sound[300:], b"PK\x03\x04"):
        (tmp_path / "w.pth").write_bytes(content)
        assert "cannot be read" in message(tmp_path / "w.pth")
    path = save(tmp_path, {"w": torch.zeros(10)})
    rezip(path, lambda name, content: b"\x80\x02" if name.endswith("data.pkl") else content)
    assert "cannot be read" in message(path)


def test_tuples_nested_in_themselves_take_no_time() -> None:
    # Each level holds the one before it twice: 2^60 leaves, were they ever counted or hashed.
    deep = b"\x80\x02K\x01\x85q\x00" + b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))
    with pytest.raises(DamagedPickle):
        PickleReader().read(io.BytesIO(b"\x80\x02}" + deep[2:] + b"K\x01s."))
    assert PickleReader().read(io.BytesIO(deep + b"."))


def test_huge_numbers_in_a_pickle_take_no_memory() -> None:
    assert PickleReader().read(io.BytesIO(b"\x80\x02Nr\xff\xff\xff\xff.")) is None
    for content in (b"\x80\x04\x96" + b"\xff" * 7 + b"\x00.", b"\x80\x02X\xff\xff\xff\x7f.", b"", b"."):
        with pytest.raises((DamagedPickle, ForeignObject)):
            PickleReader().read(io.BytesIO(content))


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n.", b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", b"(ios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.", b"\x80\x02cos.path\njoin\n)\x81.", b"\x82\x01.",
        b"\x80\x02c__builtin__\ngetattr\n.", b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch._utils\n__builtins__\n.",
    ],
)  # fmt: skip
def test_every_way_to_name_code_is_refused(content: bytes) -> None:
    with pytest.raises((ForeignObject, DamagedPickle)):
        PickleReader().read(io.BytesIO(content))


@given(st.binary(max_size=80))
def test_no_bytes_at_all_make_it_stumble(content: bytes) -> None:
    for start in (b"", b"\x80\x02", b"\x80\x02}X\x01\x00\x00\x00w"):
        with contextlib.suppress(DamagedPickle, ForeignObject):
            PickleReader().read(io.BytesIO(start + content))
