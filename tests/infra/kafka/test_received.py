"""The topics of lead events: their tenants, and their tenants' files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infra.kafka.received import EVERY_TENANTS, OF_TENANTS, tenant_names, tenant_of, with_tenants
from infra.kafka.topics import groups, load_topics


@pytest.mark.parametrize(
    ("topic", "tenant"),
    [("leads.received", ""), ("leads.received.acme", "acme"), ("leads.received.a_b-c", "a_b-c"), ("leads.changed", "")],
)
def test_the_tenant_of_a_topic(topic: str, tenant: str) -> None:
    assert tenant_of(topic) == tenant
    assert bool(re.match(EVERY_TENANTS, topic)) == bool(tenant)


def test_the_tenants_are_the_names_of_the_files(tmp_path: Path) -> None:
    for name in ("acme.yaml", "default.yaml", "B.yaml", "two.yml", "a_b.yaml", "x.yaml.example", ".hidden.yaml"):
        (tmp_path / name).touch()
    assert tenant_names(tmp_path) == ["a_b", "acme"]
    assert tenant_names(tmp_path / "missing") == []


def test_each_tenant_has_a_topic_that_intake_reads() -> None:
    topics = load_topics(tenants=["acme", "other"])
    assert topics.keys() - load_topics().keys() == {"leads.received.acme", "leads.received.other"}
    assert OF_TENANTS not in topics
    assert topics["leads.received.acme"].config == topics["leads.received"].config
    assert groups(topics, ["intake"])["intake"] == ["leads.received", "leads.received.acme", "leads.received.other"]


def test_only_the_group_that_reads_lead_events_reads_the_topics_of_tenants() -> None:
    existing = ["leads.received.b", "leads.changed", "leads.received", "leads.received.a"]
    assert with_tenants(["leads.received"], existing) == ["leads.received", "leads.received.a", "leads.received.b"]
    assert with_tenants(["leads.changed"], existing) == ["leads.changed"]
