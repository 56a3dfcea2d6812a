"""The list of processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from infra.processes import Process, load_processes


def test_every_process_of_the_design_is_listed() -> None:
    names = set(load_processes())
    assert {"api", "intake", "enrichment", "campaigns", "sink-clickhouse", "crm-hubspot", "messages-email"} <= names
    assert load_processes()["crm-hubspot"] == Process(
        "crm-hubspot", "sinks", ("crm", "hubspot"), "crm_hubspot", nice=15
    )


def test_every_module_can_be_run() -> None:
    for process in load_processes().values():
        assert importlib.util.find_spec(f"{process.module}.__main__") is not None


def test_a_new_connector_file_is_a_process_without_an_entry(tmp_path: Path) -> None:
    file = tmp_path / "processes.toml"
    file.write_text('["crm-*"]\nrun = "sinks crm *"\nexpand = "sinks.crm"\nsection = "crm_*"\n', "utf-8")
    folder = tmp_path / "sinks" / "crm"
    folder.mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "reconciler.py": "# shared by all CRMs\n",
        "acme.py": "raise SystemExit('must not be imported')\n\n\nclass Config(Base):\n",
    }.items():
        (folder / name).write_text(text, "utf-8")
    assert load_processes(file, tmp_path) == {"crm-acme": Process("crm-acme", "sinks", ("crm", "acme"), "crm_acme")}
