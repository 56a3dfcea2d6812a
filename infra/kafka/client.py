"""The one place where Kafka clients are created: bootstrap servers, TLS, SASL, client id, errors and statistics.

Guarantees:

- A client that failed permanently calls ``on_fatal`` with :class:`ClientFailed`: after a fatal error of librdkafka
  (a fenced member, a producer with a broken sequence), or when the login or the check of the brokers' certificates
  fails while no broker is connected, or five times within a minute. Temporary errors (a broker or a token endpoint that
  restarts, a network outage) are left to librdkafka, which retries with backoff.
- Errors are logged when they change, and every 30 s while they last. They contain no passwords.

``on_fatal`` and the other callbacks run in the thread that polls the client, so ``on_fatal`` has to be thread-safe, as
:meth:`infra.runtime.Stop.fail` is.

Source: https://github.com/confluentinc/librdkafka/blob/v2.12.0/CONFIGURATION.md
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from infra.errors import ClientFailed, DependencyUnavailable
from infra.kafka.statistics import Statistics
from infra.kafka_settings import KafkaSettings
from infra.runtime import log

_STATISTICS_MS = 15_000
_LOG_EVERY_S = 30.0
_REFUSED = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)  # noqa: SLF001 - librdkafka's own name
_REFUSALS, _REFUSALS_S = 5, 60.0  # this many refusals within this many seconds are permanent
# Not permanent: the token endpoint may become available again, and open connections keep working.
_NO_TOKEN = "Failed to acquire SASL OAUTHBEARER token"  # noqa: S105 - text of librdkafka's error
_FIRST_ATTEMPT_S = 1.0

OnFatal = Callable[[Exception], None]


class Errors:
    """Error callback of one client: logs errors, and reports a permanent failure to ``on_fatal``.

    ``refusal``: why the login or the check of a certificate failed; empty if it did not.
    """

    def __init__(self, client: str, on_fatal: OnFatal | None, *, logged: bool) -> None:
        self.refusal = ""
        self._client = client
        self._on_fatal = on_fatal
        self._log = log("kafka") if logged else None
        self._last: tuple[str, float] = ("", 0.0)
        self._refused_at: deque[float] = deque(maxlen=_REFUSALS)

    def __call__(self, error: KafkaError) -> None:
        """Handle one error; librdkafka calls this in the thread that polls."""
        if self._log is not None and (error.name() != self._last[0] or time.monotonic() > self._last[1] + _LOG_EVERY_S):
            fields = {"client": self._client, "error": error.name(), "detail": error.str()}
            self._log.warning("kafka error", extra={"fields": fields})
            self._last = error.name(), time.monotonic()
        if _is_refusal(error):
            self.refusal = error.str()
            if _NO_TOKEN not in self.refusal:
                self._refused_at.append(time.monotonic())
        if error.fatal() or self._is_refused_permanently(error):
            self._report_failure(self.refusal or f"{error.name()}: {error.str()}")

    def _is_refused_permanently(self, error: KafkaError) -> bool:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001 - librdkafka's own name
            return bool(self._refused_at) and time.monotonic() - self._refused_at[-1] < _REFUSALS_S
        return len(self._refused_at) == _REFUSALS and self._refused_at[-1] - self._refused_at[0] < _REFUSALS_S

    def _report_failure(self, why: str) -> None:
        if self._on_fatal is not None:
            self._on_fatal(ClientFailed(f"the Kafka client {self._client} failed permanently: {why}"))
            self._on_fatal = None


def _is_refusal(error: KafkaError) -> bool:
    untrusted = error.code() == KafkaError._SSL and "certificate verify failed" in error.str()  # noqa: SLF001 - librdkafka's own name
    return untrusted or error.code() in _REFUSED


class _Consumer(Consumer):
    def __init__(self, config: dict[str, Any], errors: Errors) -> None:
        super().__init__(config)
        self.errors = errors


class _Admin(AdminClient):
    def __init__(self, config: dict[str, Any], errors: Errors) -> None:
        super().__init__(config)
        self.errors = errors


def member(
    settings: KafkaSettings,
    group: str,
    *,
    instance: str = "",
    config: Mapping[str, Any] | None = None,
    on_fatal: OnFatal | None = None,
) -> Consumer:
    """Return a consumer for a member of ``group``: manual commits, short fetch timeouts, cooperative rebalancing.

    With ``instance`` it is a static member: if it restarts within the session timeout, it keeps its partitions.
    ``config`` adds to or replaces librdkafka's settings.
    """
    own = {
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        "fetch.wait.max.ms": 250,
        "fetch.error.backoff.ms": 100,
        "queued.max.messages.kbytes": 65_536,
        "fetch.message.max.bytes": 4_194_304,
    }
    static = {"group.instance.id": f"{group}-{instance}"} if instance else {}
    errors = Errors(group, on_fatal, logged=True)
    return _Consumer(_watched(settings, group, "consumer", errors) | own | static | dict(config or {}), errors)


def reader(settings: KafkaSettings, group: str, config: Mapping[str, Any] | None = None) -> Consumer:
    """Return a consumer for partitions that its user assigns; it joins no group and commits nothing by itself.

    ``group`` is the group whose committed offsets it can read. Its calls raise errors, so errors are not logged.
    """
    errors = Errors(group, None, logged=False)
    own = {"group.id": group, "enable.auto.commit": False, "log_level": 2, "error_cb": errors}
    return _Consumer(client_config(settings, group) | own | dict(config or {}), errors)


def producer(
    settings: KafkaSettings,
    name: str,
    *,
    config: Mapping[str, Any] | None = None,
    on_fatal: OnFatal | None = None,
) -> Producer:
    """Return an idempotent producer with acks=all for the process ``name``; ``config`` changes settings."""
    own = {
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",  # the same partition for a key as Java clients
        "compression.type": "lz4",
        "linger.ms": 5,
    }
    errors = Errors(name, on_fatal, logged=True)
    return Producer(_watched(settings, name, "producer", errors) | own | dict(config or {}))


def admin(settings: KafkaSettings, name: str, *, on_fatal: OnFatal | None = None) -> AdminClient:
    """Return an admin client for the process ``name``. Its calls raise errors, so errors are not logged.

    ``on_fatal`` is called only during :func:`metadata`, because nothing else polls an admin client.
    """
    errors = Errors(name, on_fatal, logged=False)
    return _Admin(client_config(settings, name) | {"log_level": 2, "error_cb": errors}, errors)


def metadata(client: Any, topic: str | None = None, *, timeout_s: float) -> Any:
    """Return the cluster's metadata of all topics, or of ``topic``, as confluent-kafka's ClusterMetadata.

    ``client`` is one of :func:`admin` or :func:`reader`.

    Raises:
        DependencyUnavailable: the brokers refuse the login; detected after about a second, whatever ``timeout_s`` is.
        KafkaException: no response within ``timeout_s`` seconds.

    """
    first = min(_FIRST_ATTEMPT_S, timeout_s)
    for wait in (first, max(timeout_s - first, first)):
        try:
            return client.list_topics(topic, timeout=wait) if topic else client.list_topics(timeout=wait)
        except KafkaException as error:
            last = error
            client.poll(0)  # serves the error callback
            if client.errors.refusal:
                raise DependencyUnavailable("Kafka", client.errors.refusal) from error
    raise last


def client_config(settings: KafkaSettings, name: str) -> dict[str, Any]:
    """Return the librdkafka settings that all clients of the process ``name`` share."""
    config: dict[str, Any] = {
        "bootstrap.servers": settings.kafka_bootstrap,
        "client.id": f"leadstream-{name}",
        "security.protocol": settings.kafka_security_protocol,
        "socket.nagle.disable": True,
    }
    return config | _tls(settings) | _sasl(settings)


def addresses(settings: KafkaSettings) -> list[str]:
    """Return the bootstrap servers as a list of host:port."""
    return [server.strip() for server in settings.kafka_bootstrap.split(",") if server.strip()]


def tls_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """Return the TLS settings for a client that does not use librdkafka (aiokafka); None if TLS is off."""
    if not settings.kafka_uses_tls:
        return None
    context = ssl.create_default_context(cafile=settings.kafka_ssl_ca)
    if settings.kafka_ssl_certificate is not None:
        password = settings.kafka_ssl_key_password
        context.load_cert_chain(
            settings.kafka_ssl_certificate,
            settings.kafka_ssl_key,
            password.get_secret_value() if password is not None else None,
        )
    return context


def _watched(settings: KafkaSettings, name: str, kind: str, errors: Errors) -> dict[str, Any]:
    statistics = {"statistics.interval.ms": _STATISTICS_MS, "stats_cb": Statistics(name, kind)}
    return client_config(settings, name) | {"error_cb": errors} | statistics


def _tls(settings: KafkaSettings) -> dict[str, Any]:
    if not settings.kafka_uses_tls:
        return {}
    password = settings.kafka_ssl_key_password
    files = {
        "ssl.ca.location": settings.kafka_ssl_ca,
        "ssl.certificate.location": settings.kafka_ssl_certificate,
        "ssl.key.location": settings.kafka_ssl_key,
    }
    verified = {"enable.ssl.certificate.verification": True, "ssl.endpoint.identification.algorithm": "https"}
    key = {"ssl.key.password": password.get_secret_value()} if password is not None else {}
    return verified | {name: str(file) for name, file in files.items() if file is not None} | key


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    mechanism = settings.kafka_sasl_mechanism
    if mechanism is None:
        return {}
    if mechanism != "OAUTHBEARER":
        password = settings.kafka_sasl_password
        return {
            "sasl.mechanism": mechanism,
            "sasl.username": settings.kafka_sasl_username,
            "sasl.password": password.get_secret_value() if password is not None else "",
        }
    secret = settings.kafka_oauth_client_secret
    scope = {"sasl.oauthbearer.scope": settings.kafka_oauth_scope} if settings.kafka_oauth_scope else {}
    return {
        "sasl.mechanism": mechanism,
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": settings.kafka_oauth_token_url,
        "sasl.oauthbearer.client.id": settings.kafka_oauth_client_id,
        "sasl.oauthbearer.client.secret": secret.get_secret_value() if secret is not None else "",
    } | scope
