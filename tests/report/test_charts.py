"""Charts: round ticks around every value."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.report.charts import _ticks, line_chart

numbers = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_ticks_are_few_even_and_around_all_values(values):
    if 0 < max(values) - min(values) < 1e-4 * max(map(abs, values)):
        return
    ticks = _ticks(values)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= min(values) + 1e-9
    assert ticks[-1] >= max(values) - 1e-9
    steps = [b - a for a, b in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6, abs=1e-9)


def test_frames_of_windows_have_plain_numbers():
    assert _ticks([0, 112]) == [0, 50, 100, 150]
    assert _ticks([0.0127, 0.0149]) == pytest.approx([0.012, 0.013, 0.014, 0.015])
    assert len(set(_ticks([0, 3e-15]))) > 2


def test_a_line_that_is_not_a_number_is_left_out():
    assert line_chart({"a": ([0], [float("nan")])}, "x", "y") == ""
    chart = line_chart({"a": ([0, 1, 2], [0, float("nan"), 1])}, "x", "<y>")
    assert chart.count("polyline") == 1
    assert "&lt;y&gt;" in chart
