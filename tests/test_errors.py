import pytest

from qaf_core import errors
from qaf_core.errors import PlanError, QafError, RunCancelled


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
