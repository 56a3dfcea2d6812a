"""Compatibility: a changed schema has to read what the old one wrote, and the other way round.

Producers and consumers are not deployed at the same moment, so both directions count. The rules are Apache Avro's own
(its Python library decides); a changed logical type, which Avro resolves without a conversion, is refused too. The
earlier form of a changed schema has to be kept in ``past/``: records of its producers are read as long as it is there.

Source: Avro 1.12 specification, "Schema Resolution".
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

from schemas.registry import FOLDER, RecordType, Registry, load_registry


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
    return load_registry(into)


def incompatibilities(now: Registry, base: Registry) -> list[Finding]:
    """Compare two registries: every type that both have, in both directions."""
    kept = {form.fingerprint for form in now.past}
    found = [
        Finding(name, "was removed; its records are still in topics") for name in base.types.keys() - now.types.keys()
    ]
    for name, before in base.types.items():
        after = now.types.get(name)
        if after is None:
            continue
        # A fingerprint does not cover logical types.
        found += [Finding(name, text) for text in _reinterpreted(before, after)]
        if after.fingerprint == before.fingerprint:
            continue
        problems = [
            *_breaks(before, after, "the new schema cannot read the old one's records"),
            *_breaks(after, before, "the old schema cannot read the new one's records"),
        ]
        found += [Finding(name, text) for text in problems]
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
    """Return why ``reader`` cannot resolve what ``writer`` wrote, each reason with its place in the schema."""
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call] # its constructor has no annotation
    result = checker.get_compatibility(_avro(reader.whole), _avro(writer.whole))
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    reasons = "; ".join(sorted(result.messages))
    return [f"{words} ({reasons}): give a new field a default, and leave the type of an old one as it is"]


def _reinterpreted(before: RecordType, after: RecordType) -> list[str]:
    """Return the fields whose logical type changed: Avro reads them, as another time or another unit."""
    old, new = _logical_types(before.whole), _logical_types(after.whole)
    return [
        f"{path} was {old[path] or 'a plain number'} and is {new[path] or 'a plain number'}: add a field instead"
        for path in old.keys() & new.keys()
        if old[path] != new[path]
    ]


def _logical_types(node: Any, path: str = "") -> dict[str, str]:
    """Return path -> logical type ("" where it has none) of every field, those of inner records included."""
    if isinstance(node, list):
        return {key: found for branch in node for key, found in _logical_types(branch, path).items() if path or found}
    if not isinstance(node, dict):
        return {path: ""}
    if "fields" in node:
        inner = [_logical_types(own["type"], f"{path}/{own['name']}") for own in node["fields"]]
        return {key: found for each in inner for key, found in each.items()}
    return {path: str(node.get("logicalType", ""))}


def _avro(whole: Any) -> Any:
    return parse(json.dumps(whole))


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise NoBase(f"git {' '.join(words[:1])} finds nothing at that revision") from error
    return done.stdout
