import json
import pickle

import pytest

from qaf_core import errors
from qaf_core.data.workspace.trust import UntrustedCode
from qaf_core.errors import PlanError, QafError, RunCancelled, reread
from qaf_core.text.said import say


def test_a_fault_is_one_line_that_says_what_got_expected_and_remedy() -> None:
    error = QafError("rank out of\nrange", got=0, expected="1 to 8", remedy="choose a rank.")
    assert str(error) == "rank out of range; got 0; expected 1 to 8; choose a rank."
    assert (error.what, error.got, error.expected, error.remedy) == (
        "rank out of\nrange", 0, "1 to 8", "choose a rank.",
    )  # fmt: skip


def test_a_question_keeps_its_mark() -> None:
    assert str(QafError("unknown model", remedy="did you mean digits/cnn?")).endswith("digits/cnn?")


def test_names_from_outside_are_shown_escaped() -> None:
    text = str(QafError("tensor \x1b[2J\x00 of \u202egpj.exe\u200b", got="Größe 日本\ntwo"))
    assert text == r"tensor \x1b[2J\x00 of \u202egpj.exe\u200b; got Größe 日本 two."


def test_what_is_not_known_is_left_out() -> None:
    assert str(PlanError("no plan.")) == "no plan."


@pytest.mark.parametrize("name", [name for name in vars(errors) if name.endswith("Error")])
def test_every_fault_of_the_input_is_a_qaf_error(name: str) -> None:
    assert issubclass(getattr(errors, name), QafError)


def test_a_stop_is_no_fault() -> None:
    assert not issubclass(RunCancelled, QafError)


JAPANESE = {
    "{what}; got {got}; expected {expected}; {remedy}.": "{what}（{got}、{expected}）。{remedy}。",
    "rank of {layer} out of range": "{layer} のランクが範囲外です",
    "at most {most:,}": "{most:,} 以下",
    "did you mean this?": "これのことですか？",
    "rank": "ランク",
}


def fault() -> PlanError:
    return PlanError(
        say("rank of {layer} out of range", layer="{rank}"),
        got="rank",
        expected=say("at most {most:,}", most=1000),
        remedy="did you mean this?",
    )


def test_an_error_is_told_in_another_language_but_not_what_was_got() -> None:
    text = fault().text(lambda text: JAPANESE.get(text, text))
    assert text == "{rank} のランクが範囲外です（rank、1,000 以下）。これのことですか？"
    assert str(fault()) == "rank of {rank} out of range; got rank; expected at most 1,000; did you mean this?"


def test_an_error_crosses_processes_with_its_parts() -> None:
    for error in (fault(), UntrustedCode("package.module:factory", "/code", "mine")):
        twin = pickle.loads(pickle.dumps(error))
        assert (type(twin), twin.__dict__, str(twin)) == (type(error), error.__dict__, str(error))


def test_an_error_is_read_again_from_plain_data() -> None:
    stored = json.loads(json.dumps(fault().to_plain()))
    twin = reread(stored, str(fault()))
    assert (twin.what, twin.got, twin.expected, twin.remedy) == (
        fault().what, "rank", fault().expected, "did you mean this?",
    )  # fmt: skip
    assert reread({"what": "torn", "got": None}, "torn.").args == ("torn.",)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        None,
        {"why": "x"},
        {"what": {"template": "{a:>99999999}", "values": {"a": "x"}}},
        {"what": {"template": "{a.__class__}", "values": {"a": "x"}}},
        {"what": {"template": "{a} {", "values": {"a": "x"}}},
    ],
)
def test_where_no_parts_can_be_read_the_line_stands(stored: object) -> None:
    assert str(reread(stored, "as it was; got 1.")) == "as it was; got 1."
