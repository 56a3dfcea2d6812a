"""What keys cost the API: requests per second of CPU time with and without them, side by side.

The CPU time of the server process is measured, not the elapsed time: other programs on the machine do not change it.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import orjson
import uvloop

from bench.keys_server import KEY
from bench.result import Result

_REQUESTS = 400
_WANTED = 0.97
_TURNS = 20  # the two servers take turns, so that what else the machine does affects both alike
_CONNECTIONS = 8
_EVENTS = (1, 50)  # in one request


def measure(runs: int) -> list[Result]:
    """Return a comparison for each number of events in a request, in requests per second of CPU time."""
    with _server("keys") as guarded, _server("open") as unguarded:
        return [
            _compared(events, runs, partial(_cpu_us, *guarded, events), partial(_cpu_us, *unguarded, events))
            for events in _EVENTS
        ]


def _compared(events: int, runs: int, ours: Callable[[], float], reference: Callable[[], float]) -> Result:
    ours(), reference()
    turns = [(ours(), reference()) for _ in range(runs * _TURNS)]
    mine, other = (1_000_000 / statistics.median(column) for column in zip(*turns, strict=True))
    ratio = round(mine / other, 3)
    name = f"API with keys / without, requests of {events}"
    return Result(name, round(mine, 1), round(other, 1), ratio, "requests/s", runs, _WANTED, "of CPU time")


@contextmanager
def _server(kind: str) -> Iterator[tuple[int, int]]:
    with subprocess.Popen([sys.executable, "-m", "bench.keys_server", kind], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.terminate()


def _cpu_us(pid: int, port: int, events: int) -> float:
    """Return the CPU time of a request in microseconds."""
    count = _REQUESTS if events == 1 else _REQUESTS // 10
    before = _cpu_ns(pid)
    uvloop.run(_send(port, _request(events), count))
    return (_cpu_ns(pid) - before) / count / 1000


def _cpu_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0])


def _request(events: int) -> bytes:
    one = {
        "type": "form_submitted",
        "envelope": {"event_id": "e-1", "tenant": "acme", "source": "web"},
        "identifiers": {"email": "ada@example.com", "phone": "+442079460000"},
        "first_name": "Ada",
        "company": "Example Ltd",
    }
    body = orjson.dumps([one] * events)
    head = f"POST /v1/events HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _send(port: int, request: bytes, count: int) -> None:
    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count // _CONNECTIONS):
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"http/1.1 202"):
                raise RuntimeError(f"the API did not accept the events: {head[:20]!r}")
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_CONNECTIONS):
            tasks.create_task(connection())
