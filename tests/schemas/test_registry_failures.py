"""A schema registry that fails for some ids, for all of them, or is flooded with unknown ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import httpx
import pytest

from infra.errors import DependencyUnavailable
from schemas.writer_schemas import schema_fetch


class SimulatedRegistry:
    """Knows the ids below 100 and fails for those of ``failing``; each request takes ``takes_s``."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.takes_s = 0.005
        self.down = False
        self.failing: Iterable[int] = range(500, 600)
        self.requested: list[str] = []
        fetch = schema_fetch("http://registry", transport=httpx.MockTransport(self.respond), clock=lambda: self.now)
        assert fetch is not None
        self.fetch: Callable[[int], str] = fetch

    def respond(self, request: httpx.Request) -> httpx.Response:
        self.now += self.takes_s
        self.requested.append(request.url.path)
        schema_id = int(request.url.path.rpartition("/")[2] or 0)
        if self.down:
            raise httpx.ConnectError("refused", request=request)
        if schema_id in self.failing:
            return httpx.Response(500)
        return httpx.Response(200, json={"schema": "{}"}) if schema_id < 100 else httpx.Response(404)

    def result(self, schema_id: int) -> str:
        try:
            return "known" if self.fetch(schema_id) else ""
        except KeyError:
            return "unknown"
        except DependencyUnavailable:
            return "wait"

    def results_until_it_ends(self, schema_id: int) -> float:
        """Retry once a second, as the batch loop does; return the seconds until the id is known or unknown."""
        began = self.now
        while self.result(schema_id) == "wait":
            self.now += 1
            assert self.now - began < 1000
        return self.now - began


@pytest.fixture
def registry() -> SimulatedRegistry:
    return SimulatedRegistry()


@pytest.mark.parametrize("known_before", [True, False])
def test_an_id_for_which_alone_it_fails_is_unknown_after_a_minute(
    registry: SimulatedRegistry, *, known_before: bool
) -> None:
    if known_before:
        assert registry.result(7) == "known"
    assert 55 < registry.results_until_it_ends(500) < 70
    assert registry.result(500) == "unknown"
    assert registry.requested[-1] == ("/schemas/ids/7" if known_before else "/")


def test_many_ids_for_which_it_fails_wait_for_one_minute_together(registry: SimulatedRegistry) -> None:
    began = registry.now
    for schema_id in range(500, 600):
        registry.results_until_it_ends(schema_id)
    assert registry.now - began < 75


def test_a_failure_much_later_waits_again(registry: SimulatedRegistry) -> None:
    registry.results_until_it_ends(500)
    registry.now += 3600
    assert registry.result(501) == "wait"


def test_a_registry_that_is_down_is_waited_for(registry: SimulatedRegistry) -> None:
    assert registry.result(7) == "known"
    registry.down = True
    for _ in range(600):
        assert registry.result(8) == "wait"
        registry.now += 10
    registry.down = False
    assert registry.result(8) == "known"


def test_a_registry_that_fails_for_every_id_is_waited_for(registry: SimulatedRegistry) -> None:
    assert registry.result(7) == "known"
    registry.failing = range(1_000_000)
    for _ in range(600):
        assert registry.result(8) == "wait"
        registry.now += 10


@pytest.mark.parametrize("takes_s", [0.001, 0.05, 1.0, 4.9])
def test_a_flood_of_unknown_ids_makes_nobody_wait(registry: SimulatedRegistry, takes_s: float) -> None:
    registry.takes_s = takes_s
    for schema_id in range(1000, 21_000):
        assert registry.result(schema_id) == "unknown"
    took = registry.now - 1000.0
    assert took <= 2.25 + takes_s * 2
    assert len(registry.requested) >= 1


def test_a_good_id_is_found_after_a_flood_and_known_ones_stay_free(registry: SimulatedRegistry) -> None:
    registry.takes_s = 0.05
    for schema_id in range(1000, 2000):
        registry.result(schema_id)
    assert registry.result(8) == "unknown"  # not looked up, and not remembered as unknown
    registry.now += 1
    assert registry.result(8) == "known"


def test_an_unknown_id_is_requested_again_after_half_a_minute(registry: SimulatedRegistry) -> None:
    for passed in (0, 20, 20):
        registry.now += passed
        assert registry.result(1000) == "unknown"
    assert len(registry.requested) == 2
