"""Who is admitted: every route of the application, with every kind of wrong key; what a key may send."""

from __future__ import annotations

import asyncio
import random
from base64 import b64encode
from collections.abc import Callable
from typing import Any, cast

import httpx
import orjson
import pytest
from starlette.routing import Route

from api import errors
from api.app import build, make_routes
from api.auth import GuardedRoute, guarded
from infra.kafka.producer import Deliverer
from infra.keys import SCOPES, ApiKey, new_key
from infra.settings import Settings
from schemas.codec import Codec
from schemas.registry import registry
from tests.api.hostile import FixedKeys, KeptRecords, event

NEVER = 1 << 62
JSON = {"content-type": "application/json"}
SETTINGS = Settings.load({})
ROUTES = cast("list[GuardedRoute]", make_routes(SETTINGS, cast("Deliverer", KeptRecords())))
REQUESTS = 10_000


def key_of(tenant: str = "acme", *scopes: str) -> tuple[str, ApiKey]:
    key_id, key = new_key()
    return key, ApiKey(key_id, tenant, frozenset(scopes or ("ingest",)), NEVER)


class Api:
    """An application with one key."""

    def __init__(self, tenant: str = "acme", *scopes: str) -> None:
        self.key, permitted = key_of(tenant, *scopes)
        self.records = KeptRecords()
        app = build(SETTINGS, cast("Deliverer", self.records), FixedKeys({self.key: permitted}))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://api")

    async def send(self, body: Any, path: str = "/v1/events", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        found = {"authorization": f"Bearer {self.key}"} | JSON | {k.replace("_", "-"): v for k, v in headers.items()}
        return await self.client.post(path, content=content, headers=found)


def path_of(route: GuardedRoute, rng: random.Random) -> str:
    parts = route.path.split("/")
    return "/".join(rng.choice(("latest", "1", "form_submitted", "x")) if part[:1] == "{" else part for part in parts)


def as_header(key: str, rng: random.Random) -> dict[str, str]:
    basic = b64encode(f"{key}:{rng.choice(('', 'x', 'a:b'))}".encode()).decode()
    ways = ({"authorization": f"Bearer {key}"}, {"authorization": f"Basic {basic}"}, {"x-api-key": key})
    return rng.choice(ways)


async def test_no_route_admits_a_wrong_key(rng: random.Random) -> None:
    """None, malformed, unknown and revoked keys, keys without the scope, and keys of another tenant."""
    wrong_scopes = {path: key_of("acme", *(SCOPES.keys() - scopes)) for path, scopes in needed().items()}
    other, permitted = key_of("other", "ingest", "read")
    kept = KeptRecords()
    known = dict(wrong_scopes.values()) | {other: permitted}
    app = build(SETTINGS, cast("Deliverer", kept), FixedKeys(known))
    good = orjson.dumps(event())

    def wrong_key(route: GuardedRoute) -> tuple[dict[str, str], set[int]]:
        revoked, _ = key_of()
        choice = rng.randrange(6)
        if choice == 0:
            return {}, {401}
        if choice == 1:
            return as_header(rng.choice(("", "x", "ls_", "ls_" + "a" * 56, revoked[:-1], revoked + "x", "é")), rng), {
                401
            }
        if choice == 2:
            return as_header(revoked, rng), {401}
        if choice == 3:
            return {
                "authorization": rng.choice(("Bearer", "Basic", "Basic =", "Digest x", "Bearer  ", "Basic \xff"))
            }, {401}
        if choice == 4 or route.path not in ("/v1/events", "/v1/validate"):
            return as_header(wrong_scopes[route.path][0], rng), {403}
        return as_header(other, rng), {403}

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        for number in range(REQUESTS):
            route = ROUTES[number % len(ROUTES)]
            headers, expected = wrong_key(route)
            method = rng.choice(sorted(route.methods or ()))
            encoded = [(n.encode(), v.encode("latin-1")) for n, v in (headers | JSON).items()]
            response = await client.request(method, path_of(route, rng), content=good, headers=encoded)
            assert response.status_code in expected, (method, route.path, headers, response.text)
            if method != "HEAD":
                assert response.json()["error"]["code"] in {"unauthorized", "forbidden"}
            if response.status_code == 401:
                assert response.headers["www-authenticate"].startswith("Bearer")
    assert not kept.outputs


def needed() -> dict[str, frozenset[str]]:
    return {route.path: route.scopes for route in ROUTES}


def test_every_route_names_scopes_and_one_without_cannot_be_added() -> None:
    async def endpoint(_: object) -> None: ...

    assert {"/v1/events", "/v1/schemas", "/subjects"} <= needed().keys()
    assert all(scopes <= SCOPES.keys() for scopes in needed().values())
    with pytest.raises(ValueError, match="at least one scope"):
        GuardedRoute("/open", endpoint, scopes=())
    with pytest.raises(TypeError, match="names no scopes"):
        guarded([Route("/open", endpoint)])


async def test_unknown_paths_need_a_key_too() -> None:
    api = Api()
    assert (await api.client.get("/nothing")).status_code == 401
    assert (await api.client.get("/nothing", headers={"x-api-key": api.key})).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        lambda key: {"authorization": f"Bearer {key}"},
        lambda key: {"authorization": f"bearer  {key} "},
        lambda key: {"authorization": "Basic " + b64encode(f"{key}:".encode()).decode()},
        lambda key: {"authorization": "basic " + b64encode(f"{key}:x:y".encode()).decode()},
        lambda key: {"authorization": "Basic " + b64encode(key.encode()).decode()},
        lambda key: {"x-api-key": key},
        lambda key: {"authorization": "Digest x", "x-api-key": key},
    ],
)
async def test_a_key_is_accepted_in_each_of_its_forms(headers: Callable[[str], dict[str, str]]) -> None:
    api = Api()
    response = await api.client.post("/v1/events", json=event(), headers=headers(api.key))
    assert response.status_code == 202


async def test_only_the_header_with_the_key_is_remembered() -> None:
    api = Api()
    good, bad = f"Bearer {api.key}".encode(), f"Bearer {key_of()[0]}".encode()
    key, digest, app_key = b"authorization", b"Digest x", b"x-api-key"
    mixed = [[(key, good), (key, bad)], [(key, digest), (app_key, api.key.encode())], [(key, digest), (key, good)]]
    for _ in range(2):
        for headers in mixed:
            response = await api.client.post("/v1/events", json=event(), headers=headers)
            assert response.status_code == 202
        for value in (bad, digest):
            response = await api.client.post("/v1/events", json=event(), headers=[(key, value)])
            assert response.status_code == 401


async def test_the_error_says_what_to_do_and_never_contains_the_key() -> None:
    api = Api("acme", "read")
    missing = (await api.client.post("/v1/events", json=event())).json()["error"]
    assert "Authorization: Bearer" in missing["message"]
    assert missing["docs"].rpartition("/")[2] in errors.CODES
    lacking = (await api.send(event())).json()["error"]
    assert "lacks the scope ingest" in lacking["message"]
    unknown, _ = key_of()
    refused = await api.send(event(), authorization=f"Bearer {unknown}")
    assert unknown not in refused.text
    assert "unknown, expired or revoked" in refused.json()["error"]["message"]


async def test_the_key_of_a_beacon_may_be_in_the_url() -> None:
    api = Api()
    text = {"content-type": "text/plain;charset=UTF-8"}
    url = f"/v1/events?key={api.key}"
    assert (await api.client.post(url, content=orjson.dumps(event()), headers=text)).status_code == 202
    assert (await api.client.post(url, json=event())).status_code == 401  # a program can send a header
    assert (await api.client.get(f"/v1/schemas?key={api.key}")).status_code == 401
    for bad in ("", "?key=", "?key=%ff", "?" + "&" * 50, "?key=\u00e9", "?" + "a=1&" * 50):
        response = await api.client.post(f"/v1/events{bad}", content=b"{}", headers=text)
        assert response.status_code == 401


async def test_a_key_with_more_scopes_may_not_be_in_the_url() -> None:
    api = Api("acme", "ingest", "read")
    text = {"content-type": "text/plain"}
    response = await api.client.post(f"/v1/events?key={api.key}", content=orjson.dumps(event()), headers=text)
    assert (response.status_code, "ingest only" in response.json()["error"]["message"]) == (403, True)
    assert api.key not in response.text


# -- what a key may send -----------------------------------------------------------------------------------------------


def of(tenant: str | None, **changes: Any) -> dict[str, Any]:
    envelope = changes.pop("envelope", {}) | ({} if tenant is None else {"tenant": tenant})
    found = event(**changes)
    found["envelope"] = {"event_id": "e-1"} | envelope
    return found


@pytest.mark.parametrize("tenant", [None, ""])
async def test_an_event_without_a_tenant_is_of_the_keys(tenant: str | None) -> None:
    api = Api()
    assert (await api.send(of(tenant))).status_code == 202
    (output,) = api.records.outputs
    assert Codec().decode(output.value or b"").record["envelope"]["tenant"] == "acme"
    assert (output.key or b"").startswith(b"acme:")


async def test_a_key_for_every_tenant_needs_the_tenant_in_the_event() -> None:
    api = Api("*", "ingest", "admin")
    assert (await api.send(of("acme"))).status_code == 202
    missing = await api.send(of(None))
    assert (missing.status_code, "tenant" in missing.text) == (400, True)


async def test_another_tenants_events_are_refused_one_by_one() -> None:
    api = Api()
    alone = await api.send(of("other"))
    assert (alone.status_code, alone.json()["error"]["code"]) == (403, "forbidden")
    assert "tenant acme" in alone.json()["error"]["message"]
    both = await api.send([of("other"), of("acme")])
    assert both.status_code == 207
    assert [item.get("reason") for item in both.json()["events"]] == ["forbidden", None]
    assert both.json()["events"][0]["problems"][0]["path"] == "/envelope/tenant"
    assert (await api.send([of("other"), of("acme2")])).status_code == 403
    assert (await api.send([of("other"), {}])).status_code == 400
    assert (await api.send(of("other"), "/v1/validate")).status_code == 403
    assert len(api.records.outputs) == 1


@pytest.mark.parametrize("tenant", [7, [], {}, True, "ACME", "acme ", "Acme", "acme\u200b"])
async def test_a_tenant_that_is_none_is_not_the_keys(tenant: Any) -> None:
    api = Api()
    assert (await api.send(of(tenant))).status_code in {400, 403}
    assert not api.records.outputs


async def test_avro_of_another_tenant_is_refused() -> None:
    api = Api()
    example = registry().events["form_submitted"].example
    for tenant, status in (("acme", 202), ("other", 403)):
        record = example | {"envelope": example["envelope"] | {"tenant": tenant}}
        payload = Codec().encoder("form_submitted")(record)
        response = await api.send(payload, content_type="application/avro")
        assert response.status_code == status, response.text


RESTRICTED = {name: kind.scope for name, kind in registry().events.items() if kind.scope}


def test_what_only_some_may_send() -> None:
    pipeline = dict.fromkeys(("crm_record_changed", "enrichment_completed", "leads_merged", "lead_split"), "pipeline")
    assert pipeline | {"lead_erased": "erase"} == RESTRICTED


@pytest.mark.parametrize("name", registry().events)
async def test_a_restricted_type_needs_its_scope(name: str) -> None:
    example = registry().events[name].example
    example["envelope"] |= {"tenant": "acme", "source": "api"}
    plain = await Api().send({"type": name} | example)
    assert plain.status_code == (403 if name in RESTRICTED else 202), plain.text
    if name in RESTRICTED:
        assert f"lacks the scope {RESTRICTED[name]}" in plain.json()["error"]["message"]
        permitted = await Api("acme", "ingest", RESTRICTED[name]).send({"type": name} | example)
        assert permitted.status_code == 202, permitted.text


@pytest.mark.parametrize(
    "source", ["leadstream:crm", "leadstream:", "LeadStream:pdl", " leadstream:x", "\tleadstream:"]
)
async def test_the_pipelines_sources_need_the_scope_pipeline(source: str) -> None:
    sent = of("acme", envelope={"source": source})
    assert (await Api().send(sent)).status_code == 403
    assert (await Api("acme", "ingest", "pipeline").send(sent)).status_code == 202


async def test_concurrent_requests_do_not_exchange_their_keys() -> None:
    one, permitted_one = key_of("one")
    two, permitted_two = key_of("two")
    kept = KeptRecords()
    app = build(SETTINGS, cast("Deliverer", kept), FixedKeys({one: permitted_one, two: permitted_two}))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:

        async def send(key: str, name: str) -> None:
            sent = of(None, identifiers={"email": f"{name}@example.com"})
            response = await client.post("/v1/events", json=sent, headers={"x-api-key": key})
            assert response.status_code == 202

        await asyncio.gather(*[send(key, name) for key, name in ((one, "one"), (two, "two")) * 50])
    assert {output.key for output in kept.outputs} == {b"one:one@example.com", b"two:two@example.com"}
    assert len(kept.outputs) == 100


async def test_the_registry_knows_the_subjects_of_a_tenants_topic() -> None:
    api = Api()
    for subject in ("leads.received", "leads.received.acme", "leads.received.a-b"):
        path = f"/subjects/{subject}-leadstream.form_submitted/versions/latest"
        response = await api.client.get(path, headers={"x-api-key": api.key})
        assert response.status_code == 200
    missing = await api.client.get("/subjects/leads.received.acme-value/versions", headers={"x-api-key": api.key})
    assert missing.status_code == 404
