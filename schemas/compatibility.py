"""Compatibility: a changed schema has to read what the old one wrote, and the other way round.

Producers and consumers are not deployed in one moment, so both directions count. The earlier form of a schema that has
changed has to be kept in ``past/``: its producers are understood for as long as it stands there.
"""

from __future__ import annotations

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastavro import schemaless_reader, schemaless_writer
from fastavro.utils import generate_one

from schemas.registry import FOLDER, RecordType, Registry, load

_TRIES = 20


class NoBase(Exception):  # noqa: N818 - there is nothing to compare with
    """There is no such revision, or no git: nothing can be compared."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a schema and how to mend it."""

    schema: str
    message: str


def read_base(base: str, root: Path, into: Path) -> Registry:
    """Return the registry as it is at git revision ``base``, its files written below ``into``.

    Raises:
        NoBase: there is no such revision.

    """
    prefix = FOLDER.relative_to(root).as_posix()
    listed = _git(root, "ls-tree", "-r", "--name-only", base, f"{prefix}/").splitlines()
    for name in (name for name in listed if name.endswith(".avsc")):
        target = into / Path(name).relative_to(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_git(root, "show", f"{base}:{name}"), "utf-8")
    if not (into / "lead.avsc").exists():
        raise NoBase(f"{base} has no schemas")
    return load(into)


def check(now: Registry, base: Registry) -> list[Finding]:
    """Compare two registries: every type that both have, in both directions."""
    kept = {form.fingerprint for form in now.past}
    found = [
        Finding(name, "was removed; its records are still in topics") for name in base.types.keys() - now.types.keys()
    ]
    for name, before in base.types.items():
        after = now.types.get(name)
        if after is None or after.fingerprint == before.fingerprint:
            continue
        found += [
            Finding(name, text) for text in _breaks(before, after, "the new schema cannot read the old one's records")
        ]
        found += [
            Finding(name, text) for text in _breaks(after, before, "the old schema cannot read the new one's records")
        ]
        if before.fingerprint not in kept:
            found.append(Finding(name, f"its form before is not kept: {past_file(before)} (schemas check --fix)"))
    return found


def past_file(form: RecordType) -> Path:
    """Return where a form that is not the present one is kept."""
    return Path("past") / form.name / f"{form.fingerprint.hex()}.avsc"


def keep(form: RecordType, folder: Path = FOLDER) -> Path:
    """Keep ``form`` among the past ones, its shared types written out."""
    file = folder / past_file(form)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(form.whole, indent=2) + "\n", "utf-8")
    return file


def _breaks(writer: RecordType, reader: RecordType, words: str) -> list[str]:
    """Write records by one form and read them by the other."""
    records: list[Any] = [writer.example, *(generate_one(writer.bare) for _ in range(_TRIES))]
    for record in records:
        stream = io.BytesIO()
        schemaless_writer(stream, writer.bare, record)
        stream.seek(0)
        try:
            schemaless_reader(stream, writer.bare, reader.bare)
        except Exception as error:  # noqa: BLE001 - whatever it is, these two do not go together
            return [f"{words}: {error}; a new field needs a default, a type must stay"]
    return []


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise NoBase(f"git {' '.join(words[:1])} finds nothing at that revision") from error
    return done.stdout
