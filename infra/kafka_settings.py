"""Settings of the connection to Kafka (addresses, TLS, SASL), validated as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

_PREFIX = "LEADSTREAM_"
_TLS = ("SSL", "SASL_SSL")
_SASL = ("SASL_PLAINTEXT", "SASL_SSL")
_PASSWORD_FIELDS = ("kafka_sasl_username", "kafka_sasl_password")
_OAUTH_FIELDS = ("kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret")
_FILES = ("kafka_ssl_ca", "kafka_ssl_certificate", "kafka_ssl_key")


class KafkaSettings(BaseModel):
    """The settings that :mod:`infra.kafka.client` needs to create a client. Frozen.

    :class:`infra.settings.Settings` is a subclass: pass it wherever a KafkaSettings is expected.

    Guarantees: a combination that cannot work, such as SASL without a user name, is a validation error. Neither
    ``repr`` nor a validation error contains a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kafka_bootstrap: str = Field(
        "127.0.0.1:9092",
        min_length=3,
        description="Kafka brokers for the first connection: host:port, separated by commas.",
    )
    kafka_replication: int = Field(
        0,
        ge=0,
        le=32,
        description="Replicas of each topic that `leadstream topics apply` creates; 3 survives the loss of one broker "
        "with its disk. 0: the broker's default.replication.factor.",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Protection of connections to Kafka: SSL is TLS, SASL adds authentication."
    )
    kafka_ssl_ca: Path | None = Field(
        None,
        description="PEM file of the authorities that brokers' certificates are checked against. Unset: the system's.",
    )
    kafka_ssl_certificate: Path | None = Field(
        None, description="PEM file of the client's certificate, for brokers that require one."
    )
    kafka_ssl_key: Path | None = Field(None, description="PEM file of the private key of the client's certificate.")
    kafka_ssl_key_password: SecretStr | None = Field(
        None, description="Password of the client's private key. Unset: the key is not encrypted."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="SASL mechanism. Required with SASL_PLAINTEXT and SASL_SSL."
    )
    kafka_sasl_username: str = Field("", description="User name of a PLAIN or SCRAM login.")
    kafka_sasl_password: SecretStr | None = Field(None, description="Password of a PLAIN or SCRAM login.")
    kafka_oauth_token_url: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Token endpoint of an OAUTHBEARER login (OAuth 2.0, grant client_credentials).",
    )
    kafka_oauth_client_id: str = Field("", description="Client id that is sent to the token endpoint.")
    kafka_oauth_client_secret: SecretStr | None = Field(
        None, description="Client secret that is sent to the token endpoint."
    )
    kafka_oauth_scope: str = Field(
        "", description="Scope of the requested token. Empty: the default of the token endpoint."
    )

    @property
    def kafka_uses_tls(self) -> bool:
        """Whether connections to the brokers are encrypted."""
        return self.kafka_security_protocol in _TLS

    @model_validator(mode="after")
    def _combination_works(self) -> Self:
        if wrong := [*self._missing(), *self._unused(), *self._not_files()]:
            raise ValueError("\n".join(wrong))
        return self

    def _missing(self) -> Iterator[str]:
        sasl, mechanism = self.kafka_security_protocol in _SASL, self.kafka_sasl_mechanism
        if sasl and mechanism is None:
            yield f"{_name('kafka_sasl_mechanism')}: missing, required by {self.kafka_security_protocol}"
        needed = (
            () if not sasl or mechanism is None else _OAUTH_FIELDS if mechanism == "OAUTHBEARER" else _PASSWORD_FIELDS
        )
        for field in needed:
            if not self._is_set(field):
                yield f"{_name(field)}: missing, required by {mechanism}"
        if self.kafka_ssl_certificate and not self.kafka_ssl_key:
            yield f"{_name('kafka_ssl_key')}: missing, required by {_name('kafka_ssl_certificate')}"
        if self.kafka_ssl_key and not self.kafka_ssl_certificate:
            yield f"{_name('kafka_ssl_certificate')}: missing, required by {_name('kafka_ssl_key')}"

    def _unused(self) -> Iterator[str]:
        """Name settings without effect, since a user who set them believes that connections are protected."""
        if self.kafka_security_protocol not in _SASL:
            for field in ("kafka_sasl_mechanism", *_PASSWORD_FIELDS, *_OAUTH_FIELDS):
                if self._is_set(field):
                    yield f"{_name(field)}: no effect with {self.kafka_security_protocol}, {_USE} SASL_SSL"
        if not self.kafka_uses_tls:
            for field in _FILES:
                if self._is_set(field):
                    yield f"{_name(field)}: no effect with {self.kafka_security_protocol}, {_USE} SSL or SASL_SSL"

    def _not_files(self) -> Iterator[str]:
        for field in _FILES:
            file: Path | None = getattr(self, field)
            if file is not None and not file.is_file():
                yield f"{_name(field)}: there is no file {file}"

    def _is_set(self, field: str) -> bool:
        value = getattr(self, field)
        return bool(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _name(field: str) -> str:
    return _PREFIX + field.upper()


_USE = f"set {_name('kafka_security_protocol')} to"
