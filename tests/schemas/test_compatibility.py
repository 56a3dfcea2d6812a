"""A schema may get new fields; a change that makes a version unreadable is reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.compatibility import incompatibilities, write_past_file
from schemas.registry import FOLDER, load_registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("types", "events", "records"):
        shutil.copytree(FOLDER / part, tmp_path / part)
    shutil.copy(FOLDER / "lead.avsc", tmp_path)
    return tmp_path


def change(folder: Path, name: str, *fields: dict[str, Any], without: str = "") -> None:
    file = folder / "events" / f"{name}.avsc"
    schema = json.loads(file.read_text("utf-8"))
    schema["fields"] = [f for f in schema["fields"] if f["name"] != without] + list(fields)
    file.write_text(json.dumps(schema), "utf-8")


def test_a_new_field_with_a_default_is_compatible_once_the_earlier_version_is_in_past(folder: Path) -> None:
    before = load_registry(folder)
    change(folder, "page_viewed", {"name": "seconds", "type": ["null", "long"], "default": None})

    messages = [found.message for found in incompatibilities(load_registry(folder), before)]
    assert ["schemas check --fix" in message for message in messages] == [True]

    write_past_file(before.events["page_viewed"], folder)
    assert incompatibilities(load_registry(folder), before) == []


def test_a_new_field_without_a_default_is_incompatible(folder: Path) -> None:
    before = load_registry(folder)
    change(folder, "page_viewed", {"name": "seconds", "type": "long"})

    messages = [found.message for found in incompatibilities(load_registry(folder), before)]
    assert any(message.startswith("the new schema cannot read") for message in messages)


def test_a_field_with_another_type_is_incompatible(folder: Path) -> None:
    before = load_registry(folder)
    change(folder, "page_viewed", {"name": "url", "type": "long", "default": 0}, without="url")

    assert any("cannot read" in found.message for found in incompatibilities(load_registry(folder), before))


def test_a_removed_event_type_is_incompatible(folder: Path) -> None:
    before = load_registry(folder)
    (folder / "events" / "page_viewed.avsc").unlink()

    assert [found.schema for found in incompatibilities(load_registry(folder), before)] == ["page_viewed"]


@pytest.mark.parametrize("kind", ["timestamp-millis", ""])
def test_another_unit_of_time_is_incompatible(folder: Path, kind: str) -> None:
    before = load_registry(folder)
    file = folder / "types" / "envelope.avsc"
    text = file.read_text("utf-8")
    assert "timestamp-micros" in text
    file.write_text(text.replace("timestamp-micros", kind) if kind else _without_logical_types(text), "utf-8")

    found = incompatibilities(load_registry(folder), before)
    assert {each.schema for each in found} >= {"page_viewed", "form_submitted"}
    assert all("/envelope/occurred_at was timestamp-micros" in each.message for each in found)


def test_a_string_that_becomes_a_union_with_null_is_unreadable_by_the_old_schema_only(folder: Path) -> None:
    before = load_registry(folder)
    change(folder, "page_viewed", {"name": "url", "type": ["null", "string"], "default": None}, without="url")

    messages = [found.message for found in incompatibilities(load_registry(folder), before)]
    assert any(message.startswith("the old schema cannot read") for message in messages)
    assert not any(message.startswith("the new schema cannot read") for message in messages)


def _without_logical_types(text: str) -> str:
    document = json.loads(text)
    for field in document["fields"]:
        if isinstance(field["type"], dict):
            field["type"].pop("logicalType", None)
    return json.dumps(document)
