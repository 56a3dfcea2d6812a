"""``leads show``, ``leads merge`` and ``leads split``: one lead, and which leads are one."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    from streams.intake.identity_policy import Policies

group = typer.Typer(no_args_is_help=True, help="Show leads, merge and split them, and review refused merges.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tenant = Annotated[str, typer.Option(help="Only this tenant.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
_Wait = Annotated[float, typer.Option(min=1, max=600, help="How long to wait for the decision, in seconds.")]
_WIDTH = 200  # columns of output that is not to a terminal


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group.command("show")(show)
    group.command("merge")(merge)
    group.command("split")(split)
    app.add_typer(group, name="leads")


def show(
    lead: Annotated[str, typer.Argument(help="A lead_id, or an identifier such as an e-mail address.")],
    *,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Show a lead: its values and who said them, identities, merges, reviews and the state of CRM sync.

    The output is personal data. Exit code 1 when there is no such lead.
    """
    found = run(lambda postgres: _show(postgres, lead.strip(), tenant))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)


def merge(
    lead: Annotated[str, typer.Argument(help="A lead_id, or an identifier of the lead.")],
    other: Annotated[str, typer.Argument(help="The other one.")],
    *,
    tenant: Tenant = "",
    yes: _Yes = False,
    wait_s: _Wait = 30,
    as_json: Json = False,
) -> None:
    """Merge two leads of one person into the older one. Leads that were split can be merged again.

    Exit code 1 when it was refused; the reason is printed, and nothing has changed.
    """
    _command("leads_merged", (lead, other), tenant, wait_s, yes=yes, as_json=as_json)


def split(
    survivor: Annotated[str, typer.Argument(help="The lead that the other one was merged into, by id or identifier.")],
    other: Annotated[str, typer.Argument(help="lead_id of the merged lead: see `leadstream leads show`.")],
    *,
    tenant: Tenant = "",
    yes: _Yes = False,
    wait_s: _Wait = 30,
    as_json: Json = False,
) -> None:
    """Undo a merge: the merged lead exists again, and later events do not merge the two again.

    What was said after the merge stays with the survivor. Exit code 1 when it was refused; nothing has changed then.
    """
    _command("lead_split", (survivor, other), tenant, wait_s, yes=yes, as_json=as_json)


def policies() -> Policies:
    """Return the identity policy of each tenant."""
    from infra.tenants import Tenants  # noqa: PLC0415 - only these commands need it
    from streams.intake.identity_policy import TenantPolicies  # noqa: PLC0415

    return TenantPolicies(Tenants.load(Settings.load()))


def run(work: Callable[[asyncpg.Connection], Coroutine[Any, Any, Any]]) -> Any:
    """Run ``work`` with a connection to Postgres; print why a lead was not found and exit with code 1."""
    from cli.lead_view import LeadNotFoundError  # noqa: PLC0415 - only these commands need the clients

    async def connected() -> Any:
        async with _postgres() as postgres:
            return await work(postgres)

    try:
        return asyncio.run(connected())
    except LeadNotFoundError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@asynccontextmanager
async def _postgres() -> AsyncIterator[asyncpg.Connection]:
    from infra.postgres import pool as postgres  # noqa: PLC0415

    pool = await postgres.connect(Settings.load().database_url, size=1, application="leads")
    try:
        async with postgres.connection(pool) as connection:
            yield connection
    finally:
        pool.terminate()


async def _show(postgres: asyncpg.Connection, text: str, tenant: str) -> dict[str, Any]:
    from cli.lead_view import find_lead, read_lead  # noqa: PLC0415

    return await read_lead(postgres, await find_lead(postgres, text, tenant), policies())


def _command(kind: str, texts: tuple[str, str], tenant: str, wait_s: float, *, yes: bool, as_json: bool) -> None:
    from cli.lead_commands import NotDecidedError, execute  # noqa: PLC0415

    one, other = run(lambda postgres: _both(postgres, texts, tenant))
    if not yes:
        if not sys.stdin.isatty():
            typer.echo("Add --yes: there is no terminal to ask for confirmation.", err=True)
            raise typer.Exit(2)
        verb = "Merge" if kind == "leads_merged" else "Undo the merge of"
        for each in (one, other):
            typer.echo(f"{each['lead_id']}, tenant {each['tenant']}, version {each['version']}: {each['email'] or ''}")
        typer.confirm(f"{verb} these two leads?", abort=True)
    ids = (one["lead_id"], other["lead_id"])
    try:
        decided = run(lambda postgres: execute(Settings.load(), postgres, kind, one["tenant"], ids, wait_s))
    except NotDecidedError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(asdict(decided), indent=1))
    elif decided.reason:
        typer.echo(f"Not done: {decided.reason}: {decided.detail}", err=True)
    else:
        done = "Merged into" if kind == "leads_merged" else "Split from"
        print(f"{done} {decided.lead_id}, version {decided.version} (event {decided.event_id}).")
    if decided.reason:
        raise typer.Exit(1)


async def _both(postgres: asyncpg.Connection, texts: tuple[str, str], tenant: str) -> list[dict[str, Any]]:
    from cli.lead_view import find_lead  # noqa: PLC0415

    statement = "SELECT lead_id::text, tenant, version, email FROM leads WHERE lead_id = $1::uuid"
    ids = [await find_lead(postgres, text.strip(), tenant) for text in texts]
    found = [dict(await postgres.fetchrow(statement, lead_id)) for lead_id in ids]
    if found[0]["tenant"] != found[1]["tenant"]:
        typer.echo("The two leads belong to different tenants, which share nothing.", err=True)
        raise typer.Exit(1)
    if ids[0] == ids[1]:
        typer.echo(f"Both are the lead {ids[0]}: name two different leads.", err=True)
        raise typer.Exit(1)
    return found


def _print(found: dict[str, Any]) -> None:
    head = f"lead {found['lead_id']}, tenant {found['tenant']}, version {found['version']}"
    if found["survivor_id"]:
        head += f"; merged: part of the lead {found['survivor_id']}"
    if found["erased_at"]:
        head += f"; erased at {found['erased_at']}"
    print(f"{head}\ncreated {found['created_at']}, changed {found['updated_at']}")
    for title in ("values", "identities", "merges", "kept_apart_from", "reviews", "crm"):
        if found[title]:
            print(f"\n{title.replace('_', ' ')}")
            print_rows(found[title])


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Print rows of the same columns as a table."""
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    console.print(table, markup=False)
