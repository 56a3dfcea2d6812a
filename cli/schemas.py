"""``schemas list``, ``schemas check`` and ``validate``.

Every command imports this module, so the registry and the codec (a tenth of a second) are imported where they are used.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infra.clock import now_us
from infra.outcomes import Dead
from infra.settings import Settings

if TYPE_CHECKING:
    from schemas.codec import Codec


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="The schema registry.")
    group.command("list")(list_schemas)
    group.command("check")(check_schemas)
    app.add_typer(group, name="schemas")
    app.command()(validate)


def list_schemas(*, as_json: Annotated[bool, typer.Option("--json", help="For other tools.")] = False) -> None:
    """List every schema."""
    from schemas.registry import registry  # noqa: PLC0415 - see the module

    known = registry()
    rows = [
        {
            "name": form.name,
            "kind": "event" if form.name in known.events else "record",
            "fingerprint": form.fingerprint.hex(),
            "id": form.confluent_id,
            "doc": form.doc,
        }
        for form in known.types.values()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("name", "kind", "fingerprint", "what", box=None, pad_edge=False)
    for row in rows:
        table.add_row(str(row["name"]), str(row["kind"]), str(row["fingerprint"]), str(row["doc"]))
    Console().print(table)


def check_schemas(
    *,
    base: Annotated[str, typer.Option(help="The git revision to compare with.")] = "main",
    fix: Annotated[bool, typer.Option(help="Keep the earlier forms of changed schemas in schemas/past.")] = False,
) -> None:
    """Check that every changed schema reads what the old one wrote, and the other way round."""
    from schemas.compatibility import NoBase, check, keep, read_base  # noqa: PLC0415 - see the module
    from schemas.registry import FOLDER, registry  # noqa: PLC0415

    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            before = read_base(base, FOLDER.parent, Path(folder))
        except NoBase as error:
            console.print(f"Nothing to compare with: {error}.")
            return
        if fix:
            now = registry()
            kept = {form.fingerprint for form in (*now.past, *now.types.values())}
            for form in before.types.values():
                if form.fingerprint not in kept and form.name in now.types:
                    console.print(f"kept {keep(form)}")
            registry.cache_clear()
        found = check(registry(), before)
    for finding in found:
        console.print(f"[red]{finding.schema}[/red]: {finding.message}", highlight=False)
    if found:
        raise typer.Exit(1)
    console.print(f"{len(registry().types)} schemas, compatible with {base} both ways.")


def validate(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Events as JSON lines, or one Avro event.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For other tools.")] = False,
) -> None:
    """Say of every event in a file what is wrong with it, by line and field; nothing is sent."""
    from schemas.codec import Codec  # noqa: PLC0415 - see the module

    settings = Settings.load()
    data = file.read_bytes()
    lines = [line for line in data.splitlines() if line.strip()] if data.lstrip()[:1] == b"{" else [data]
    if len(lines) > 1 and data.lstrip()[:2] in (b"{\n", b"{\r"):
        lines = [data]  # one event, printed over several lines
    codec, now = Codec(), now_us()
    wrong = 0
    for number, line in enumerate(lines, 1):
        dead = _judge(codec, line, now, settings.max_clock_ahead_s * 1_000_000)
        if dead is None:
            continue
        wrong += 1
        for problem in dead.problems:
            said: dict[str, Any] = {"line": number, "reason": dead.reason.value}
            said |= {"path": problem.path, "message": problem.message}
            print(
                json.dumps(said)
                if as_json
                else f"line {number}: {problem.path or dead.reason.value}: {problem.message}"
            )
    sys.stderr.write(f"{len(lines) - wrong} of {len(lines)} events are good\n")
    if wrong:
        raise typer.Exit(1)


def _judge(codec: Codec, line: bytes, now: int, max_ahead: int) -> Dead | None:
    from schemas import rules  # noqa: PLC0415 - see the module
    from schemas.codec import DecodeError  # noqa: PLC0415
    from schemas.registry import registry  # noqa: PLC0415

    try:
        decoded = codec.decode(line)
    except DecodeError as error:
        return error.dead
    kind = registry().events.get(decoded.type)
    judged = rules.check(kind, decoded.record, now, max_ahead) if kind is not None else None
    return judged if isinstance(judged, Dead) else None
