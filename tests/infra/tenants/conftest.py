"""A folder of tenant files."""

from __future__ import annotations

from pathlib import Path

import pytest

ACME = """\
phone_region: NO
time_zone: Europe/Oslo
identity:
  placeholders: [n/a, unknown]
  weak_domains: [Shared.example]
  role_addresses: [Frontdesk]
  caps: {phone: 3, "crm:hubspot": 2}
precedence:
  title: [crm, "leadstream:enrichment:pdl"]
crm:
  hubspot:
    base_url: https://hubspot.example
    token: {setting: LEADSTREAM_SECRET_ACME_HUBSPOT}
enrichment:
  providers:
    pdl: {api_key: {file: /run/secrets/acme-pdl}, min_likelihood: 8}
  budget: {credits: 500, per: month}
sender:
  email:
    url: smtps://mail.example:465
    from_address: Acme <hello@acme.example>
    username: acme
    password: {setting: LEADSTREAM_SECRET_ACME_SMTP}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "default.yaml").write_text("", "utf-8")
    (tmp_path / "acme.yaml").write_text(ACME, "utf-8")
    return tmp_path
