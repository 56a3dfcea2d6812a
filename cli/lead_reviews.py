"""``leads review`` and ``leads audit``: refused merges, and leads that today's identity policy would not have made."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.leads import Json, Tenant, group, policies, print_rows, run
from infra.clock import now_us, to_datetime
from infra.settings import Settings

if TYPE_CHECKING:
    import asyncpg

_WHAT = {
    "shared": "people share it: it stays with the lead that has it",
    "cap": "the lead has too many of this kind",
    "apart": "it belongs to a lead that was split from this one",
}
_LIST = """
SELECT tenant, kind, value, why, count(*) AS leads, max(refused_at) AS newest_at,
    (array_agg(lead_id::text ORDER BY refused_at DESC))[1] AS newest_lead,
    (array_agg(holder_id::text ORDER BY refused_at DESC))[1] AS holder
FROM merge_reviews WHERE closed_at IS NULL AND ($1 = '' OR tenant = $1)
GROUP BY tenant, kind, value, why ORDER BY newest_at DESC, tenant, kind, value LIMIT $2 OFFSET $3
"""
_CLOSE = """
WITH closed AS (
    UPDATE merge_reviews SET closed_at = $5 WHERE closed_at IS NULL AND tenant = $1 AND kind = $2 AND value = $3
        AND ($4 = '' OR lead_id::text = $4) RETURNING 1
) SELECT count(*) FROM closed
"""


def register(_app: typer.Typer) -> None:
    """Add the commands to ``leads``."""
    reviews = typer.Typer(help="List refused merges and close them.")
    reviews.callback(invoke_without_command=True)(list_)
    reviews.command("close")(close)
    group.add_typer(reviews, name="review")
    group.command("audit")(audit)


def list_(
    context: typer.Context,
    *,
    tenant: Tenant = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Rows of one page.")] = 50,
    page: Annotated[int, typer.Option(min=1, help="The page to print; the first has the newest.")] = 1,
    as_json: Json = False,
) -> None:
    """List identities that were not assigned to the lead of their event, the newest first.

    One row for each identity, with the number of leads that it was refused for. The output is personal data. Decide
    with `leads merge`, or with `leads review close`.
    """
    if context.invoked_subcommand is not None:
        return
    rows = run(lambda postgres: _list(postgres, tenant, limit, limit * (page - 1)))
    if as_json:
        print(json.dumps(rows, indent=1))
    elif rows:
        print_rows(rows)
        for why in sorted({row["why"] for row in rows}):
            print(f"{why}: {_WHAT.get(why, why)}")
    else:
        print("No open reviews." if page == 1 else "No more reviews.")


def close(
    tenant: Annotated[str, typer.Argument(help="The tenant.")],
    kind: Annotated[str, typer.Argument(help="Kind of the identity, such as phone.")],
    value: Annotated[
        str, typer.Argument(help="The identity as listed; without it: the reviews with the reason cap.")
    ] = "",
    *,
    lead: Annotated[str, typer.Option(help="Only the review of this lead_id.")] = "",
    as_json: Json = False,
) -> None:
    """Close the reviews of an identity: they are not listed again. Whether it is refused does not change.

    Exit code 1 when there is no such open review.
    """
    closed = run(lambda postgres: postgres.fetchval(_CLOSE, tenant, kind, value, lead.lower(), now_us()))
    if as_json:
        print(json.dumps({"closed": closed}))
    elif closed:
        print(f"{closed:,} reviews closed.")
    else:
        typer.echo("There is no such open review: see `leadstream leads review`.", err=True)
    if not closed:
        raise typer.Exit(1)


async def _list(postgres: asyncpg.Connection, tenant: str, limit: int, offset: int) -> list[dict[str, Any]]:
    rows = await postgres.fetch(_LIST, tenant, limit, offset)
    return [dict(row) | {"newest_at": to_datetime(row["newest_at"]).isoformat(timespec="seconds")} for row in rows]


def audit(
    *,
    tenant: Tenant = "",
    values: Annotated[bool, typer.Option(help="Show examples of the identities. They may be personal data.")] = False,
    as_json: Json = False,
) -> None:
    """List leads that today's identity policy would not have made. Changes nothing.

    Problems: placeholder, form (another normal form today), cap, weak_merge (two identified leads that only a shared
    identity connected: undo it with `leads split`), unknown_event (such a merge whose event is not stored any more).
    With --json, one object a line, while it runs.
    """
    counts: Counter[str] = run(lambda postgres: _audit(postgres, tenant, values=values, as_json=as_json))
    if not as_json:
        found = ", ".join(f"{count:,} {problem}" for problem, count in sorted(counts.items()))
        print(f"Found: {found}." if found else "Found nothing: today's policy would have made every lead.")


async def _audit(postgres: asyncpg.Connection, tenant: str, *, values: bool, as_json: bool) -> Counter[str]:
    from cli import lead_audit  # noqa: PLC0415 - only this command needs the clients
    from infra.clickhouse.client import ClickHouse  # noqa: PLC0415

    counts: Counter[str] = Counter()
    async with ClickHouse(Settings.load().clickhouse_url) as clickhouse:
        async for finding in lead_audit.audit(postgres, clickhouse, tenant, policies()):
            counts[finding.problem] += 1
            row = asdict(finding)
            if not values:
                del row["examples"]
            print(json.dumps(row) if as_json else "  ".join(str(value) for value in row.values() if value))
    return counts
