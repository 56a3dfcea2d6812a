"""Settings of the limits of one worker: its batches, its memory, the events that it accepts, its end."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from infra.kafka_settings import KafkaSettings

_MB = 1 << 20
_KEY_CHARACTERS = 32
# Of memory_mb: at most five batches are in memory, and a record as Python objects is several times larger.
_BATCH_SHARE = 32


class WorkerSettings(KafkaSettings):
    """The settings of a worker's limits, and of its connection to Kafka. Frozen."""

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
