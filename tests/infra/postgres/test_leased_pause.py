"""Backoff with full jitter, and pauses of a destination."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from infra.outcomes import Reason
from infra.postgres.leased_pause import Pause
from infra.retry import Backoff


def waiting(name: str) -> float | None:
    return REGISTRY.get_sample_value("leadstream_waiting", {"stage": "tests", "dependency": name})


@given(
    base=st.floats(0.001, 100),
    most=st.floats(0.001, 10_000),
    attempt=st.integers(1, 10_000),
    chance=st.floats(0, 0.999),
)
def test_a_backoff_is_between_zero_and_twice_a_mean_that_doubles(
    base: float, most: float, attempt: int, chance: float
) -> None:
    mean = min(most, base * 2.0 ** min(attempt - 1, 30))
    assert 0 <= Backoff(base, most, lambda: chance).seconds(attempt) <= 2 * mean
    assert Backoff(base, most, lambda: 0.5).seconds(attempt) == mean


def test_a_pause_lasts_as_long_as_requested_and_sets_the_metric(clock: Any, unique: str) -> None:
    pause = Pause("tests", unique, Backoff(1, 8, lambda: 0.5), clock)
    assert not pause.active
    until = pause.begin(Reason.RATE_LIMITED, wait_s=10)
    assert until == clock() + 10_000_000
    assert pause.begin(Reason.RATE_LIMITED, wait_s=1) == until, "never shortened"
    pause.answered()
    assert (pause.active, waiting(unique)) == (True, 1)
    clock.forward(10)
    assert not pause.active
    pause.answered()
    assert waiting(unique) == 0


def test_consecutive_pauses_back_off_until_the_destination_responds(clock: Any, unique: str) -> None:
    pause = Pause("tests", unique, Backoff(1, 8, lambda: 0.5), clock)
    waits = []
    for _ in range(6):
        waits.append((pause.begin(Reason.UNAVAILABLE) - clock()) / 1e6)
        clock.forward(waits[-1])
    assert waits == [1, 2, 4, 8, 8, 8]
    pause.answered()
    assert pause.begin(Reason.UNAVAILABLE) == clock() + 1_000_000
