"""Runs every process of the pipeline: settings, JSON logs, uvloop, signals, health pages, exit codes.

Exit codes (also listed in docs/runbooks/README.md): 0 after a requested stop, 1 after any failure that a restart may
fix, :data:`EX_SOFTWARE` and :data:`EX_CONFIG`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop

from infra.errors import ClientFailed, first_error
from infra.settings import Settings, SettingsError, exempt_loopback_from_proxies
from infra.telemetry import tracing

EX_SOFTWARE = 70
"""A Faust process ended itself at once: a handler raised, the event loop hangs, or Faust crashed. Restart it."""

EX_CONFIG = 78
"""A person has to fix something first: a setting is wrong. Do not restart it."""


@dataclass(slots=True)
class Status:
    """Health status for ``/ready``: 200 if ``ready`` is true and the texts are empty, otherwise 503 with the reason.

    ``waiting``: the unavailable dependencies. ``failure``: why the process is about to end. ``check``: a further
    condition; within a bounded time it returns what is unavailable, or "".
    """

    ready: bool = True
    waiting: str = ""
    failure: str = ""
    check: Callable[[], Awaitable[str]] | None = None
    _unavailable: dict[object, set[str]] = field(default_factory=dict)

    def show_unavailable(self, owner: object, names: Iterable[str]) -> None:
        """Set ``waiting`` to all that is unavailable: ``names`` to ``owner``, and what the other owners have shown."""
        self._unavailable[owner] = set(names)
        every = ", ".join(sorted(set().union(*self._unavailable.values())))
        self.waiting = f"waiting for {every}" if every else ""


@dataclass(slots=True)
class Stop:
    """A request to stop; workers poll ``requested`` or await :meth:`wait`. Also carries the health status.

    ``failure``: why the process has to stop, if no stop was requested; the process then exits with 1.
    """

    status: Status = field(default_factory=Status)
    failure: Exception | None = None
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    _loop: asyncio.AbstractEventLoop | None = None

    @property
    def requested(self) -> bool:
        """Whether the process has to stop."""
        return self.failure is not None or self._event.is_set()

    def request(self) -> None:
        """Request that all tasks of this process finish their work and end. Call it in the event loop."""
        self._event.set()

    def fail(self, error: Exception) -> None:
        """Stop the process because of ``error`` (the first one counts); ``/ready`` returns 503. Thread-safe."""
        self.failure = self.failure or error
        self.status.failure = f"stopping: {self.failure}"
        if self._loop is not None:  # a task waits
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the request, at most ``timeout_s`` seconds; return whether it was made."""
        self._loop = asyncio.get_running_loop()
        if self.requested:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True


Main = Callable[[Settings, Stop], Awaitable[None]]


def run(main: Main, name: str) -> None:
    """Run ``main`` as the process ``name`` until it returns, raises or a signal requests a stop; never returns.

    SIGTERM and SIGINT request a stop. If ``main`` has not returned ``settings.shutdown_s`` seconds later, the process
    exits with 1.

    Crash: unfinished work is not committed; it is reprocessed after the restart.
    """
    try:
        settings = Settings.load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EX_CONFIG) from None
    exempt_loopback_from_proxies()
    set_up_logs(settings.log_level, name)
    collect_garbage_rarely()
    raise SystemExit(uvloop.run(_live(main, settings, name)))


def collect_garbage_rarely() -> None:
    """Run the garbage collector rarely, and not over the present objects: batches create many objects, few cycles."""
    gc.freeze()
    gc.set_threshold(500_000, 20, 50)


async def _live(main: Main, settings: Settings, name: str) -> int:
    stop = Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.request)
    health = _serve_health(settings, stop.status) if settings.health_port else None
    logger = log(name)
    tracing.set_up(settings.otlp_endpoint, name)
    logger.info("started")
    try:
        code = await _exit_code(main, settings, stop, logger)
    finally:
        if health is not None:
            health.cancel()
            await asyncio.gather(health, return_exceptions=True)
        await asyncio.to_thread(tracing.close)
    if stop.failure is not None:
        logger.critical(str(stop.failure))
        return 1
    if not code:
        logger.info("stopped")
    return code


async def _exit_code(main: Main, settings: Settings, stop: Stop, logger: logging.Logger) -> int:
    """Run ``main`` until it ends, or until its time after a requested stop is over; return the exit code."""
    work = asyncio.ensure_future(main(settings, stop))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            await asyncio.wait({work}, timeout=settings.shutdown_s)
        if not work.done():
            logger.error("shutdown timeout exceeded; uncommitted records are reprocessed after the restart")
            return 1
        await work
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    except ClientFailed as error:
        stop.fail(error)
        return 1
    except Exception:
        if stop.failure is None:  # else this exception is its consequence
            logger.exception("stopped by an unexpected error")
        return 1
    finally:
        stopping.cancel()
    return 0


def _serve_health(settings: Settings, status: Status) -> asyncio.Task[None]:
    # Imported here: the web server takes 50 ms to import, and the command line imports this module.
    from infra import health, web  # noqa: PLC0415

    listener = web.listen(settings.api_host, settings.health_port)
    return asyncio.create_task(web.serve(health.app(health.Health(status)), listener, grace_s=1))


async def run_together(*works: Coroutine[Any, Any, None]) -> None:
    """Run ``works`` until all have ended. The first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except BaseExceptionGroup as errors:
        failed = first_error(errors)
    else:
        return
    raise failed


async def until_signalled(work: Awaitable[None]) -> None:
    """Await ``work``, and cancel it at SIGTERM or SIGINT. For servers that have no work to finish."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


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
                    error.detail = None  # type: ignore[attr-defined] # it quotes the row
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, its causes and contexts, and the errors of groups, each once: the chain may be cyclic."""
    seen: set[int] = set()
    left = [error]
    while left:
        error = left.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        left += [error.__cause__, error.__context__]
        if isinstance(error, BaseExceptionGroup):
            left += error.exceptions


def set_up_logs(level: str, process: str) -> None:
    """Write all logs to standard output, one JSON object per line. Libraries log only warnings and errors."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines(process))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("leadstream").setLevel(level)


def log(name: str) -> logging.Logger:
    """Return the logger ``name``; pass data as ``extra={"fields": {...}}``: ids, never personal data."""
    return logging.getLogger(f"leadstream.{name}")
