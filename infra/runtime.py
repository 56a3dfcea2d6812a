"""How every worker process lives: settings, JSON logs, uvloop, signals, health page, exit codes.

Exit codes: 0 stopped as asked; 78 (``EX_CONFIG``) a person has to mend something first, so a supervisor must not
restart it (a wrong setting, or a topic full of dead records; ``LEADSTREAM_STAY_WHEN_DEAD`` is for a supervisor that
would); 1 anything else, after which a restart is right.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import orjson
import uvloop
from prometheus_client import generate_latest

from infra.errors import TooManyDead
from infra.settings import Settings, SettingsError
from infra.telemetry import tracing

EX_CONFIG = 78


@dataclass(slots=True)
class Status:
    """What ``/ready`` tells: 200 while ``ready`` and nothing is awaited, else 503 with ``waiting``."""

    ready: bool = True
    waiting: str = ""


@dataclass(slots=True)
class Stop:
    """A request to stop, made once; workers look at ``requested`` or wait for it. Also carries the health status."""

    status: Status = field(default_factory=Status)
    _event: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def requested(self) -> bool:
        """Whether the process was asked to stop."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask everything in this process to finish the work in hand and end."""
        self._event.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the request, at most ``timeout_s`` seconds; return whether it has come."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


Main = Callable[[Settings, Stop], Awaitable[None]]


def run(main: Main, name: str) -> None:
    """Run ``main`` as the worker process ``name`` until it returns, raises or is signalled; never returns.

    SIGTERM and SIGINT request a stop; ``main`` then has ``settings.shutdown_s`` seconds, after which the process exits
    with 1, its work uncommitted, so that nothing half-done counts as done.
    """
    try:
        settings = Settings.load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_CONFIG) from None
    set_up_logs(settings.log_level, name)
    collect_garbage_rarely()
    raise SystemExit(uvloop.run(_live(main, settings, name)))


def collect_garbage_rarely() -> None:
    """Look for cycles seldom, and never again among what is there now: batches make many objects and hardly a cycle."""
    gc.freeze()
    gc.set_threshold(500_000, 20, 50)


async def _live(main: Main, settings: Settings, name: str) -> int:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.request)
    server = await _serve_health(settings, stop) if settings.health_port else None
    logger = log(name)
    tracing.set_up(settings.otlp_endpoint, name)
    logger.info("started")
    work = asyncio.ensure_future(main(settings, stop))
    asked = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait({work}, timeout=settings.shutdown_s)
        if not work.done():
            logger.error("work in hand did not finish in time; it is not committed and will be done again")
            return 1
        await work
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    except TooManyDead as error:
        logger.critical(str(error))
        if settings.stay_when_dead:
            stop.status.waiting = f"stopped: {error}"
            await stop.wait()
        return EX_CONFIG
    except Exception:
        logger.exception("stopped by an unexpected error")
        return 1
    finally:
        asked.cancel()
        if server is not None:
            server.close()
        await asyncio.to_thread(tracing.close)
    logger.info("stopped")
    return 0


async def _serve_health(settings: Settings, stop: Stop) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), 5)
            path = line.split(b" ")[1] if line.count(b" ") else b""
            status, body = _health(path, stop.status)
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            await writer.drain()
        except (ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, settings.api_host, settings.health_port)


def _health(path: bytes, status: Status) -> tuple[str, bytes]:
    if path == b"/live":
        return "200 OK", b"live\n"
    if path == b"/ready":
        if status.ready and not status.waiting:
            return "200 OK", b"ready\n"
        return "503 Service Unavailable", (status.waiting or "starting").encode() + b"\n"
    if path == b"/metrics":
        return "200 OK", generate_latest()
    return "404 Not Found", b"only /live, /ready and /metrics are here\n"


class _JsonLines(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "event": record.getMessage(),
        }
        if record.name != self._process:
            line["logger"] = record.name
        line |= getattr(record, "fields", {})
        if record.exc_info:
            for error in _with_causes(record.exc_info[1]):
                if hasattr(error, "sqlstate"):
                    error.detail = None  # type: ignore[attr-defined] # Postgres quotes the row there
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _with_causes(inner)
        error = error.__cause__ or error.__context__


def set_up_logs(level: str, process: str) -> None:
    """Send all logs to standard output, one JSON object a line; libraries speak from WARNING up."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("leadstream").setLevel(level)


def log(name: str) -> logging.Logger:
    """Return the logger of a part; pass data as ``extra={"fields": {...}}``: ids, never personal data."""
    return logging.getLogger(f"leadstream.{name}")
