"""What a tenant file may hold, and what is reported of one that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import Settings
from infra.tenant_files.reading import read_content, read_file
from infra.tenants import AccountError, FileProblem, SecretReference, Tenant
from sinks.crm.hubspot import Config

SECRET = "pat-eu1-5f1c2b3a"


def read(text: str, name: str = "acme.yaml") -> Tenant | list[FileProblem]:
    return read_content(Path("tenants") / name, text.encode())


def problems(text: str, name: str = "acme.yaml") -> list[tuple[int, int, str]]:
    found = read(text, name)
    assert isinstance(found, list), found
    assert SECRET not in repr(found)
    return [(each.line, each.column, each.message) for each in found]


def test_a_whole_file(folder: Path) -> None:
    tenant = read_file(folder / "acme.yaml")
    assert isinstance(tenant, Tenant)
    assert (tenant.name, tenant.file, tenant.own_file) == ("acme", "acme", True)
    assert tenant.phone_region == "NO", "the country, not the word no"
    assert tenant.identity.weak_domains == ("shared.example",)
    assert tenant.identity.role_addresses == ("frontdesk",)
    assert tenant.identity.caps == {"phone": 3, "crm:hubspot": 2}
    assert tenant.precedence == {"title": ("crm", "leadstream:enrichment:pdl")}
    hubspot = tenant.section("crm", "hubspot")
    assert hubspot is not None
    assert hubspot.references == [("token", SecretReference(setting="LEADSTREAM_SECRET_ACME_HUBSPOT"))]
    assert tenant.enrichment.budget is not None
    assert (tenant.enrichment.budget.credits, tenant.enrichment.budget.per) == (500, "month")


def test_an_empty_file_and_one_with_a_byte_order_mark() -> None:
    assert isinstance(read(""), Tenant)
    assert isinstance(read("# nothing\n"), Tenant)
    assert isinstance(read("\ufeffphone_region: DE\r\n"), Tenant)


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("phone_regoin: DE", 1, 1, "phone_regoin: no such key; did you mean phone_region?"),
        ("identity: {}\nname: acme", 2, 1, "name: no such key"),
        ("identity:\n  placeholder: [x]", 2, 3, "did you mean placeholders?"),
        ("phone_region: Germany", 1, 15, "phone_region: must be the code of a country"),
        ("time_zone: Berlin", 1, 12, "time_zone: must be the name of a time zone"),
        ("time_zone: ../../etc/passwd", 1, 12, "must be the name of a time zone"),
        ("phone_region: true", 1, 15, "put it in quotation marks"),
        ("identity: {placeholders: [0000]}", 1, 27, "identity.placeholders.0: must be a text: put it in quotation"),
        ("identity: {placeholders: none}", 1, 26, "must be a list"),
        ("identity: []", 1, 11, "must be a map"),
        ("identity: {caps: {fax: 1}}", 1, 19, "identity.caps.fax"),
        ("precedence: {titel: [crm]}", 1, 14, "no such field of a lead"),
        ("precedence: {title: [crm, crm]}", 1, 21, "a name is there twice"),
        ("crm:\n  hupspot: {}", 2, 3, "crm.hupspot: no such CRM; there are: hubspot"),
        ("enrichment: {providers: {clearbit: {}}}", 1, 26, "no such provider; there are: pdl"),
        ("sender:\n  fax: {}", 2, 3, "no such channel; there are: email"),
        (f"crm:\n  hubspot:\n    token: {SECRET}", 3, 12, "crm.hubspot.token: must be a reference to a secret"),
        (f"crm: {{hubspot: {{token: {{value: {SECRET}}}}}}}", 1, 24, "setting or file"),
        (f"crm: {{hubspot: {{token: {{setting: {SECRET}}}}}}}", 1, 24, "must be the name of a setting"),
        ("crm: {hubspot: {token: {setting: LEADSTREAM_DATABASE_URL}}}", 1, 24, "must be the name of a setting"),
        ("crm: {hubspot: {token: {file: secret.txt}}}", 1, 24, "must be an absolute path"),
        ("crm: {hubspot: {}}", 1, 16, "crm.hubspot.token: is missing: write {setting:"),
        ("crm: {hubspot: {tokn: x, token: {file: /x}}}", 1, 17, "did you mean token?"),
        ("crm: {hubspot: {in_flight: 9, token: {file: /x}}}", 1, 17, "use LEADSTREAM_CRM_HUBSPOT_IN_FLIGHT"),
        ("crm: {hubspot: {base_url: ftp://x, token: {file: /x}}}", 1, 27, "crm.hubspot.base_url"),
        (
            f"crm: {{hubspot: {{base_url: 'https://a:{SECRET}@x', token: {{file: /x}}}}}}",
            1,
            27,
            "user name or password",
        ),
        ("crm: [hubspot]", 1, 6, "crm: must be a map"),
        ("crm: {hubspot: [1]}", 1, 16, "must be a map of settings"),
        ("sender: {email: {url: smtp://x, from_address: nobody}}", 1, 47, "must be one address"),
        ("enrichment: {budget: {per: month}}", 1, 22, "enrichment.budget.credits: is missing"),
        ("enrichment: {budget: {credits: -1}}", 1, 32, "greater than or equal to 0"),
        ("campaigns: nowhere", 1, 12, "does not exist"),
        ("phone_region: DE\nphone_region: FR", 2, 1, "the key is there twice"),
        ("1: x", 1, 1, "is not a text"),
        ("[1, 2]", 1, 1, "must be a map"),
        ("just words", 1, 1, "must be a map"),
        ("a: [1", 1, 6, "not valid YAML"),
        ("a: b\n\tc: d", 2, 1, "not valid YAML"),
        ("a: &x 1\nb: *x", 1, 4, "not supported"),
        ("a: !!python/object:os.system x", 1, 4, "not supported"),
        ("a: 1\n---\nb: 2", 2, 1, "not valid YAML"),
    ],
)
def test_a_wrong_file_is_reported_with_its_place(text: str, line: int, column: int, words: str) -> None:
    found = problems(text)
    assert [(line, column, True)] == [(at, place, words in message) for at, place, message in found][:1], found


def test_every_problem_is_reported_in_the_order_of_the_file() -> None:
    found = problems(f"phone_region: XX\ncrm:\n  hubspot: {{token: {SECRET}}}\n  other: {{}}\nfoo: 1\n")
    assert [line for line, _, _ in found] == [1, 3, 4, 5]


@pytest.mark.parametrize("name", ["Acme.yaml", "a b.yaml", "-a.yaml", "acme.yml", f"{'a' * 64}.yaml"])
def test_the_name_of_the_file_is_the_tenant(name: str) -> None:
    assert "the name must" in problems("", name)[0][2]


@pytest.mark.parametrize("text", ["[" * 10_000, "{a: " * 10_000, "\0", "a: \x07", "- " * 5000, "? a\n: b\n? [x]\n: y"])
def test_no_yaml_raises(text: str) -> None:
    assert problems(text)


@given(st.text(max_size=80) | st.text("{}[]:,-&*!|>'\"%@`#?\n\t ab01", max_size=60))
def test_any_text_is_read_or_reported(text: str) -> None:
    found = read_content(Path("acme.yaml"), text.encode("utf-8", "surrogatepass"))
    assert isinstance(found, Tenant) or found


def test_a_file_that_is_no_text_or_too_large_or_a_folder(tmp_path: Path) -> None:
    assert isinstance(read_content(Path("acme.yaml"), b"\xff\xfe"), list)
    assert isinstance(read_content(Path("acme.yaml"), b"#" * 300_000), list)
    (tmp_path / "acme.yaml").mkdir()
    assert isinstance(read_file(tmp_path / "acme.yaml"), list)


def test_an_account_has_the_values_of_the_file_and_of_the_process_only(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n", "utf-8")
    tenant = read(f"crm: {{hubspot: {{token: {{file: {tmp_path}/token}}}}}}")
    assert isinstance(tenant, Tenant)
    section = tenant.crm["hubspot"]
    environment = {"LEADSTREAM_CRM_HUBSPOT_TOKEN": "other", "LEADSTREAM_CRM_HUBSPOT_BASE_URL": "https://other.example"}
    config = section.config(Config, {"in_flight": 9}, Settings.load(environment))
    assert config.token.get_secret_value() == SECRET
    assert (config.base_url, config.in_flight) == ("https://api.hubapi.com", 9)
    assert SECRET not in repr(config)
    assert SECRET not in repr(tenant)


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    settings = Settings.load({"LEADSTREAM_SECRET_ACME": SECRET})
    assert SecretReference(setting="LEADSTREAM_SECRET_ACME").resolve(settings).get_secret_value() == SECRET
    (tmp_path / "empty").write_text("\n", "utf-8")
    for reference, words in (
        (SecretReference(setting="LEADSTREAM_SECRET_OTHER"), "LEADSTREAM_SECRET_OTHER is not set"),
        (SecretReference(file=str(tmp_path / "none")), "cannot be read"),
        (SecretReference(file=str(tmp_path / "empty")), "is empty"),
        (SecretReference(file=str(tmp_path)), "cannot be read"),
    ):
        with pytest.raises(AccountError, match=words):
            reference.resolve(settings)
