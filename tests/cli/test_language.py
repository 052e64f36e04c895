"""The command line speaks English or Japanese; what scripts read stays the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qaf_core.cli.entry import main
from qaf_core.cli.text import choose_language, print_table, status_word, system_language
from qaf_core.pipeline.events import Progress, RunEvent, stage_text
from qaf_core.text.catalogue import translator
from qaf_core.text.said import say

UNKNOWN = ["cost", "digits/cnnn", "--ratio", "2", "--bits", "4"]


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QAF_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    choose_language()


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja", "LC_MESSAGES": "C"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "ja_JP", "LANG": "de_DE"}, "ja"),
        ({"LC_ALL": "en_GB", "LANG": "ja_JP"}, "en"),
    ],
)
def test_the_system_says_which_language(environment: dict[str, str], language: str) -> None:
    assert system_language(environment) == language


def test_errors_are_told_in_the_language_of_the_option_or_the_environment(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(UNKNOWN) == 2
    english = capsys.readouterr().err
    assert main(["--lang", "ja", *UNKNOWN]) == 2
    japanese = capsys.readouterr().err
    assert english.startswith("unknown model; got digits/cnnn; ")
    assert japanese.startswith("モデルが見つかりません（実際: digits/cnnn、")
    monkeypatch.setenv("QAF_LANG", "ja")
    assert main(UNKNOWN) == 2
    assert capsys.readouterr().err == japanese
    assert main(["--lang", "en", *UNKNOWN]) == 2
    assert capsys.readouterr().err == english
    monkeypatch.setenv("QAF_LANG", "xx")
    assert main(UNKNOWN) == 2
    assert capsys.readouterr().err == "unknown language; got xx; expected en, ja.\n"


def test_json_is_the_same_in_every_language(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for language in ("en", "ja"):
        assert main(["--lang", language, "cost", "digits/cnn", "--ratio", "2", "--bits", "4", "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0] == told[1]


def test_columns_stand_below_wide_heads(capsys: pytest.CaptureFixture[str]) -> None:
    choose_language("ja")
    print_table(("layer", "bits", ""), [("conv1", "4", "x")])
    assert capsys.readouterr().out == "層     ビット\nconv1  4       x\n"
    assert status_word("failed") == "失敗"


def test_what_a_stage_says_crosses_the_store_with_its_values() -> None:
    told: list[RunEvent] = []
    Progress(told.append).stage("loading", say("Reading {total:,} images", total=1500))
    Progress(told.append).stage("loading", "Loading images")
    stored = [json.loads(json.dumps(event.data)) for event in told]
    assert [stage_text(data) for data in stored] == ["Reading 1,500 images", "Loading images"]
    ja = translator("ja")
    assert [stage_text(data, ja) for data in stored] == ["画像 1,500 枚を読み込み中", "画像を読み込み中"]
    assert (
        stage_text({"message": "as it was", "said": {"template": "{a:>99999}", "values": {"a": 1}}})
        == "as it was"
    )


def test_help_is_in_the_language_of_the_option_or_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for given in (["--lang", "ja", "cost", "--help"], ["--lang=ja", "cost", "--help"]):
        assert main(given) == 0
        told = capsys.readouterr().out
        assert "層の一覧" not in told
        assert "計画に対するサイズ" in told
        assert "活性値のビット数" in told
    assert main(["--lang", "ja", "--help"]) == 0
    assert "モデルを圧縮して評価し" in capsys.readouterr().out
    monkeypatch.setenv("QAF_LANG", "ja")
    assert main([]) == 0
    assert "モデルを圧縮して評価し" in capsys.readouterr().out
    assert main(["--lang", "en", "runs", "tag", "--help"]) == 0
    assert "Add tags to runs" in capsys.readouterr().out
