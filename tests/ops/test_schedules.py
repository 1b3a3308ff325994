import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmask.ops import linear_schedule

values = st.floats(-100, 100)


@given(values, values, st.integers(1, 1000), st.integers(0, 2000))
def test_straight_line_then_constant(start, end, num_steps, step):
    left = max(num_steps - step, 0)
    expected = (start * left + end * (num_steps - left)) / num_steps
    value = linear_schedule(start, end, num_steps, step)
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(values, values, st.integers(1, 1000))
def test_starts_exactly_at_start(start, end, num_steps):
    assert linear_schedule(start, end, num_steps, 0) == start


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.05), (2.5e-4, 0.0), (0.4, 1.0), (3.0, 3.0)])
@pytest.mark.parametrize("step", [10, 11, 10**9])
def test_stays_at_end(start, end, step):
    assert linear_schedule(start, end, 10, step) == pytest.approx(end, rel=1e-15)


@given(values, values, st.integers(1, 50))
def test_steps_are_equal(start, end, num_steps):
    line = [linear_schedule(start, end, num_steps, step) for step in range(num_steps + 1)]
    for earlier, later in itertools.pairwise(line):
        assert later - earlier == pytest.approx((end - start) / num_steps, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("num_steps", "step"), [(0, 0), (-1, 0), (10, -1)])
def test_refuses_an_empty_schedule_and_a_negative_step(num_steps, step):
    with pytest.raises(ValueError, match=f"{num_steps} and {step}"):
        linear_schedule(1.0, 0.0, num_steps, step)
