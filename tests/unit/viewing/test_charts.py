import numpy as np
import pytest

from aent_verl.viewing.charts import Chart, Line, y_limits


def test_wide_intervals_leave_the_lines_their_room():
    x = np.arange(3)
    mean = np.array([0.0, 1.0, 2.0])
    wide = Chart("c", "c", "x", [Line(0, x, mean, mean - 100, mean + 100)])
    low, high = y_limits(wide)
    assert (low, high) == pytest.approx((-1 - 0.2, 3 + 0.2))
    narrow = Chart("c", "c", "x", [Line(0, x, mean, mean - 0.1, mean + 0.1)])
    assert y_limits(narrow) == pytest.approx((-0.1 - 0.11, 2.1 + 0.11))
    flat = Chart("c", "c", "x", [Line(0, x, np.zeros(3))])
    low, high = y_limits(flat)
    assert low < 0 < high
