"""Checks that a changed schema is compatible with its earlier version, in both directions.

Producers and consumers are not upgraded at the same moment, so the new schema must read the old records and the old
schema the new ones. Apache Avro's library decides. Two rules are added:

- A logical type must not change: Avro would read the number without converting it.
- The earlier version must be kept in ``schemas/past``: only then can records of producers that still use it be read.

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


class BaseUnavailableError(Exception):
    """The schemas of a git revision cannot be read: no git, no such revision, or no schemas in it."""


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """One problem of the schema named ``schema``; ``message`` says what is wrong and how to fix it."""

    schema: str
    message: str


def read_base(base: str, root: Path, into: Path) -> Registry:
    """Return the registry at the git revision ``base`` of the repository ``root``; write its files below ``into``.

    Raises:
        BaseUnavailableError: git cannot read that revision, or it has no schemas.

    """
    prefix = FOLDER.relative_to(root).as_posix()
    listed = _git(root, "ls-tree", "-r", "--name-only", base, f"{prefix}/").splitlines()
    for name in (name for name in listed if name.endswith(".avsc")):
        target = into / Path(name).relative_to(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_git(root, "show", f"{base}:{name}"), "utf-8")
    if not (into / "lead.avsc").exists():
        raise BaseUnavailableError(f"revision {base} has no schemas")
    return load_registry(into)


def incompatibilities(now: Registry, base: Registry) -> list[Incompatibility]:
    """Return every incompatibility between the types of ``base`` and those of ``now``, in both directions."""
    kept = {version.fingerprint for version in now.past}
    found = [
        Incompatibility(name, "was removed, but topics still hold its records: restore the file")
        for name in base.types.keys() - now.types.keys()
    ]
    for name, before in base.types.items():
        after = now.types.get(name)
        if after is None:
            continue
        # Must come before the comparison of fingerprints, which do not cover logical types.
        found += [Incompatibility(name, message) for message in _changed_logical_types(before, after)]
        if after.fingerprint == before.fingerprint:
            continue
        messages = [
            *_unreadable(before, after, "the new schema cannot read records of the old schema"),
            *_unreadable(after, before, "the old schema cannot read records of the new schema"),
        ]
        found += [Incompatibility(name, message) for message in messages]
        if before.fingerprint not in kept:
            message = f"the earlier version {past_file(before)} is missing: run `leadstream schemas check --fix`"
            found.append(Incompatibility(name, message))
    return found


def past_file(version: RecordType) -> Path:
    """Return the path, relative to ``schemas/``, of the file of an earlier version."""
    return Path("past") / version.name / f"{version.fingerprint.hex()}.avsc"


def write_past_file(version: RecordType, folder: Path = FOLDER) -> Path:
    """Write an earlier version to its file below ``folder`` and return the file's path."""
    file = folder / past_file(version)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(version.full_schema, indent=2) + "\n", "utf-8")
    return file


def _unreadable(writer: RecordType, reader: RecordType, problem: str) -> list[str]:
    """Return ``problem`` with Avro's reasons when ``reader`` cannot resolve records of ``writer``."""
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call] # its constructor has no annotation
    result = checker.get_compatibility(_avro_schema(reader.full_schema), _avro_schema(writer.full_schema))
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    reasons = "; ".join(sorted(result.messages))
    return [f"{problem} ({reasons}): a new field needs a default, and an existing field must keep its type"]


def _changed_logical_types(before: RecordType, after: RecordType) -> list[str]:
    old, new = _logical_types(before.full_schema), _logical_types(after.full_schema)
    return [
        f"{path} was {old[path] or 'a plain number'} and is now {new[path] or 'a plain number'}: add a field instead"
        for path in old.keys() & new.keys()
        if old[path] != new[path]
    ]


def _logical_types(node: Any, path: str = "") -> dict[str, str]:
    """Return path -> logical type ("" for none) of every field, at any depth."""
    if isinstance(node, list):
        union: dict[str, str] = {}
        for branch in node:
            for key, found in _logical_types(branch, path).items():
                union[key] = union.get(key) or found
        return union
    if not isinstance(node, dict):
        return {path: ""}
    if "fields" in node:
        inner = [_logical_types(own["type"], f"{path}/{own['name']}") for own in node["fields"]]
        return {key: found for each in inner for key, found in each.items()}
    for inner_type, suffix in (("items", "[]"), ("values", "{}")):
        if inner_type in node:
            return _logical_types(node[inner_type], path + suffix)
    return {path: str(node.get("logicalType", ""))}


def _avro_schema(schema: Any) -> Any:
    return parse(json.dumps(schema))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BaseUnavailableError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise BaseUnavailableError(f"git {arguments[0]} failed: {error.stderr.strip()}") from error
    return done.stdout
