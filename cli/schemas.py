"""``schemas list``, ``schemas check`` and ``validate``: the schemas, and events checked against them.

Every command imports this module, so modules with slow imports are imported in the functions that use them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra.clock import now_us
from infra.outcomes import Dead
from infra.settings import Settings

if TYPE_CHECKING:
    from schemas.codec import Codec

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="List and check the schemas.")
    group.command("list")(list_schemas)
    group.command("check")(check_schemas)
    app.add_typer(group, name="schemas")
    app.command()(validate)


def list_schemas(*, as_json: _Json = False) -> None:
    """List every schema with its fingerprint and description."""
    from schemas.registry import registry  # noqa: PLC0415 - see the module

    known = registry()
    rows = [
        {
            "name": each.name,
            "kind": "event" if each.name in known.events else "record",
            "fingerprint": each.fingerprint.hex(),
            "id": each.confluent_id,
            "doc": each.doc,
        }
        for each in known.types.values()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "kind", "fingerprint", "description", box=None, pad_edge=False)
    for row in rows:
        table.add_row(str(row["name"]), str(row["kind"]), str(row["fingerprint"]), str(row["doc"]))
    Console().print(table)


def check_schemas(
    *,
    base: Annotated[str, typer.Option(help="Git revision to compare with.")] = "main",
    fix: Annotated[
        bool, typer.Option(help="Write the missing earlier versions of changed schemas to schemas/past.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Check that every changed schema is compatible with its earlier version.

    The new schema must read records of the old schema, and the old schema records of the new one.
    Exit code 1 when one of them cannot.
    """
    from schemas.compatibility import (  # noqa: PLC0415 - see the module
        BaseUnavailableError,
        incompatibilities,
        read_base,
        write_past_file,
    )
    from schemas.registry import FOLDER, registry  # noqa: PLC0415

    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            before = read_base(base, FOLDER.parent, Path(folder))
        except BaseUnavailableError as error:
            console.print(f"Not checked: {error}", markup=False)
            if as_json:
                print("[]")
            return
        if fix:
            now = registry()
            known = {version.fingerprint for version in (*now.past, *now.types.values())}
            for version in before.types.values():
                if version.fingerprint not in known and version.name in now.types:
                    console.print(f"wrote {write_past_file(version)}")
            registry.cache_clear()
        found = incompatibilities(registry(), before)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    for each in found:
        console.print(f"[red]{each.schema}[/red]: {each.message}", highlight=False)
    if found:
        raise typer.Exit(1)
    console.print(f"{len(registry().types)} schemas, compatible with {base} in both directions.")


def validate(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="NDJSON file with one event per line, or a file with one Avro event."
        ),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per problem.")] = False,
) -> None:
    """Check the events of a file without sending them.

    Prints every problem with its line and field. Exit code 1 when there is one.
    """
    from schemas.codec import Codec  # noqa: PLC0415 - see the module

    settings = Settings.load()
    data = file.read_bytes()
    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, which editors on Windows write
    lines = [line for line in data.splitlines() if line.strip()] if data.lstrip()[:1] == b"{" else [data]
    if len(lines) > 1 and data.lstrip()[:2] in (b"{\n", b"{\r"):
        lines = [data]  # one event, formatted over several lines
    codec, now = Codec(), now_us()
    invalid = 0
    for number, line in enumerate(lines, 1):
        dead = _validate(codec, line, now, settings.max_clock_ahead_s * 1_000_000)
        if dead is None:
            continue
        invalid += 1
        for problem in dead.problems:
            if as_json:
                fields = {"line": number, "reason": dead.reason.value, "path": problem.path, "message": problem.message}
                print(json.dumps(fields))
            else:
                print(f"line {number}: {problem.path or dead.reason.value}: {problem.message}")
    sys.stderr.write(f"{len(lines) - invalid} of {len(lines)} events are valid\n")
    if invalid:
        raise typer.Exit(1)


def _validate(codec: Codec, line: bytes, now: int, max_ahead: int) -> Dead | None:
    from schemas import rules  # noqa: PLC0415 - see the module
    from schemas.codec import DecodeError  # noqa: PLC0415
    from schemas.registry import registry  # noqa: PLC0415

    try:
        decoded = codec.decode(line)
    except DecodeError as error:
        return error.dead
    kind = registry().events.get(decoded.type)
    result = rules.check_event(kind, decoded.record, now, max_ahead) if kind is not None else None
    return result if isinstance(result, Dead) else None
