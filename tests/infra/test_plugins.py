"""Connectors are discovered by folder; an invalid one is an error, not skipped."""

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


@pytest.mark.parametrize("name", ["", "NAME = ''", "NAME = 'b'", "NAME = 'A'"])
def test_the_name_of_a_connector_is_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = package(tmp_path, monkeypatch, a=f"class Config: ...\n{name}", b="class Config: ...\nNAME = 'b'")
    with pytest.raises(plugins.PluginError, match=rf"{folder}\.a: NAME must equal the file's name, 'a'"):
        plugins.discover(folder)
