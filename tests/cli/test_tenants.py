"""``leadstream tenants``: list, check, schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from cli.main import build

ROOT = Path(__file__).parents[2]
SECRET = "pat-eu1-5f1c2b3a"


def run(folder: Path, *args: str, **settings: str) -> Result:
    return CliRunner().invoke(build(), ["tenants", *args], env={"LEADSTREAM_TENANTS_DIR": str(folder), **settings})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default.yaml").write_text("", "utf-8")
    (tmp_path / "acme.yaml").write_text("crm: {hubspot: {token: {setting: LEADSTREAM_SECRET_ACME}}}\n", "utf-8")
    return tmp_path


def test_valid_files(folder: Path) -> None:
    result = run(folder, "check")
    assert (result.exit_code, result.stdout) == (0, "2 tenant files, no problems\n")
    listed = json.loads(run(folder, "list", "--json").stdout)
    assert listed["open"] is True
    assert [(row["tenant"], row["state"], row["accounts"]) for row in listed["tenants"]] == [
        ("acme", "valid", ["crm hubspot"]),
        ("default", "valid", []),
    ]
    assert "acme" in run(folder, "list").stdout
    assert json.loads(run(folder, "list", "--json", LEADSTREAM_TENANTS_CLOSED="true").stdout)["open"] is False


def test_each_problem_with_file_line_and_column_and_no_secret(folder: Path) -> None:
    file = folder / "acme.yaml"
    file.write_text(f"phone_region: XX\ncrm:\n  hubspot: {{token: {SECRET}}}\n  siebel: {{}}\n", "utf-8")
    (folder / "globex.yml").write_text("", "utf-8")
    result = run(folder, "check")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        f"{file}:1:15:",
        f"{file}:3:20:",
        f"{file}:4:3:",
        f"{folder / 'globex.yml'}:",
    ]
    assert SECRET not in result.output
    as_json = run(folder, "check", str(file), "--json")
    assert as_json.exit_code == 1
    assert [(each["line"], each["column"]) for each in json.loads(as_json.stdout)["problems"]] == [
        (1, 15),
        (3, 20),
        (4, 3),
    ]
    assert run(folder, "list").exit_code == 1


def test_secrets_can_be_required(folder: Path) -> None:
    result = run(folder, "check", "--secrets")
    assert result.exit_code == 1
    assert "LEADSTREAM_SECRET_ACME is not set" in result.stderr
    result = run(folder, "check", "--secrets", LEADSTREAM_SECRET_ACME=SECRET)
    assert (result.exit_code, SECRET in result.output) == (0, False)


def test_a_missing_file_folder_or_option(folder: Path, tmp_path: Path) -> None:
    assert run(folder, "check", str(tmp_path / "none.yaml")).exit_code == 1
    assert run(tmp_path / "none", "check").exit_code == 1
    assert run(folder, "check", "--colour").exit_code == 2


def test_the_shipped_schema_is_the_current_one() -> None:
    """Write it with: leadstream tenants schema > tenants/tenant.schema.json."""
    printed = run(ROOT / "tenants", "schema").stdout
    assert (ROOT / "tenants" / "tenant.schema.json").read_text("utf-8") == printed


def test_the_schema_has_every_connector_and_no_setting_of_the_process() -> None:
    schema = json.loads(run(ROOT / "tenants", "schema").stdout)
    assert schema["properties"]["crm"]["properties"].keys() == {"hubspot"}
    hubspot = schema["$defs"]["crm_hubspot"]
    assert hubspot["properties"]["token"]["$ref"] == "#/$defs/Secret"
    assert hubspot["required"] == ["token"]
    assert "in_flight" not in hubspot["properties"]
    assert not {"name", "file"} & schema["properties"].keys()


def test_the_example_is_valid_and_names_the_schema(tmp_path: Path) -> None:
    text = (ROOT / "tenants" / "acme.yaml.example").read_text("utf-8")
    (tmp_path / "acme" / "campaigns").mkdir(parents=True)
    (tmp_path / "acme.yaml").write_text(text, "utf-8")
    result = run(tmp_path, "check")
    assert result.exit_code == 0, result.stderr
    schema = json.loads((ROOT / "tenants" / "tenant.schema.json").read_text("utf-8"))
    assert yaml.safe_load(text).keys() == schema["properties"].keys(), "it shows every key"
    for file in ("acme.yaml.example", "default.yaml"):
        first = (ROOT / "tenants" / file).read_text("utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=tenant.schema.json"
