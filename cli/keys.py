"""``keys create|list|revoke|rotate``: the API keys. A key is printed once, when it is created; its hash is stored."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from infra.clock import DAY_US, now_us, to_datetime
from infra.keys import SCOPES, KeyInvalidError
from infra.settings import Settings

if TYPE_CHECKING:
    from infra.postgres.keys_table import KeysTable

_HOUR_US = 3_600_000_000
_MAX_DAYS = 3650
_ID_WIDTH = 12
Result = TypeVar("Result")
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Id = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the key: the 12 characters after ls_, as in `keys list`.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Create, list, revoke and rotate the keys of the HTTP API.")
    group.command("create")(create)
    group.command("list")(list_)
    group.command("revoke")(revoke)
    group.command("rotate")(rotate)
    app.add_typer(group, name="keys")


def create(
    *,
    tenant: Annotated[
        str, typer.Option(help="Tenant of the key. *: every tenant, only with the scope admin or pipeline.")
    ],
    scope: Annotated[list[str], typer.Option(help=f"Repeat for several: {', '.join(SCOPES)}.")],
    name: Annotated[str, typer.Option(help="Who uses the key, for `keys list`.")] = "",
    days: Annotated[int, typer.Option(min=0, max=_MAX_DAYS, help="The key expires after so many days. 0: never.")] = 0,
    as_json: _Json = False,
) -> None:
    """Create a key and print it. It cannot be shown again. It is valid within about a second."""
    expiry = {"expires_at": now_us() + days * DAY_US} if days else {}
    try:
        key_id, key = _run(lambda keys: keys.create(tenant, scope, name=name, **expiry))
    except KeyInvalidError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    _print_key(key_id, key, as_json=as_json)


def list_(
    *,
    every: Annotated[bool, typer.Option("--all", help="Revoked and expired keys too.")] = False,
    as_json: _Json = False,
) -> None:
    """List the active keys, newest first, without the keys themselves."""
    rows = [_readable(row) for row in _run(lambda keys: keys.list(every=every))]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich.console import Console  # noqa: PLC0415 - not needed for JSON
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for title in ("id", "tenant", "scopes", "name", "state", "created", "expires", "last used"):
        table.add_column(title, overflow="fold", min_width=_ID_WIDTH if title == "id" else None)
    for row in rows:
        days = {name: (row[name] or "")[:10] for name in ("created_at", "expires_at", "last_used")}
        shown = row | days | {"scopes": " ".join(row["scopes"]), "expires_at": days["expires_at"] or "never"}
        names = ("id", "tenant", "scopes", "name", "state", "created_at", "expires_at", "last_used")
        table.add_row(*(shown[column] or "-" for column in names))
    Console().print(table if rows else "No keys: create one with `leadstream keys create`.", markup=False)


def revoke(key_id: _Id, *, as_json: _Json = False) -> None:
    """Revoke a key: within 5 seconds no instance of the API admits it."""
    _existing(lambda keys: keys.revoke(key_id))
    print(json.dumps({"id": key_id, "state": "revoked"}) if as_json else f"Revoked {key_id}.")


def rotate(
    key_id: _Id,
    *,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=8760, help="How long the old key stays valid, in hours.")
    ] = 24,
    as_json: _Json = False,
) -> None:
    """Create a key with the same tenant, scopes and name and print it; the old key expires after the overlap."""
    new_id, key = _existing(lambda keys: keys.rotate(key_id, overlap_us=int(overlap_hours * _HOUR_US)))
    sys.stderr.write(f"The key {key_id} expires in {overlap_hours:g} h.\n")
    _print_key(new_id, key, as_json=as_json)


def _print_key(key_id: str, key: str, *, as_json: bool) -> None:
    print(json.dumps({"id": key_id, "key": key}) if as_json else key)
    sys.stderr.write("This is the only time that the key is shown.\n" * (not as_json))


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    times = ("created_at", "expires_at", "revoked_at")
    return row | {n: to_datetime(row[n]).isoformat(timespec="seconds") if row[n] is not None else None for n in times}


def _existing(call: Callable[[KeysTable], Awaitable[Result]]) -> Result:
    from infra.postgres.keys_table import NoSuchKeyError  # noqa: PLC0415 - the Postgres client costs its import

    try:
        return _run(call)
    except NoSuchKeyError as error:
        typer.echo(str(error.args[0]), err=True)
        raise typer.Exit(1) from None


def _run(call: Callable[[KeysTable], Awaitable[Result]]) -> Result:
    async def with_table() -> Result:
        from infra.postgres.keys_table import KeysTable  # noqa: PLC0415 - see above
        from infra.postgres.pool import close, connect  # noqa: PLC0415

        pool = await connect(Settings.load().database_url, size=1, application="keys")
        try:
            return await call(KeysTable(pool))
        finally:
            await close(pool)

    return asyncio.run(with_table())
