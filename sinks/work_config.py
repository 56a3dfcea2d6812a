"""Settings that CRM sync and message delivery share, and the rule between them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class WorkConfig(BaseModel):
    """Base of the settings of a sink that works on leased rows. Subclasses define ``timeout_s`` before ``lease_s``."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("lease_s", check_fields=False)
    @classmethod
    def _covers_a_call(cls, lease_s: float, others: ValidationInfo) -> float:
        timeout_s = others.data.get("timeout_s")  # missing if it is invalid itself
        if timeout_s is not None and timeout_s > lease_s / 2:
            raise ValueError(
                f"{lease_s:g} s is too short for a timeout_s of {timeout_s:g} s: a call is cancelled after half of the "
                "lease. Set lease_s to at least twice timeout_s"
            )
        return lease_s
