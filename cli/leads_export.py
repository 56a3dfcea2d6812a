"""``leads export LEAD``: everything that is known of a person, from every store, as one JSON document.

The format (``leadstream-person/1``) is described in docs/guides/erasure.md.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from infra.clock import now_us, to_datetime
from infra.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    from cli.person import Person
    from infra.clickhouse.client import ClickHouse

FORMAT = "leadstream-person/1"
_GROUP = "leads"
_HELP = "Show, correct and export leads."
_TIMES = ("_at", "_until")

# Section -> statement; $1: the ids of the lead and of the leads that were merged into it.
_SECTIONS = {
    "leads": """
        SELECT lead_id, tenant, version, created_at, updated_at, merged_into, erased_at, attributes::text AS attributes
        FROM leads WHERE lead_id = ANY($1::uuid[]) ORDER BY merged_into NULLS FIRST, lead_id
    """,
    "identities": """
        SELECT lead_id, kind, value FROM identities WHERE lead_id = ANY($1::uuid[]) ORDER BY kind, value
    """,
    "history": """
        SELECT lead_id, version, decided_at, occurred_at, event_id, event_type, source, changes::text AS changes,
            context::text AS context, merged
        FROM lead_history WHERE lead_id = ANY($1::uuid[]) ORDER BY decided_at, version
    """,
    "merges": """
        SELECT survivor_id, loser_id, merged_at, event_id, (survivor -> 'attributes')::text AS survivor,
            (loser -> 'attributes')::text AS loser, identities::text AS identities
        FROM lead_merges WHERE survivor_id = ANY($1::uuid[]) OR loser_id = ANY($1::uuid[]) ORDER BY merged_at
    """,
    "merge_reviews": """
        SELECT lead_id, kind, value, holder_id, why, event_id, refused_at, closed_at
        FROM merge_reviews WHERE lead_id = ANY($1::uuid[]) ORDER BY refused_at
    """,
    "enrichment_results": """
        SELECT provider, lead_id, result::text AS result, likelihood, fetched_at, expires_at
        FROM enrichment_results WHERE lead_id = ANY($1::uuid[]) ORDER BY fetched_at
    """,
    "enrichment_requests": """
        SELECT lead_id, event_id, expires_at, attempts, last_error
        FROM enrichment_work WHERE lead_id = ANY($1::uuid[]) ORDER BY lead_id
    """,
    "messages": """
        SELECT message_id, lead_id, event_id, campaign, channel, purpose, requested_at, state, sent_at, last_error,
            request
        FROM messages_sent WHERE lead_id = ANY($1::uuid[]) ORDER BY requested_at
    """,
    "crm": """
        SELECT destination, lead_id, remote_id, wanted_version, synced_version, synced_at, sent::text AS sent
        FROM crm_sync WHERE lead_id = ANY($1::uuid[]) ORDER BY destination, lead_id
    """,
    "erasures": """
        SELECT store, lead_id, event_id, erased_at, decided_at, done_at, detail
        FROM erasures WHERE lead_id = ANY($1::uuid[]) ORDER BY store
    """,
}
_JSON = frozenset({"attributes", "changes", "context", "survivor", "loser", "identities", "result", "sent"})
_EVENTS = "SELECT * FROM lead_events WHERE lead_id IN {ids:Array(UUID)} ORDER BY decided_at, version"
_OUTCOMES = "SELECT * FROM outcomes WHERE lead_id IN {ids:Array(String)} ORDER BY at"


def register(app: typer.Typer) -> None:
    """Add the command to the group ``leads``, which another file may have made."""
    group = next((each.typer_instance for each in app.registered_groups if each.name == _GROUP), None)
    if group is None:
        group = typer.Typer(no_args_is_help=True, help=_HELP)
        app.add_typer(group, name=_GROUP)
    group.command("export")(export)


def export(
    lead: Annotated[str, typer.Argument(metavar="LEAD", help="A lead_id, or an identifier such as an e-mail address.")],
    *,
    tenant: Annotated[str, typer.Option(help="The tenant, when several tenants have the identifier.")] = "",
    out: Annotated[str, typer.Option(help="File to write; - for standard output. Default: lead-<lead_id>.json.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's name and its counts as JSON.")] = False,
) -> None:
    """Write everything that is known of a person to one JSON file, readable by its owner only.

    Exit code 1 when there is no such lead, or the file exists.
    """
    from cli.person import PersonError  # noqa: PLC0415 - only this command needs it

    try:
        document = asyncio.run(_read(Settings.load(), lead.strip(), tenant))
    except PersonError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if out == "-":
        sys.stdout.buffer.write(text)
        return
    path = Path(out or f"lead-{document['lead_id']}.json")
    try:
        _write(path, text, force=force)
    except FileExistsError:
        typer.echo(f"{path} exists: choose another file with --out, or replace it with --force.", err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"{path} cannot be written: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    counts = {"versions": len(document["history"]), "events": len(document["events"])}
    if as_json:
        print(orjson.dumps({"file": str(path), "lead_id": document["lead_id"], **counts}).decode())
    else:
        print(f"{path}: {counts['versions']} versions, {counts['events']} events.")


def _write(path: Path, text: bytes, *, force: bool) -> None:
    if force:
        path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)


async def _read(settings: Settings, text: str, tenant: str) -> dict[str, Any]:
    from cli.person import find_person  # noqa: PLC0415 - only this command needs the clients
    from infra.clickhouse.client import ClickHouse  # noqa: PLC0415
    from infra.postgres import pool as postgres  # noqa: PLC0415

    pool = await postgres.connect(settings.database_url, size=2, application="leads-export")
    try:
        person = await find_person(pool, text, tenant, settings.suppression_key.get_secret_value())
        async with ClickHouse(settings.clickhouse_url) as clickhouse:
            return await _document(pool, clickhouse, person)
    finally:
        pool.terminate()


async def _document(pool: asyncpg.Pool, clickhouse: ClickHouse, person: Person) -> dict[str, Any]:
    from infra.postgres.pool import connection  # noqa: PLC0415

    head = {"format": FORMAT, "exported_at": _time(now_us()), "tenant": person.tenant, "lead_id": person.lead_id}
    sections: dict[str, Any] = {}
    async with connection(pool) as postgres:
        for name, statement in _SECTIONS.items():
            sections[name] = [_plain(dict(row)) for row in await postgres.fetch(statement, person.lead_ids)]
    sections["messages"] = [_message(row) for row in sections["messages"]]
    sections["crm"] = [_record(row) for row in sections["crm"]]
    sections["events"] = [_event(row) for row in await clickhouse.query(_EVENTS, ids=person.lead_ids)]
    sections["outcomes"] = await clickhouse.query(_OUTCOMES, ids=person.lead_ids)
    return head | sections


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or isinstance(value, bytes | float):
            found[name] = value
        elif name in _JSON:
            found[name] = orjson.loads(value)
        elif name.endswith(_TIMES):
            found[name] = _time(value)
        elif name == "merged":
            found[name] = [str(each) for each in value]
        else:
            found[name] = value if isinstance(value, int) else str(value)
    return found


def _message(row: dict[str, Any]) -> dict[str, Any]:
    """Return a message with what is to be sent, as long as it is stored."""
    from schemas.codec import Codec, DecodeError  # noqa: PLC0415

    request = row.pop("request")
    try:
        record = Codec().decode(request).record if request else {}
    except DecodeError:
        record = {}
    return row | {name: record.get(name) for name in ("to", "sender", "subject", "body")}


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a CRM record: which properties it was sent; their values are those of the lead."""
    sent = row.pop("sent")
    return row | {"properties": sorted(sent) if sent else [], "current": row["synced_version"] == row["wanted_version"]}


def _event(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: orjson.loads(row[name] or "{}") for name in ("properties", "changes")}


def _time(at: int) -> str:
    return to_datetime(at).isoformat()
