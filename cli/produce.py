"""``produce FILE``: sends lead events from an NDJSON file to ``leads.received``, by Kafka or by the HTTP API."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from infra.errors import first_error
from infra.settings import Settings

if TYPE_CHECKING:
    import httpx

    from api.ingest.accept import Acceptor, Checker, Item

_MAX_BATCH_EVENTS = 500  # limits of the HTTP API for one request
_MAX_BATCH_BYTES = 4_000_000
_CONCURRENT_BATCHES = 4
_DELIVER_S = 30.0
_NOT_ADMITTED = {401, 403}

Line = tuple[int, bytes]  # line number from 1, content


@dataclass(slots=True)
class Report:
    """The result of sending lines: a count, and the line numbers (from 1) that were not confirmed or are invalid."""

    sent: int = 0
    unconfirmed: list[int] = field(default_factory=list)
    invalid: list[tuple[int, str, str]] = field(default_factory=list)  # line number, path, message

    def add(self, lines: Sequence[Line], items: Sequence[Item]) -> None:
        """Add the results ``items`` of one batch of ``lines``, in the same order."""
        for (number, _), item in zip(lines, items, strict=True):
            if item["status"] in {"accepted", "valid"}:
                self.sent += 1
            elif item["status"] == "unknown":
                self.unconfirmed.append(number)
            else:
                self.invalid += [(number, p["path"], p["message"]) for p in item["problems"]]


class _NotAdmittedError(Exception):
    """The API did not admit the key of this command."""


class Transport(Protocol):
    """Sends batches of lines."""

    async def send(self, lines: Sequence[Line]) -> Sequence[Item]:
        """Send a batch and return one result for each line, in the same order."""
        ...


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(produce)


def produce(
    file: Annotated[Path, typer.Argument(help="NDJSON file with one event per line, or - for standard input.")],
    *,
    http: Annotated[bool, typer.Option("--http", help="Send to the HTTP API instead of Kafka.")] = False,
    url: Annotated[str, typer.Option(help="URL of the HTTP API. Implies --http.")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Send nothing if one line is invalid.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send events to the pipeline.

    Sends the valid lines and reports the invalid ones. Exit code 1 when a line is invalid or was not confirmed.

    A missing event_id or occurred_at is filled in. Events that have an event_id can safely be sent
    again: the pipeline accepts each event_id once.
    """
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        typer.echo(f"{file}: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    text = content.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which editors on Windows write
    lines = [(n, line) for n, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    settings = Settings.load()
    try:
        report = asyncio.run(_produce(settings, lines, url or _api_url(settings) if http or url else "", strict=strict))
    except* _NotAdmittedError as refused:
        typer.echo(f"The API refused the request: {first_error(refused)}. Set LEADSTREAM_API_KEY.", err=True)
        sys.exit(1)
    _print(report, as_json=as_json)
    if report.invalid or report.unconfirmed:
        raise typer.Exit(1)


def _api_url(settings: Settings) -> str:
    return f"http://{settings.api_host}:{settings.api_port}"


async def _produce(settings: Settings, lines: list[Line], url: str, *, strict: bool) -> Report:
    report = Report()
    if strict:
        checker = _checker(settings)
        report.add(lines, [_checked(checker, line) for _, line in lines])
        if report.invalid:
            report.sent = 0
            return report
        report = Report()
    async with _http(url, settings) if url else _kafka(settings) as transport:
        await _send_all(transport, lines, report)
    report.invalid.sort()
    report.unconfirmed.sort()
    return report


async def _send_all(transport: Transport, lines: list[Line], report: Report) -> None:
    from rich.console import Console  # noqa: PLC0415 - only here
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("sending", total=len(lines))
        batches = _batches(lines)

        async def send_batches() -> None:
            for batch in batches:
                report.add(batch, await transport.send(batch))
                progress.advance(task, len(batch))

        async with asyncio.TaskGroup() as group:
            for _ in range(_CONCURRENT_BATCHES):
                group.create_task(send_batches())


def _batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == _MAX_BATCH_EVENTS or size + len(line[1]) > _MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line[1]) + 1
    if batch:
        yield batch


def _checker(settings: Settings) -> Checker:
    from api.ingest.accept import Checker  # noqa: PLC0415 - the Kafka client costs every other command its import

    return Checker(max_event_bytes=settings.max_event_bytes, max_ahead_us=settings.max_clock_ahead_s * 1_000_000)


def _checked(checker: Checker, line: bytes) -> Item:
    from api.ingest.accept import InvalidEvent  # noqa: PLC0415 - see above
    from schemas.senders import TRUSTED  # noqa: PLC0415

    checked = checker.line(line, TRUSTED)
    return checked.item if isinstance(checked, InvalidEvent) else {"event_id": checked.event_id, "status": "valid"}


class _KafkaTransport:
    def __init__(self, checker: Checker, acceptor: Acceptor) -> None:
        self._checker = checker
        self._acceptor = acceptor

    async def send(self, lines: Sequence[Line]) -> Sequence[Item]:
        from schemas.senders import TRUSTED  # noqa: PLC0415 - see above

        return (await self._acceptor.accept([self._checker.line(line, TRUSTED) for _, line in lines]))[1]


@asynccontextmanager
async def _kafka(settings: Settings) -> AsyncIterator[Transport]:
    from api.ingest.accept import Acceptor  # noqa: PLC0415 - see above
    from infra.kafka.producer import Deliverer  # noqa: PLC0415

    deliverer = Deliverer(settings, "produce", timeout_s=_DELIVER_S)
    try:
        yield _KafkaTransport(_checker(settings), Acceptor(deliverer, timeout_s=_DELIVER_S + 2))
    finally:
        await deliverer.close()


@asynccontextmanager
async def _http(url: str, settings: Settings) -> AsyncIterator[Transport]:
    import httpx  # noqa: PLC0415 - only for this transport

    async with httpx.AsyncClient(base_url=url, timeout=_DELIVER_S, headers=settings.api_headers) as client:
        yield _HttpTransport(client)


class _HttpTransport:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def send(self, lines: Sequence[Line]) -> Sequence[Item]:
        body = b"\n".join(line for _, line in lines)
        headers = {"content-type": "application/x-ndjson"}
        try:
            response = await self._client.post("/v1/events", content=body, headers=headers)
            answer = response.json()
            items: list[Item] = answer.get("events", [])
            if not items and response.status_code in _NOT_ADMITTED:
                raise _NotAdmittedError(answer["error"]["message"])
        except (OSError, ValueError, _transport_error()):
            items = []
        return items or [{"status": "unknown"}] * len(lines)


def _transport_error() -> type[Exception]:
    import httpx  # noqa: PLC0415 - only for this transport

    return httpx.TransportError


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        invalid = [{"line": line, "path": path, "message": message} for line, path, message in report.invalid]
        print(json.dumps({"sent": report.sent, "unconfirmed": report.unconfirmed, "invalid": invalid}, indent=1))
        return
    for line, path, message in report.invalid:
        typer.echo(f"line {line}: {path or '/'}: {message}", err=True)
    for line in report.unconfirmed:
        typer.echo(f"line {line}: not confirmed: send it again", err=True)
    print(f"{report.sent:,} events sent.")
