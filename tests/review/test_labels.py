from qaf_core.data.load import load_images
from qaf_core.data.models.catalogue import find_model
from qaf_core.factorization.options import Status
from qaf_core.review.labels import (
    digest_text,
    environment_labels,
    fewer_text,
    image_set_text,
    smaller_text,
    solve_labels,
)
from qaf_core.text.catalogue import translator

JA = translator("ja")


def test_every_end_of_a_solve_has_a_word() -> None:
    assert {*Status} < solve_labels(str).keys()


def test_names_of_built_in_images_are_words_and_names_of_others_stay() -> None:
    for model, told in (("inspection/resnet20", "検査画像"), ("digits/cnn", "手書き数字")):
        name = load_images("builtin", find_model(model), split="calibration", limit=8).name
        assert name.isascii()
        text = image_set_text(f"{name}, 1,512 images", JA)
        assert told in text
        assert " · 校正用" in text
        assert "subset" not in text
        assert text.endswith(" · 1,512 枚")
    assert image_set_text("/data/a, calibration, 12 images", str) == "/data/a · calibration · 12 images"
    assert image_set_text("/data/a, calibration", JA) == "/data/a, calibration"
    assert image_set_text("", JA) == ""


def test_how_many_times_smaller() -> None:
    assert smaller_text(1000, 100, str) == "10× smaller"
    assert smaller_text(1000, 100, JA) == "1/10 に圧縮"
    assert fewer_text(50, 20, str) == "2.50× fewer"
    assert fewer_text(50, 20, JA) == "1/2.50 に削減"
    assert smaller_text(1000, 0, JA) == fewer_text(1000, 0, str) == "–"


def test_what_digests_are_of() -> None:
    assert digest_text("weights: a: b.safetensors", JA) == "重み: a: b.safetensors"
    assert digest_text("data: images and targets", str) == "Evaluation images and their targets"
    assert digest_text("20261128-063909-4730ab: packed", JA) == "20261128-063909-4730ab: packed"
    assert environment_labels(JA)["cpu_count"] == "CPU コア数"
