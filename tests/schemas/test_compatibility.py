"""A schema may grow, and must not break whoever still writes or reads the old one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.compatibility import check, keep
from schemas.registry import FOLDER, load


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


def test_a_new_field_with_a_default_goes_when_the_old_form_is_kept(folder: Path) -> None:
    before = load(folder)
    change(folder, "page_viewed", {"name": "seconds", "type": ["null", "long"], "default": None})

    assert ["is not kept" in finding.message for finding in check(load(folder), before)] == [True]

    keep(before.events["page_viewed"], folder)
    assert check(load(folder), before) == []


def test_a_new_field_without_a_default_does_not_go(folder: Path) -> None:
    before = load(folder)
    change(folder, "page_viewed", {"name": "seconds", "type": "long"})

    assert any("cannot read the old" in finding.message for finding in check(load(folder), before))


def test_another_type_does_not_go(folder: Path) -> None:
    before = load(folder)
    change(folder, "page_viewed", {"name": "url", "type": "long", "default": 0}, without="url")

    assert any("cannot read" in finding.message for finding in check(load(folder), before))


def test_a_removed_type_does_not_go(folder: Path) -> None:
    before = load(folder)
    (folder / "events" / "page_viewed.avsc").unlink()

    assert [finding.schema for finding in check(load(folder), before)] == ["page_viewed"]
