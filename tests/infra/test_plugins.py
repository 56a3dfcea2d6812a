"""Connectors are found by folder; a wrong one is said, not skipped."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import pytest

from infra import plugins


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> str:
    name = f"plugins_{uuid.uuid4().hex}"
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("", "utf-8")
    for file, text in files.items():
        (folder / name / f"{file}.py").write_text(text, "utf-8")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return name


def test_connectors_are_the_files_with_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = package(
        tmp_path, monkeypatch, b="class Config: ...\nNAME = 'b'", a="class Config: ...\nNAME = 'a'", c="x = 1"
    )
    assert list(plugins.discover(name)) == ["a", "b"]
    assert plugins.find(name, "b").NAME == "b"
    with pytest.raises(plugins.PluginError, match="there are: a, b"):
        plugins.find(name, "c")


def test_a_connector_needs_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(plugins.PluginError, match="no NAME"):
        plugins.discover(package(tmp_path, monkeypatch, a="class Config: ..."))
    both = package(tmp_path, monkeypatch, a="class Config: ...\nNAME = 'x'", b="class Config: ...\nNAME = 'x'")
    with pytest.raises(plugins.PluginError, match="both named 'x'"):
        plugins.discover(both)
