"""The contract of every provider, tested with its simulator and with single responses. Found by folder."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from infra import http, plugins
from infra.outcomes import Reason
from streams.enrichment.providers import FIELDS, Found, LookupFailed, LookupResult, NotFound, Provider, ProviderConfig

PROVIDERS = plugins.discover("streams.enrichment.providers")
every_provider = pytest.mark.parametrize("module", PROVIDERS.values(), ids=PROVIDERS)
SECRET = "a-secret-key"
LEAD = {
    "lead_id": str(uuid.uuid4()),
    "email": "ada.lovelace@example.com",
    "phone": "",
    "first_name": "",
    "last_name": "",
    "company": "",
    "domain": "",
}
Handler = Callable[[httpx.Request], httpx.Response]


def config(module: ModuleType, **given: Any) -> ProviderConfig:
    made: ProviderConfig = module.Config(api_key=SECRET, **given)
    return made


async def result_of(module: ModuleType, handler: Handler, lead: dict[str, Any] = LEAD) -> LookupResult:
    settings = config(module)
    async with http.client(settings.base_url, transport=httpx.MockTransport(handler)) as client:
        provider: Provider = module.connect(settings, client)
        return await provider.look_up(provider.query(lead))


def refusing(error: type[httpx.TransportError]) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error("cut", request=request)

    return handler


def test_there_are_providers() -> None:
    assert "pdl" in PROVIDERS


@every_provider
def test_it_is_disabled_without_a_key_and_never_shows_its_key(module: ModuleType) -> None:
    assert issubclass(module.Config, ProviderConfig)
    assert module.Config().api_key.get_secret_value() == ""
    assert SECRET not in repr(config(module))


@every_provider
@pytest.mark.parametrize(
    ("handler", "reason", "retryable"),
    [
        (refusing(httpx.ReadTimeout), Reason.TIMEOUT, True),
        (refusing(httpx.ConnectError), Reason.UNAVAILABLE, True),
        (refusing(httpx.RemoteProtocolError), Reason.UNAVAILABLE, True),
        (lambda _: httpx.Response(429), Reason.RATE_LIMITED, True),
        (lambda _: httpx.Response(500), Reason.UNAVAILABLE, True),
        (lambda _: httpx.Response(503, text="<html>"), Reason.UNAVAILABLE, True),
        (lambda _: httpx.Response(401), Reason.UNAUTHORIZED, False),
        (lambda _: httpx.Response(200, text="<html>maintenance</html>"), Reason.UNAVAILABLE, True),
        (lambda _: httpx.Response(200, content=b""), Reason.UNAVAILABLE, True),
        (lambda _: httpx.Response(200, json=[]), Reason.UNAVAILABLE, True),
        (lambda _: httpx.Response(200, json={"data": None}), Reason.UNAVAILABLE, True),
    ],
    ids=["timeout", "refused", "cut", "429", "500", "503", "401", "html", "empty", "list", "null"],
)
async def test_a_failed_call_has_the_promised_meaning(
    module: ModuleType, handler: Handler, reason: Reason, retryable: bool
) -> None:
    result = await result_of(module, handler)
    assert isinstance(result, LookupFailed)
    assert (result.reason, result.retryable) == (reason, retryable)
    for secret in (SECRET, LEAD["email"]):
        assert secret not in repr(result)


@every_provider
async def test_without_values_to_look_up_the_query_is_empty(module: ModuleType) -> None:
    nobody = dict.fromkeys(LEAD, "") | {"lead_id": LEAD["lead_id"]}
    async with http.client("http://provider") as client:
        assert not module.connect(config(module), client).query(nobody)


@every_provider
async def test_the_url_contains_neither_the_key_nor_personal_data(module: ModuleType) -> None:
    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(503)

    await result_of(module, handler)
    assert sent
    assert not any(secret in str(request.url) for request in sent for secret in (SECRET, LEAD["email"], "ada"))


@every_provider
async def test_the_responses_of_its_simulator_are_valid(module: ModuleType, tmp_path: Path) -> None:
    app = importlib.import_module(f"simulators.{module.NAME}").app(tmp_path)
    settings = config(module)
    results: list[LookupResult] = []
    async with http.client(settings.base_url, transport=httpx.ASGITransport(app=app)) as client:
        provider: Provider = module.connect(settings, client)
        for n in range(60):
            await provider.wait_for_rate_limit()
            results.append(await provider.look_up(provider.query(LEAD | {"email": f"lead{n}@example.com"})))
    found = [result for result in results if isinstance(result, Found)]
    assert found
    assert any(isinstance(result, NotFound) for result in results)
    assert not any(isinstance(result, LookupFailed) for result in results)
    for result in found:
        assert set(result.fields) <= FIELDS
        assert result.likelihood is None or 0 <= result.likelihood <= 1
        assert all(isinstance(value, str) for value in result.fields.get("custom", {}).values())
        assert "" not in result.fields.values()
