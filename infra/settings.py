"""Settings: the only reader of the environment.

Every setting is an environment variable that starts with ``LEADSTREAM_``. If a variable is not set, its value is read
from ``stack.env`` in the state folder of a running embedded stack, so that ``leadstream lag`` finds the stack that
``leadstream up`` started; else the default applies. A connector defines its own settings as a pydantic model in its
file and gets them from :func:`Settings.section`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator

from infra.kafka_settings import KafkaSettings

PREFIX = "LEADSTREAM_"
_SHIPPED = Path(__file__).parents[1] / "campaigns"
# A connector's own settings: LEADSTREAM_CRM_HUBSPOT_TOKEN belongs to the section "crm_hubspot".
SECTIONS = ("PROVIDER_", "CRM_", "CHANNEL_", "ENRICHMENT_")

_MB = 1 << 20
_KEY_CHARACTERS = 32
# Of memory_mb: at most five batches are in memory, and a record as Python objects is several times larger.
_BATCH_SHARE = 32
# As browsers send it: lower case, no default port. IPv6 addresses are in brackets.
_ORIGIN = re.compile(
    r"(?!http://[^/]*:80$)(?!https://[^/]*:443$)[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?"
)

Section = TypeVar("Section", bound=BaseModel)


class SettingsError(Exception):
    """One or more settings are invalid; the message names each of them and what is wrong."""


class Settings(KafkaSettings):
    """All settings except those of connectors. Frozen: read once at start, then passed on.

    The connection settings of Kafka (TLS, SASL) are in infra/kafka_settings.py.
    """

    home: Path = Field(Path(".leadstream"), description="State folder: holds all data of an embedded stack.")

    kafka_flush: bool = Field(
        False,
        description="Whether an embedded broker writes each record to disk before it acknowledges it. Without it an "
        "accepted event survives the end of any process, SIGKILL of the broker included, but not a power cut.",
    )
    schema_registry_url: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        repr=False,
        description="URL of a Confluent-compatible registry for schema ids of other producers. Empty: none.",
    )
    database_url: str = Field(
        "postgresql://leadstream@127.0.0.1:5432/leadstream",
        pattern=r"^postgres(ql)?://",
        repr=False,
        description="Address of Postgres: postgresql://user:password@host:port/database; ?sslmode=verify-full for TLS.",
    )
    database_pool_size: int = Field(
        4, ge=1, le=100, description="Maximum number of Postgres connections of one process, opened on demand."
    )
    clickhouse_url: str = Field(
        "http://127.0.0.1:8123/leadstream",
        pattern=r"^https?://",
        repr=False,
        description="Address of ClickHouse over HTTP: http://user:password@host:port/database; https:// for TLS.",
    )
    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        pattern=r"^(redis|rediss|unix)://",
        repr=False,
        description="Address of Redis: redis://user:password@host:port/database; rediss:// for TLS.",
    )

    api_host: str = Field("127.0.0.1", description="Address that the API and the workers' health pages listen on.")
    api_port: int = Field(8080, ge=0, le=65535, description="TCP port of the API. 0: any free port.")
    cors_origins: str = Field(
        "",
        description="Origins whose web pages may send events, separated by commas, such as "
        "https://www.example.com,https://shop.example.com; *: all. Only their pages may send text/plain, as "
        "navigator.sendBeacon does. Empty: none.",
    )
    health_port: int = Field(
        0, ge=0, le=65535, description="TCP port of a worker's /live, /ready and /metrics. 0: not served."
    )

    instance: str = Field(
        "",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Unique name of this replica, stable across restarts (static group membership): after a restart "
        "it is assigned the same partitions without waiting for the session timeout. Empty: dynamic membership.",
    )
    batch_size: int = Field(
        10_000,
        ge=1,
        le=100_000,
        description="Maximum number of records in a batch (one Postgres transaction).",
    )
    batch_linger_ms: int = Field(
        40,
        ge=0,
        le=10_000,
        description="Maximum time to fill a batch, in milliseconds. Higher: fewer and larger batches.",
    )
    sink_batch_size: int = Field(
        50_000, ge=1, le=1_000_000, description="Maximum number of records in one batch of the ClickHouse sink."
    )
    sink_batch_linger_ms: int = Field(
        500, ge=0, le=60_000, description="Maximum time to fill a batch of the ClickHouse sink, in milliseconds."
    )
    memory_mb: int = Field(
        512,
        ge=256,
        le=65_536,
        description="Memory that one worker may use, in MB: it limits the bytes of batches, transactions and queues.",
    )
    dedupe_days: int = Field(
        90,
        ge=1,
        le=3650,
        description="Days after its acceptance in which an event that is sent again is a duplicate.",
    )
    suppression_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the hashes of erased identities, at least 32 random characters. Never change or lose it: "
        "without it, erased people are not recognised any more. Empty: a key that is made once and kept in Postgres.",
    )
    max_event_bytes: int = Field(
        262_144,
        ge=1024,
        le=4_194_304,
        description="Maximum size of an event, in bytes. A larger one is a dead letter.",
    )
    max_clock_ahead_s: int = Field(
        86_400,
        ge=0,
        description="Maximum time that occurred_at may be in the future, in seconds. A later event is a dead letter.",
    )
    shutdown_s: float = Field(
        15.0, gt=0, le=300, description="Maximum time at shutdown for started work to finish, in seconds."
    )

    campaigns_dir: Path = Field(
        default_factory=lambda: _SHIPPED if not (here := Path("campaigns")).is_dir() else here,
        description="Folder of the campaign files (*.yaml). Default: ./campaigns if it exists, else the examples.",
    )

    log_level: str = Field(
        "INFO",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="Minimum level of log lines: DEBUG, INFO, WARNING or ERROR.",
    )
    otlp_endpoint: str = Field(
        "", description="Base URL of the OpenTelemetry collector for traces (OTLP over HTTP). Empty: no traces."
    )

    _sections: Mapping[str, str] = {}

    @property
    def batch_bytes(self) -> int:
        """Maximum bytes of a batch's records, and of the records about one transaction."""
        return self.memory_mb * _MB // _BATCH_SHARE

    @field_validator("suppression_key")
    @classmethod
    def _check_suppression_key(cls, value: SecretStr) -> SecretStr:
        if 0 < len(value.get_secret_value()) < _KEY_CHARACTERS:
            raise ValueError(f"is too short: use at least {_KEY_CHARACTERS} random characters (openssl rand -hex 32)")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in _words(value):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin: write scheme://host or scheme://host:port in lower case, without a "
                    "path, a final slash or a default port; a host is in ASCII (punycode); or * for all"
                )
        return value

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """The origins of LEADSTREAM_CORS_ORIGINS."""
        return tuple(_words(self.cors_origins))

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from the environment (``environ`` in tests) and from the file of a running stack.

        Raises:
            SettingsError: a setting is unknown or invalid; the message names each of them.

        """
        found = dict(os.environ if environ is None else environ)
        home = Path(found.get(PREFIX + "HOME", str(cls.model_fields["home"].default)))
        merged = _stack_file(home / "stack.env") | {k: v for k, v in found.items() if k.startswith(PREFIX)}
        own: dict[str, str] = {}
        sections: dict[str, str] = {}
        wrong: list[str] = []
        for key, value in merged.items():
            name = key.removeprefix(PREFIX)
            if name.startswith(SECTIONS):
                sections[name] = value
            elif name.lower() in cls.model_fields:
                own[name.lower()] = value
            else:
                wrong.append(f"{key}: no such setting")
        try:
            settings = cls.model_validate(own)
        except ValidationError as error:
            wrong += _explain(error, PREFIX)
        if wrong:
            raise SettingsError("Wrong settings:\n  " + "\n  ".join(sorted(wrong)))
        object.__setattr__(settings, "_sections", sections)
        return settings

    def configured(self, name: str) -> bool:
        """Return whether any setting of the connector section ``name`` (such as ``crm_hubspot``) is set."""
        return any(key.startswith(name.upper() + "_") for key in self._sections)

    def section(self, name: str, model: type[Section]) -> Section:
        """Return the connector settings ``LEADSTREAM_<NAME>_*`` as ``model`` (``name`` such as ``crm_hubspot``).

        Raises:
            SettingsError: a setting is unknown, missing or invalid; the message names each of them.

        """
        prefix = name.upper() + "_"
        values = {k.removeprefix(prefix).lower(): v for k, v in self._sections.items() if k.startswith(prefix)}
        unknown = [f"{PREFIX}{prefix}{key.upper()}: no such setting" for key in values if key not in model.model_fields]
        try:
            section = model.model_validate({k: v for k, v in values.items() if k in model.model_fields})
        except ValidationError as error:
            unknown += _explain(error, PREFIX + prefix)
        if unknown:
            raise SettingsError("Wrong settings:\n  " + "\n  ".join(sorted(unknown)))
        return section


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def child_environment(changes: Mapping[str, str], *, inherit: bool = True) -> dict[str, str]:
    """Return this process's environment plus ``changes`` for a child; without ``inherit`` its settings are left out."""
    kept = {key: value for key, value in os.environ.items() if inherit or not key.startswith(PREFIX)}
    return kept | dict(changes)


def exempt_loopback_from_proxies() -> None:
    """Make this process and its children connect to 127.0.0.1 without a proxy, also if HTTP_PROXY is set."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))


def _stack_file(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except PermissionError:
        raise SettingsError(
            f"{path} belongs to another user's stack: run this as that user, or set LEADSTREAM_HOME to another folder"
        ) from None
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key: value for key, value in pairs}  # noqa: C416 - a pair is a list here, dict() would not type


def _explain(error: ValidationError, prefix: str) -> list[str]:
    # Without the value, which may be a secret.
    wrong: list[str] = []
    for each in error.errors(include_input=False):
        message = each["msg"].removeprefix("Value error, ")
        if each["loc"]:
            wrong.append(f"{prefix}{'_'.join(map(str, each['loc'])).upper()}: {message}")
        else:  # of a combination of settings: each line names one
            wrong += message.splitlines()
    return wrong
