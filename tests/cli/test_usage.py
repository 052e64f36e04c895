"""What was typed wrong is told in one line, in both languages, by the name that was typed."""

from __future__ import annotations

import pytest

from qaf_core.cli.entry import main

WRONG = {
    ("show",): ("RUN is missing", "RUN が指定されていません"),
    ("cost", "digits/cnn", "--ratio", "x"): ("the value of --ratio", "--ratio の値は使えません"),
    ("cost", "digits/cnn", "--ratoi", "2"): (
        "there is no option --ratoi (did you mean --ratio",
        "候補: --ratio",
    ),
    ("cost", "digits/cnn", "--ratio"): ("--ratio needs a value", "--ratio には値が必要です"),
    ("nonsense",): ("there is no such command: nonsense", "nonsense というコマンドはありません"),
}


@pytest.mark.parametrize(("typed", "told"), WRONG.items())
def test_what_was_typed_wrong_is_told_in_both_languages(
    typed: tuple[str, ...], told: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for language, expected in zip(("en", "ja"), told, strict=True):
        assert main(["--lang", language, *typed]) == 2
        line = capsys.readouterr().err
        assert expected in line
        assert line.count("\n") == 1
    assert "使い方" in line
