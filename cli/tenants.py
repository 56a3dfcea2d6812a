"""``tenants list``, ``tenants check`` and ``tenants schema``: the files of the tenants folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.settings import Settings

if TYPE_CHECKING:
    from infra.tenants import FileProblem, Tenant

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="List and check the tenant files.")
    group.command("list")(list_)
    group.command("check")(check)
    group.command("schema")(schema)
    app.add_typer(group, name="tenants")


def list_(*, as_json: _Json = False) -> None:
    """List the tenants with a file, and whether other tenants are served. Exit code 1 when a file is invalid."""
    settings = Settings.load()
    folder = _folder(settings)
    read = {file: _read(file) for file in _files(folder)}
    rows = [_row(file, found) for file, found in read.items()]
    served = not settings.tenants_closed and (folder / "default.yaml").is_file()
    if as_json:
        print(json.dumps({"folder": str(folder), "open": served, "tenants": rows}, indent=1))
    else:
        from rich.console import Console  # noqa: PLC0415 - not needed for JSON
        from rich.table import Table  # noqa: PLC0415

        table = Table("tenant", "state", "phone region", "time zone", "accounts", "campaigns", box=None, pad_edge=False)
        for row in rows:
            words = [row["tenant"], row["state"], row["phone_region"], row["time_zone"]]
            table.add_row(*words, ", ".join(row["accounts"]), row["campaigns"])
        console = Console(highlight=False)
        console.print(table)
        console.print(
            "Tenants without a file are served by default.yaml."
            if served
            else "Tenants without a file are refused: the installation is closed."
        )
    if any(row["state"] == "invalid" for row in rows):
        raise typer.Exit(1)


def check(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Files to check. Default: all of LEADSTREAM_TENANTS_DIR.")
    ] = None,
    *,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Also require that each secret can be read on this machine.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Check tenant files.

    Prints every problem with its file, line and column; exit code 1 when there is one. Nothing is changed.
    """
    settings = Settings.load()
    problems: list[dict[str, str | int]] = []
    chosen = files or _files(_folder(settings))
    for file in chosen:
        found = _read(file)
        if isinstance(found, list):
            problems += [
                {"file": str(file), "line": each.line, "column": each.column, "message": each.message} for each in found
            ]
        elif secrets:
            problems += [
                {"file": str(file), "line": 0, "column": 0, "message": each} for each in _missing(found, settings)
            ]
    if as_json:
        print(json.dumps({"files": [str(file) for file in chosen], "problems": problems}, indent=1))
    elif problems:
        for each in problems:
            at = f":{each['line']}:{each['column']}" if each["line"] else ""
            sys.stderr.write(f"{each['file']}{at}: {each['message']}\n")
    else:
        print(f"{len(chosen)} tenant files, no problems")
    if problems:
        raise typer.Exit(1)


def schema() -> None:
    """Print the JSON Schema of a tenant file, for editors."""
    from infra.tenant_files.json_schema import json_schema  # noqa: PLC0415 - imports every connector

    print(json.dumps(json_schema(), indent=1))


def _folder(settings: Settings) -> Path:
    if not settings.tenants_dir.is_dir():
        sys.stderr.write(f"LEADSTREAM_TENANTS_DIR: the folder {settings.tenants_dir} does not exist.\n")
        raise typer.Exit(1)
    return settings.tenants_dir


def _files(folder: Path) -> list[Path]:
    found = [file for file in folder.iterdir() if file.suffix.lower() in (".yaml", ".yml")] if folder.is_dir() else []
    return sorted(file for file in found if not file.name.startswith("."))


def _read(file: Path) -> Tenant | list[FileProblem]:
    from infra.tenant_files.reading import read_file  # noqa: PLC0415 - every command imports this module

    return read_file(file)


def _row(file: Path, found: Tenant | list[FileProblem]) -> dict[str, Any]:
    if isinstance(found, list):
        return {"tenant": file.stem, "state": "invalid", "accounts": []} | dict.fromkeys(
            ("phone_region", "time_zone", "campaigns"), ""
        )
    return {
        "tenant": found.name,
        "state": "valid",
        "phone_region": found.phone_region or "",
        "time_zone": found.time_zone,
        "accounts": [f"{each.kind} {each.name}" for each in found.sections],
        "campaigns": str(found.campaigns or ""),
    }


def _missing(tenant: Tenant, settings: Settings) -> list[str]:
    """Return the secrets of ``tenant`` that cannot be read here."""
    from infra.tenants import AccountError  # noqa: PLC0415 - every command imports this module

    missing: list[str] = []
    for section in tenant.sections:
        for field, reference in section.references:
            try:
                reference.resolve(settings)
            except AccountError as error:
                missing.append(f"{section.kind}.{section.name}.{field}: {error}")
    return missing
