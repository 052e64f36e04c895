"""The state of a page in its address."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.state import address

from .conftest import Draw, shown, words


def page_of_all() -> None:
    """A page with a widget of every kind, another one, and what the address says that cannot be."""
    import streamlit as st

    from dashboard.state import address

    page = st.session_state.get("page", "one")
    with address.drawing(page):
        if page == "one":
            st.selectbox("loss", (0, 1, 2), key=address.choice("loss", (0, 1, 2), 0))
            names = st.session_state.get("names", ["joint", "dense"])
            st.pills("m", names, selection_mode="multi", key=address.several("method", names, names))
            st.number_input("n", 0.0, 10.0, key=address.number("least", None, 0.0, 10.0))
            st.slider("bits", 2, 8, key=address.number("bits", 4, 2, 8))
            st.text_input("find", key=address.text("find"))
            st.toggle("table", key=address.choice("table", (False, True), False))
        for fault in address.faults():
            st.warning(fault)


ALL = {"loss": "2", "method": "dense", "least": "1.5", "bits": "6", "find": "a b/ç", "table": "True"}


def come(**query: str | list[str]) -> AppTest:
    test = AppTest.from_function(page_of_all, default_timeout=20)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def values(test: AppTest) -> list[Any]:
    assert not test.exception, test.exception
    names = ("loss", "method", "least", "bits", "find", "table")
    return [test.session_state[f"one-{name}"] for name in names]


def query(test: AppTest) -> dict[str, Any]:
    """The address, of which a value told once is no list."""
    return {
        name: found[0] if isinstance(found, list) and len(found) == 1 else found
        for name, found in test.query_params.items()
    }


FIRST = [0, ["joint", "dense"], None, 4, "", False]


def test_what_is_as_at_first_is_left_out() -> None:
    test = come()
    assert values(test) == FIRST
    assert query(test) == {}


def test_an_address_brings_everything_back() -> None:
    test = come(**ALL)
    assert values(test) == [2, ["dense"], 1.5, 6, "a b/ç", True]
    assert query(test) == ALL
    assert values(test.run()) == [2, ["dense"], 1.5, 6, "a b/ç", True]


def test_a_change_stands_in_the_address_and_going_back_to_the_first_takes_it_out() -> None:
    test = come()
    test.selectbox[0].set_value(1).run()
    assert query(test) == {"loss": "1"}
    test.session_state["one-method"] = []
    assert query(test.run()) == {"loss": "1", "method": ""}
    assert values(come(method=""))[1] == []
    test.selectbox[0].set_value(0).run()
    assert query(test) == {"method": ""}


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", "3"), ("loss", ""), ("method", "gone"), ("least", "nan"), ("least", "11"), ("bits", "4.5"),
     ("bits", "9" * 400), ("bits", ""), ("least", "1e999"), ("find", "\x00"), ("find", "x" * 2000),
     ("table", "yes")],
)  # fmt: skip
def test_what_cannot_be_is_told_in_a_line_and_left_out(name: str, value: str) -> None:
    test = come(**{**ALL, name: value})
    assert [len(warning.value) < 160 for warning in test.warning] == [True]
    place = list(ALL).index(name)
    assert values(test)[place] == FIRST[place]
    assert query(test) == {key: told for key, told in ALL.items() if key != name}
    assert not test.run().warning


def test_of_several_those_that_there_are_stay() -> None:
    test = come(method=["gone", "dense", "lost"])
    assert values(test)[1] == ["dense"]
    assert ["gone" in warning.value and "lost" not in warning.value for warning in test.warning] == [True]
    assert query(test) == {"method": "dense"}


def test_what_is_gone_while_the_page_is_open_takes_nothing_along() -> None:
    test = come(method=["dense", "joint"])
    test.session_state["names"] = ["paper", "joint", "other"]
    assert values(test.run())[1] == ["joint"]
    test.session_state["names"] = ["paper", "other"]
    assert values(test.run())[1] == ["paper", "other"]


def test_a_fault_is_told_once() -> None:
    def page() -> None:
        import streamlit as st

        from dashboard.state import address

        address.fault("lang", "xx")
        address.fault("lang", "xx")
        st.metric("faults", len(address.faults()))

    assert AppTest.from_function(page).run().metric[0].value == "1"


def test_another_page_and_back_keeps_all_but_what_a_link_names() -> None:
    test = come(**ALL)
    test.session_state["page"] = "two"
    test.query_params.clear()
    assert query(test.run()) == {}
    test.session_state["page"] = "one"
    assert values(test.run()) == [2, ["dense"], 1.5, 6, "a b/ç", True]
    assert query(test) == ALL
    test.session_state["page"] = "two"
    test.run()
    test.session_state["page"] = "one"
    test.query_params.clear()
    test.query_params["loss"] = "1"
    assert values(test.run())[:4] == [1, ["dense"], 1.5, 6]


def test_a_late_click_that_carries_an_older_address_loses_nothing() -> None:
    test = come()
    test.selectbox[0].set_value(1).run()
    test.query_params.clear()  # as the browser had it before that
    test.slider[0].set_value(8).run()
    assert values(test)[0] == 1
    assert query(test) == {"loss": "1", "bits": "8"}


def test_back_restores_what_the_address_does_not_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    test = come(loss="2")
    test.slider[0].set_value(8).run()
    context = type("Context", (), {"is_history_navigation": True})
    monkeypatch.setattr(address, "get_script_run_ctx", context)
    del test.query_params["bits"]
    assert values(test.run()) == [2, *FIRST[1:]]
    monkeypatch.setattr(address, "get_script_run_ctx", lambda: None)
    test.slider[0].set_value(7).run()
    assert query(test) == {"loss": "2", "bits": "7"}


def test_a_default_that_changes_takes_those_along_who_have_it() -> None:
    test = come()
    test.session_state["names"] = ["joint", "paper", "dense"]
    assert values(test.run())[1] == ["joint", "paper", "dense"]
    assert query(test) == {}


def test_what_nobody_binds_stays(draw: Draw) -> None:
    assert query(come(other="x")) == {"other": "x"}


def test_unknown_things_of_an_address_are_told_on_the_page(draw: Draw) -> None:
    test = draw("start", lang="xx")
    assert "“xx”, which is not known here" in shown(test)
    assert "not known here" not in words(test.run())


def test_the_language_is_kept_in_the_address(draw: Draw) -> None:
    test = draw("start", lang="ja")
    assert test.selectbox[0].label.startswith("言語")
    test.selectbox(key="language").set_value("en").run()
    assert "lang" not in test.query_params
