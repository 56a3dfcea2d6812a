"""What every channel must do, whichever file it is: found by folder, tried on its simulator."""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from infra import plugins, processes
from infra.errors import DependencyUnavailable, Verdict
from sinks.messages import Channel, DeliveryConfig, LeaseLost, OutgoingMessage, SendFailed, Sent, Unsure

CHANNELS = plugins.discover("sinks.messages")
every_channel = pytest.mark.parametrize("module", CHANNELS.values(), ids=CHANNELS)
# Channel -> the simulator that takes its messages, and what is a place to send them to.
SIMULATORS = {"email": ("smtp", "smtp://127.0.0.1:{port}", "ada@example.com")}


async def nothing() -> None:
    return


def message(module: ModuleType, number: int = 1, **changes: Any) -> OutgoingMessage:
    given = {"message_id": f"{number:032x}", "to": SIMULATORS[module.NAME][2], "sender": "", "subject": "Hello"}
    return OutgoingMessage(**{"body": "<p>Hello</p>"} | given | changes)


@asynccontextmanager
async def simulated(module: ModuleType, state: Path, **config: Any) -> AsyncIterator[tuple[Channel, httpx.AsyncClient]]:
    simulator, url, _ = SIMULATORS[module.NAME]
    serving = asyncio.create_task(importlib.import_module(f"simulators.{simulator}").serve("127.0.0.1", 0, state))
    port = state / f"{simulator}_port"
    async with asyncio.timeout(20):
        while not port.exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)
    channel: Channel = module.connect(module.Config(url=url.format(port=port.read_text()), **config))
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{(state / 'http_port').read_text()}") as client:
            yield channel, client
    finally:
        await channel.close()
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def taken(client: httpx.AsyncClient) -> int:
    count: int = (await client.get("/_simulator/stats")).json()["messages"]
    return count


def test_there_are_channels_and_each_is_a_process() -> None:
    assert "email" in CHANNELS
    assert {f"messages-{name}" for name in CHANNELS} <= processes.load_processes().keys()
    assert CHANNELS.keys() == SIMULATORS.keys(), "a channel needs a simulator here"


@every_channel
def test_it_has_the_shape_of_its_neighbours(module: ModuleType) -> None:
    assert module.__doc__
    assert "Sources:" in module.__doc__
    assert issubclass(module.Config, DeliveryConfig)
    assert list(inspect.signature(module.connect).parameters) == ["config"]
    assert len(inspect.getsource(module).splitlines()) < 350


@every_channel
async def test_what_it_sends_arrives_once_also_side_by_side(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (channel, client):
        assert channel.name == module.NAME
        results = await asyncio.gather(*(channel.send(message(module, n), nothing) for n in range(8)))
        assert all(isinstance(result, Sent) for result in results)
        assert (await client.get("/_simulator/stats")).json()["unique"] == 8


@every_channel
@pytest.mark.parametrize("error", [LeaseLost(), DependencyUnavailable("Postgres", "gone")])
async def test_it_hands_nothing_over_when_it_may_not(module: ModuleType, tmp_path: Path, error: Exception) -> None:
    async def refused() -> None:
        raise error

    async with simulated(module, tmp_path) as (channel, client):
        with pytest.raises(type(error)):
            await channel.send(message(module), refused)
        assert isinstance(await channel.send(message(module, 2), nothing), Sent)
        assert await taken(client) == 1


@every_channel
async def test_nothing_is_taken_before_it_says_so(module: ModuleType, tmp_path: Path) -> None:
    before: list[int] = []
    async with simulated(module, tmp_path) as (channel, client):

        async def before_sending() -> None:
            before.append(await taken(client))

        await channel.send(message(module), before_sending)
        assert before == [0]
        assert await taken(client) == 1


@every_channel
async def test_a_lost_answer_is_unsure_or_it_dedupes(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (channel, client):
        await client.post("/_simulator/faults", json={"lose": True})
        result = await channel.send(message(module), nothing)
        assert isinstance(result, Unsure) or channel.dedupes


@every_channel
async def test_being_cancelled_it_sends_nothing_more(module: ModuleType, tmp_path: Path) -> None:
    async with simulated(module, tmp_path) as (channel, client):
        reached, never = asyncio.Event(), asyncio.Event()

        async def waits() -> None:
            reached.set()
            await never.wait()

        task = asyncio.create_task(channel.send(message(module), waits))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(await channel.send(message(module, 2), nothing), Sent)
        assert await taken(client) == 1


@every_channel
async def test_a_provider_that_is_not_there_rests_the_channel(module: ModuleType) -> None:
    channel = module.connect(module.Config(url=SIMULATORS[module.NAME][1].format(port=1), timeout_s=5))
    result = await channel.send(message(module), nothing)
    assert isinstance(result, SendFailed)
    assert result.verdict is Verdict.PAUSE
    await channel.close()


@every_channel
@pytest.mark.parametrize("field", ["to", "subject", "sender"])
async def test_a_line_end_in_a_value_is_refused_or_harmless(module: ModuleType, tmp_path: Path, field: str) -> None:
    async with simulated(module, tmp_path) as (channel, client):
        value = f"{SIMULATORS[module.NAME][2]}\r\nBcc: eve@example.com"
        result = await channel.send(replace(message(module), **{field: value}), nothing)
        assert isinstance(result, SendFailed | Sent)
        for kept in (await client.get("/_simulator/messages")).json()["messages"]:
            assert "Bcc" not in dict(kept["headers"])
            assert not any("eve" in to for to in kept["to"])
