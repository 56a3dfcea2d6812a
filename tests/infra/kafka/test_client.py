"""The configuration of Kafka clients, and the handling of their errors and statistics."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from confluent_kafka import KafkaError, Producer
from prometheus_client import REGISTRY

from infra.errors import ClientFailed
from infra.kafka.client import Errors, addresses, client_config, tls_context
from infra.kafka.statistics import Statistics
from infra.kafka_settings import KafkaSettings
from infra.runtime import Stop
from streams.faust.credentials import TokenProvider

OAUTH = {
    "kafka_security_protocol": "SASL_SSL",
    "kafka_sasl_mechanism": "OAUTHBEARER",
    "kafka_oauth_token_url": "https://login.example.com/token",
    "kafka_oauth_client_id": "leadstream",
    "kafka_oauth_client_secret": "s3cret",
    "kafka_oauth_scope": "kafka",
}
LOGIN = {"kafka_sasl_username": "ada", "kafka_sasl_password": "s3cret"}
REFUSED, DOWN, FATAL = KafkaError._AUTHENTICATION, KafkaError._ALL_BROKERS_DOWN, KafkaError._FATAL


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kafka_security_protocol": "SSL"},
        *(
            {"kafka_security_protocol": protocol, "kafka_sasl_mechanism": mechanism} | LOGIN
            for protocol in ("SASL_PLAINTEXT", "SASL_SSL")
            for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        ),
        OAUTH,
    ],
    ids=lambda values: "-".join(map(str, list(values.values())[:2])) or "default",
)
def test_librdkafka_accepts_the_configuration_of_every_login(values: dict[str, Any]) -> None:
    config = client_config(KafkaSettings(kafka_bootstrap="127.0.0.1:1", **values), "test")
    assert Producer(config) is not None
    assert config["client.id"] == "leadstream-test"


def test_tls_is_verified_and_off_only_without_ssl_in_the_protocol() -> None:
    config = client_config(KafkaSettings(kafka_security_protocol="SSL"), "test")
    assert config["enable.ssl.certificate.verification"] is True
    assert config["ssl.endpoint.identification.algorithm"] == "https"
    context = tls_context(KafkaSettings(kafka_security_protocol="SSL"))
    assert context is not None
    assert context.check_hostname
    assert tls_context(KafkaSettings()) is None


def test_bootstrap_servers_are_a_list() -> None:
    assert addresses(KafkaSettings(kafka_bootstrap="a:1, b:2,")) == ["a:1", "b:2"]


@pytest.mark.parametrize(
    ("errors", "ends"),
    [
        ([DOWN], False),
        ([KafkaError._TRANSPORT, DOWN, KafkaError._TRANSPORT], False),
        ([REFUSED], False),  # one broker of several, perhaps just starting
        ([REFUSED, DOWN], True),
        ([REFUSED] * 4, False),
        ([REFUSED] * 5, True),
        ([REFUSED] * 50, True),
    ],
)
def test_only_permanent_errors_are_reported_and_only_once(errors: list[int], *, ends: bool) -> None:
    failures: list[Exception] = []
    callback = Errors("test", failures.append, logged=False)
    for code in errors:
        callback(KafkaError(code, "why"))
    assert [type(failure) for failure in failures] == [ClientFailed] * ends


def test_an_unavailable_token_endpoint_is_not_a_permanent_error() -> None:
    failures: list[Exception] = []
    callback = Errors("test", failures.append, logged=False)
    text = "Failed to acquire SASL OAUTHBEARER token: could not connect"
    for _ in range(10):
        callback(KafkaError(REFUSED, text))
    callback(KafkaError(DOWN, "1/1 brokers are down"))
    assert failures == []
    assert callback.refusal == text


def test_a_fatal_error_is_reported() -> None:
    failures: list[Exception] = []
    Errors("test", failures.append, logged=False)(KafkaError(KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "gap", True))
    assert "OUT_OF_ORDER_SEQUENCE_NUMBER: gap" in str(failures[0])


async def test_a_failure_in_another_thread_wakes_a_task_that_waits_for_a_stop() -> None:
    stop = Stop()
    callback = Errors("test", stop.fail, logged=False)

    def report() -> None:
        callback(KafkaError(REFUSED, "no such user"))
        callback(KafkaError(DOWN, "1/1 brokers are down"))

    timer = threading.Timer(0.01, report)
    timer.start()
    assert await stop.wait(30)
    assert stop.requested
    assert "no such user" in stop.status.failure
    timer.join()


def test_statistics_become_metrics_of_the_client() -> None:
    statistics = Statistics("test-statistics", "producer")
    broker: dict[str, Any] = {
        "outbuf_cnt": 2,
        "waitresp_cnt": -1,
        "txretries": 3,
        "txerrs": 1,
        "rxerrs": 1,
        "req_timeouts": 0,
    }
    broker |= {"connects": 1, "disconnects": 0, "rtt": {"p99": 1500}, "throttle": {"p99": 20}}
    slower = broker | {"rtt": {"p99": 9000}, "outbuf_cnt": 5}
    topics = {"t": {"partitions": {"0": {"fetchq_cnt": 7, "fetchq_size": 70}, "-1": {}}}}
    report = {"msg_cnt": 10, "msg_size": 100, "brokers": {"a": broker, "b": slower}, "topics": topics}
    statistics(json.dumps(report))
    statistics(json.dumps(report | {"brokers": {"a": broker | {"txretries": 9}, "b": slower}}))
    statistics(json.dumps({"brokers": {}}))  # the broker has left: counters do not decrease

    def value(name: str) -> float | None:
        labels = {"client": "test-statistics", "kind": "producer"}
        return REGISTRY.get_sample_value(f"leadstream_kafka_{name}", labels)

    assert (value("retries_total"), value("request_errors_total"), value("connects_total")) == (12, 4, 2)
    statistics(json.dumps(report))
    assert (value("queue_messages"), value("queue_bytes"), value("requests")) == (17, 170, 7)
    assert (value("rtt_p99_seconds"), value("throttle_p99_seconds")) == (0.009, 0.02)


async def test_faust_gets_a_token_once_and_a_new_one_before_it_expires() -> None:
    now, requests = [1000.0], []

    def respond(request: httpx.Request) -> httpx.Response:
        requests.append(request.content)
        return httpx.Response(200, json={"access_token": f"token-{len(requests)}", "expires_in": 100})

    provider = TokenProvider(KafkaSettings(**OAUTH), transport=httpx.MockTransport(respond), clock=lambda: now[0])
    assert [await provider.token() for _ in range(3)] == ["token-1"] * 3
    now[0] += 81
    assert await provider.token() == "token-2"
    assert requests[0] == b"grant_type=client_credentials&scope=kafka"
