"""Names of classes: from text, JSON and metadata; cleaned, and refused in one line where they are unfit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qaf_core.data.formats.folder import list_folder, match_classes
from qaf_core.data.models import class_names
from qaf_core.data.models.catalogue import find_model
from qaf_core.data.models.class_names import (
    class_names_in,
    clean_class_names,
    find_classes,
    published_categories,
    read_class_names,
)
from qaf_core.data.weights.entries import WeightsHeader
from qaf_core.errors import DataError

REAL_DATA = os.environ.get("QAF_REAL_DATA")


def read(folder: Path, content: str | bytes) -> tuple[str, ...]:
    path = folder / "classes.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_class_names(path)


@pytest.mark.parametrize(
    "content",
    [
        "good\nbad part\nunsure\n\n",
        "good\r\n  bad   part \r\nunsure",
        b"\xef\xbb\xbfgood\nbad part\nunsure",
        '["good", "bad part", "unsure"]',
        '\n{"0": "good", "2": "unsure", "1": "bad part"}',
    ],
)
def test_every_usual_form_is_read(tmp_path: Path, content: str | bytes) -> None:
    assert read(tmp_path, content) == ("good", "bad part", "unsure")


def test_names_of_any_language_stay_and_hostile_ones_are_escaped(tmp_path: Path) -> None:
    names = read(tmp_path, "傷\nçatlak\n\x1b[2Jgone\n\u202egpj.exe\n" + "x" * 500)
    assert names[:4] == ("傷", "çatlak", r"\x1b[2Jgone", r"\u202egpj.exe")
    assert len(names[4]) == 80
    assert all(name.isprintable() for name in names)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "names no classes"),
        ("a\n\nb", "no name for class 2; got an empty line"),
        ("a\nb\na\n", "a name twice; got a, for classes 1 and 3"),
        ("x" * 100 + "1\n" + "x" * 100 + "2", "a name twice"),
        ('["a", 3]', "no name for class 2; got int"),
        ('["a", ""]', "no name for class 2"),
        ('["a"', "no JSON list of names"),
        ('{"0": "a", "2": "b"}', "no name for class 1"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfea", "no UTF-8 text"),
        ("\n".join(map(str, range(100_001))), "too many classes"),
    ],
)
def test_unfit_names_are_told_in_one_line(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        read(tmp_path, content)
    assert "classes.txt" in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", "~no_such_user_here/c.txt", "x" * 5000):
        with pytest.raises(DataError, match="class file"):
            read_class_names(path)
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(2**24)
    with pytest.raises(DataError, match="too large"):
        read_class_names(big)


def test_names_kept_with_the_weights_are_read() -> None:
    def header(text: str) -> WeightsHeader:
        return WeightsHeader(tensors={}, metadata={"classes": text})

    assert class_names_in(header(json.dumps(["a", "b"])), "w") == ("a", "b")
    assert class_names_in(WeightsHeader(tensors={}), "w") is None
    with pytest.raises(DataError, match="the class list in w is no JSON list"):
        class_names_in(header("a,b"), "w")
    assert clean_class_names(["a"], "x") == ("a",)


def test_names_of_public_data_sets_are_torchvisions_and_load_no_torch() -> None:
    code = (
        "import sys; from qaf_core.data.models.class_names import CATEGORY_LISTS, published_categories\n"
        "counts = {data: len(set(published_categories(data))) for data in CATEGORY_LISTS}\n"
        "assert counts == {'imagenet': 1000, 'voc': 21, 'coco': 91}, counts\n"
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert published_categories("imagenet")[134] == "crane bird"
    assert published_categories("coco")[26] == "N/A (2)"


def test_without_torchvision_classes_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    published_categories.cache_clear()
    monkeypatch.setattr(class_names, "find_spec", lambda _name: None)
    try:
        assert published_categories("voc")[:2] == ("class 0", "class 1")
        assert len(published_categories("coco")) == 91
    finally:
        published_categories.cache_clear()


def test_folders_named_by_wordnet_stand_in_the_order_of_the_outputs() -> None:
    source = find_model("torchvision/resnet18")
    names = sorted(f"n{2_000_000 + 7919 * number:08d}" for number in range(1000))
    assert match_classes(names, source, "class folders") == list(range(1000))
    assert match_classes(["goldfish", "tench"], source, "class folders") == [1, 0]


@pytest.mark.skipif(not REAL_DATA, reason="QAF_REAL_DATA names no folder with real checkpoints and images")
def test_a_real_imagenet_folder_is_read_in_order() -> None:
    listed = list_folder(Path(REAL_DATA or "") / "imagenet_1000", find_model("torchvision/mobilenet_v2"))
    assert listed.labels.tolist() == list(range(1000))
    assert listed.name_of(0).startswith("n01440764")


NFD, NFC = "cafe\u0301", "caf\u00e9"


@pytest.mark.parametrize(
    ("names", "classes", "found"),
    [
        (["a", "A"], ["A", "a"], [1, 0]),
        (["B", "a"], ["a", "b"], [1, 0]),
        (["b"], ["B", "b", "c"], [1]),
        ([NFD], ["tea", NFC], [1]),
        ([NFC.upper()], [NFD, "tea"], [0]),
        (["ＡＢ", "ﬁne"], ["fine", "ab"], [1, 0]),
        (["far_left", "near  right"], ["near right", "Far left"], [1, 0]),
        (["STRASSE"], ["straße"], [0]),
        (["other", "a"], ["a"], [None, 0]),
        (["x" * 100], ["x" * 79 + "…"], [0]),
        (["a", "a"], ["a", "b"], [0, 0]),
        ([], ["a"], []),
    ],
)
def test_names_mean_the_class_spelt_most_alike(
    names: list[str], classes: list[str], found: list[int | None]
) -> None:
    assert find_classes(names, classes, "class folders") == found


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["DOG"], ["Dog", "dog"], "one of the folders could be two classes; got DOG; expected Dog or dog"),
        (["ａ"], ["a", "A"], "could be two classes"),
        (["Dog", "dog"], ["dog", "cat"], "two folders are one class; got Dog and dog; expected one for dog"),
        (["a_b", "a b"], ["A B"], "two folders are one class"),
        ([NFC, NFD], [NFC], "two folders are one class"),
    ],
)
def test_names_that_could_mean_two_things_are_refused(
    names: list[str], classes: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_classes(names, classes, "folders")
