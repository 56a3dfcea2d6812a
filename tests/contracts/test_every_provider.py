"""What every provider must do, whichever file it is: found by folder, tried on its simulator and on bare answers."""

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
from streams.enrichment.providers import FIELDS, Answer, Found, LookupFailed, NotFound, Provider, ProviderConfig

PROVIDERS = plugins.discover("streams.enrichment.providers")
every_provider = pytest.mark.parametrize("module", PROVIDERS.values(), ids=PROVIDERS)
SECRET = "key-that-nobody-may-see"
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


async def answer_to(module: ModuleType, handler: Handler, lead: dict[str, Any] = LEAD) -> Answer:
    settings = config(module)
    async with http.client(settings.base_url, transport=httpx.MockTransport(handler)) as client:
        provider: Provider = module.connect(settings, client)
        return await provider.ask(provider.question(lead))


def refusing(error: type[httpx.TransportError]) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error("cut", request=request)

    return handler


def test_there_are_providers() -> None:
    assert "pdl" in PROVIDERS


@every_provider
def test_it_is_off_until_it_has_a_key_and_its_key_is_never_shown(module: ModuleType) -> None:
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
    answer = await answer_to(module, handler)
    assert isinstance(answer, LookupFailed)
    assert (answer.reason, answer.retryable) == (reason, retryable)
    for secret in (SECRET, LEAD["email"]):
        assert secret not in repr(answer)


@every_provider
async def test_it_asks_nothing_about_nobody(module: ModuleType) -> None:
    nobody = dict.fromkeys(LEAD, "") | {"lead_id": LEAD["lead_id"]}
    async with http.client("http://provider") as client:
        assert not module.connect(config(module), client).question(nobody)


@every_provider
async def test_neither_key_nor_person_stands_in_the_url(module: ModuleType) -> None:
    asked: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(503)

    await answer_to(module, handler)
    assert asked
    assert not any(secret in str(request.url) for request in asked for secret in (SECRET, LEAD["email"], "ada"))


@every_provider
async def test_its_simulator_is_understood(module: ModuleType, tmp_path: Path) -> None:
    app = importlib.import_module(f"simulators.{module.NAME}").app(tmp_path)
    settings = config(module)
    answers: list[Answer] = []
    async with http.client(settings.base_url, transport=httpx.ASGITransport(app=app)) as client:
        provider: Provider = module.connect(settings, client)
        for n in range(60):
            await provider.wait_for_rate_limit()
            answers.append(await provider.ask(provider.question(LEAD | {"email": f"lead{n}@example.com"})))
    found = [answer for answer in answers if isinstance(answer, Found)]
    assert found
    assert any(isinstance(answer, NotFound) for answer in answers)
    assert not any(isinstance(answer, LookupFailed) for answer in answers)
    for answer in found:
        assert set(answer.fields) <= FIELDS
        assert answer.likelihood is None or 0 <= answer.likelihood <= 1
        assert all(isinstance(value, str) for value in answer.fields.get("custom", {}).values())
        assert "" not in answer.fields.values()
