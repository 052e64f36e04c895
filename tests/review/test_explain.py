"""The small pictures of the start page say what is true."""

from __future__ import annotations

import numpy as np

from qaf_core.review import explain
from qaf_core.text.said import untranslated as _


def test_rank_brings_the_picture_closer() -> None:
    whole = explain.sample_picture()
    errors = [np.linalg.norm(explain.rank_picture(rank)[0] - whole) for rank in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9
    assert explain.rank_picture(8)[1] == 8 * 128 / 64**2


def test_the_solver_ends_on_whole_numbers_at_least_as_good_as_rounding() -> None:
    free, whole = explain.admm_path(explain.MOST_STEPS)
    assert (whole == np.round(whole)).all()
    assert np.abs(free[-1] - whole[-1]).max() < 0.1
    assert len(free) == len(whole) == explain.MOST_STEPS + 1


def test_every_figure_is_drawn() -> None:
    for figure in (
        explain.rank_figure(5, _),
        explain.bits_figure(3, _, dark=True),
        explain.admm_figure(4, _),
        explain.bops_figure(4, 8, _, dark=True),
    ):
        assert figure.data
