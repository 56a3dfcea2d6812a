"""Retries: they end with their task, and several of them show together what is unavailable."""

from __future__ import annotations

import asyncio

from infra.errors import DependencyUnavailable
from infra.retry import Retry
from infra.runtime import Status
from tests.conftest import eventually


async def test_a_step_that_reports_an_outage_while_it_is_cancelled_is_not_repeated() -> None:
    begun = asyncio.Event()

    async def step() -> None:
        if begun.is_set():
            return
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise DependencyUnavailable("Kafka", "test") from None

    task = asyncio.create_task(Retry("tests", Status()).until_available(step))
    await begun.wait()
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=20)
    assert done
    assert task.cancelled()


async def test_a_status_shows_what_is_unavailable_to_any_of_those_who_share_it() -> None:
    status = Status()
    outages = {("work", "Postgres"), ("requests", "Postgres"), ("requests", "Kafka")}

    async def use(owner: str, dependency: str) -> None:
        if (owner, dependency) in outages:
            raise DependencyUnavailable(dependency, "test")

    async def soon(_: float) -> None:
        await asyncio.sleep(0)

    async def shows(waiting: str) -> None:
        await eventually(lambda: status.waiting == waiting)

    retries = {owner: Retry(owner, status, soon) for owner in ("work", "requests")}
    async with asyncio.TaskGroup() as group:
        for owner, name in sorted(outages):
            group.create_task(retries[owner].until_available(lambda owner=owner, name=name: use(owner, name)))  # type: ignore[misc]
        await shows("waiting for Kafka, Postgres")
        outages.remove(("work", "Postgres"))
        await eventually(lambda: not retries["work"].unavailable)
        assert status.waiting == "waiting for Kafka, Postgres"
        outages.remove(("requests", "Postgres"))
        await shows("waiting for Kafka")
        outages.clear()
        await shows("")
