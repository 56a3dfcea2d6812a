"""Users of the broker and what each may do: SCRAM logins and ACLs, for a broker with an authorizer.

- ``pipeline``: the processes of leadstream and trusted services; may do everything with the topics ``leads.*``
- ``schema-registry``: Confluent's registry; its own topic
- ``tenant-<tenant>``: a tenant's own producers; may write to ``leads.received.<tenant>`` and to nothing else

Guarantees: a repeated call ends in the same state. Nothing is revoked.

Source: https://kafka.apache.org/documentation/#security_authz (operations of each request).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from infra.errors import DependencyUnavailable
from infra.kafka.client import admin as admin_client
from infra.kafka.received import topic_of
from infra.kafka.topics import TopicsError
from infra.kafka_settings import KafkaSettings

PIPELINE, REGISTRY = "pipeline", "schema-registry"
_ITERATIONS = 8192
_EXPLAINED = {
    "CLUSTER_AUTHORIZATION_FAILED": "not authorized: this connection may not change users and ACLs",
    "SECURITY_DISABLED": "the broker has no authorizer: set its authorizer.class.name",
}
_REQUEST_S = 15.0
_All = AclOperation.ALL
# resource, name, whether the name is a prefix, operations
_Rule = tuple[ResourceType, str, bool, tuple[AclOperation, ...]]
_RULES: dict[str, tuple[_Rule, ...]] = {
    PIPELINE: (
        (ResourceType.TOPIC, "leads.", True, (_All,)),
        (ResourceType.GROUP, "*", False, (_All,)),
        (ResourceType.BROKER, "kafka-cluster", False, (AclOperation.DESCRIBE, AclOperation.IDEMPOTENT_WRITE)),
    ),
    REGISTRY: (
        (ResourceType.TOPIC, "_schemas", False, (_All,)),
        (ResourceType.TOPIC, "__consumer_offsets", False, (AclOperation.DESCRIBE,)),
        (ResourceType.GROUP, REGISTRY, False, (_All,)),
    ),
}


def secure(settings: KafkaSettings, passwords: Mapping[str, str]) -> None:
    """Create the users ``passwords`` (``pipeline``, ``schema-registry``) with their passwords and ACLs.

    Raises:
        DependencyUnavailable: Kafka is unavailable; call again.
        TopicsError: a user is none of these, or the broker rejects a change (no authorizer, not authorized).

    """
    if unknown := sorted(passwords.keys() - _RULES.keys()):
        raise TopicsError(f"no such user: {', '.join(unknown)}; there are: {', '.join(_RULES)}")
    admin = admin_client(settings, "access")
    for user, password in passwords.items():
        _set_password(admin, user, password)
        _allow(admin, user, _RULES[user])


def grant(settings: KafkaSettings, tenant: str) -> tuple[str, str]:
    """Create the user of a tenant's producers, or give it a new password; return its name and the password.

    Raises:
        DependencyUnavailable: Kafka is unavailable; call again.
        TopicsError: the broker rejects a change (no authorizer, not authorized).

    """
    user, password = f"tenant-{tenant}", secrets.token_urlsafe(24)
    admin = admin_client(settings, "access")
    _set_password(admin, user, password)
    _allow(admin, user, ((ResourceType.TOPIC, topic_of(tenant), False, (AclOperation.WRITE, AclOperation.DESCRIBE)),))
    return user, password


def _set_password(admin: AdminClient, user: str, password: str) -> None:
    credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _ITERATIONS)
    wanted = UserScramCredentialUpsertion(user, credential, password.encode())
    try:
        for future in admin.alter_user_scram_credentials([wanted], request_timeout=_REQUEST_S).values():
            future.result()
    except KafkaException as error:
        raise _classified(error, user) from error


def _allow(admin: AdminClient, user: str, rules: Iterable[_Rule]) -> None:
    bindings = [
        AclBinding(
            resource,
            name,
            ResourcePatternType.PREFIXED if is_prefix else ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for resource, name, is_prefix, operations in rules
        for operation in operations
    ]
    try:
        for future in admin.create_acls(bindings, request_timeout=_REQUEST_S).values():
            future.result()
    except KafkaException as error:
        raise _classified(error, user) from error


def _classified(error: KafkaException, user: str) -> Exception:
    cause = error.args[0]
    if cause.retriable() or cause.name().startswith("_"):  # names of librdkafka's own errors: no response
        return DependencyUnavailable("Kafka", cause.name())
    # Not the broker's text: it prints its request.
    return TopicsError(f"user {user}: {_EXPLAINED.get(cause.name(), cause.name())}")
