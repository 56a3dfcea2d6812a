"""The selected touches of a lead include the first and the last one after each erasure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.intake.merge import Touch
from streams.intake.touches import Outermost

TOUCHES = st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abc"), st.just("web")), max_size=40)


@given(TOUCHES, TOUCHES, st.lists(st.integers(0, 50), min_size=1, max_size=5, unique=True))
def test_the_first_and_the_last_touch_after_each_time_are_selected(
    stored: list[Touch], later: list[Touch], times: list[int]
) -> None:
    outermost = Outermost(sorted(times))
    for touch in stored:
        outermost.add(touch)

    assert len(outermost.touches) <= 2 * len(times)
    for time in times:
        everything = [touch for touch in (*stored, *later) if touch[0] > time]
        selected = [touch for touch in (*outermost.touches, *later) if touch[0] > time]
        if everything:
            assert (min(selected), max(selected)) == (min(everything), max(everything))
