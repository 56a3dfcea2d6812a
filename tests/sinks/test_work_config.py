"""A call must fit into its lease: the rule between ``timeout_s`` and ``lease_s``."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from infra import plugins
from infra.settings import Settings, SettingsError
from sinks.crm import hubspot
from sinks.work_config import WorkConfig

CONFIGS = [
    module.Config for package in ("sinks.crm", "sinks.messages") for module in plugins.discover(package).values()
]
every_config = pytest.mark.parametrize("model", CONFIGS, ids=lambda model: model.__module__)


def lease_problems(model: type[WorkConfig], **values: float) -> list[str]:
    """Return what is reported about ``lease_s``, whatever else the connector requires."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return [each["msg"] for each in error.errors() if each["loc"] == ("lease_s",)]
    return []


@every_config
@pytest.mark.parametrize("values", [{}, {"timeout_s": 5, "lease_s": 10}, {"timeout_s": 2.5, "lease_s": 5}])
def test_a_timeout_of_at_most_half_of_the_lease_is_valid(model: type[WorkConfig], values: dict[str, float]) -> None:
    assert lease_problems(model, **values) == []


@every_config
@pytest.mark.parametrize("values", [{"timeout_s": 5.1, "lease_s": 10}, {"lease_s": 5}])
def test_a_longer_timeout_is_an_error(model: type[WorkConfig], values: dict[str, float]) -> None:
    (problem,) = lease_problems(model, **values)
    assert "Set lease_s to at least twice timeout_s" in problem


def test_an_invalid_timeout_is_not_also_reported_as_a_short_lease() -> None:
    assert lease_problems(hubspot.Config, timeout_s=-1, lease_s=10) == []


def test_the_error_names_the_setting_and_the_default_lease_is_checked_too() -> None:
    environment = {"LEADSTREAM_CRM_HUBSPOT_TOKEN": "pat-test", "LEADSTREAM_CRM_HUBSPOT_TIMEOUT_S": "31"}
    message = "LEADSTREAM_CRM_HUBSPOT_LEASE_S: 60 s is too short for a timeout_s of 31 s"
    with pytest.raises(SettingsError, match=message):
        Settings.load(environment).section("crm_hubspot", hubspot.Config)
