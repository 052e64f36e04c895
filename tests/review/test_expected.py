"""What was expected against what was measured: the figure's numbers and the sentence."""

from qaf_core.review.expected import ExpectedPoint, expected_figure, expected_sentence


def point(expected: float, measured: float) -> ExpectedPoint:
    return ExpectedPoint(
        title="run", expected=expected, low=expected - 0.02, high=expected + 0.01, measured=measured
    )


def test_points_stand_at_what_was_expected_and_measured() -> None:
    points = [point(0.9, 0.91), point(0.8, 0.7)]
    line, marks = expected_figure(points).data
    assert list(line.x) == [0.7, 0.91]
    assert (list(marks.x), list(marks.y)) == ([0.9, 0.8], [0.91, 0.7])
    assert list(marks.marker.symbol) == ["circle", "x"]
    assert expected_sentence(points) == (
        "1 of 2 runs measured what was expected within the 95 % interval; off by 5.5 % on average."
    )
