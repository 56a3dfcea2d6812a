"""Evaluates a campaign signal: finds the campaigns that it triggers and emits their message requests.

Guarantees: a redelivered signal emits requests with the same ``message_id``, and the sink delivers each ``message_id``
once. The id is a hash of tenant, campaign, step and lead, and with ``once_per: event`` of the event. So with
``once_per: lead`` a second event of the lead has no effect, either. For leads that were merged since, the sink also
compares their former ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

import orjson

from infra import metrics
from infra.clock import Clock
from infra.kafka.dead_letters import dead_letter
from infra.kafka.outcome_records import OutcomeRecords
from infra.kafka.producer import Output
from infra.kafka.sizes import fits
from infra.outcomes import Dead, Problem, Reason, What
from infra.runtime import log
from schemas.codec import Codec, DecodeError
from streams.campaigns.catalog import CampaignSet
from streams.campaigns.templates import RenderError, Templates
from streams.campaigns.triggers import Campaign, Signal, matches, parse_signal
from streams.faust.ordered import Record

STAGE = "campaigns"
TOPIC = "leads.campaign-signals"
RECORD = "campaign_signal"
REQUESTS = "leads.messages-requested"
_HOUR_US = 3_600_000_000
_STEP = "1"  # a campaign has one step
# Channel -> field of the lead with the recipient's address. The other channels have a fixed recipient.
ADDRESS_FIELDS = {"email": "email"}

_Decision = tuple[What, Reason | None]


class Evaluator:
    """The handler of the campaigns stage. ``current`` returns the campaigns of a tenant; it is called once per record.

    If it returns Dead, the signal is a dead letter.
    """

    def __init__(self, current: Callable[[str], CampaignSet | Dead], codec: Codec, clock: Clock) -> None:
        self._current = current
        self._codec = codec
        self._request = codec.encoder("message_request")
        self._outcomes = OutcomeRecords(STAGE, codec.encoder("outcome"), clock)
        self._clock = clock

    async def __call__(self, record: Record) -> Sequence[Output]:
        """Return the message requests and outcomes of one signal, or a dead letter; has no side effects but metrics."""
        try:
            signal = self._read(record.value() or b"")
        except DecodeError as error:
            return [self._dead(record, error.dead)]
        except ValueError as error:
            return [self._dead(record, Dead(Reason.NOT_JSON, (Problem("", str(error)),)))]
        current = self._current(signal.tenant)
        if isinstance(current, Dead):
            return [self._dead(record, current)]
        outputs: list[Output] = []
        decided: dict[_Decision, list[str]] = {}
        for campaign in current.campaigns:
            if matches(campaign, signal):
                decision = self._decide(campaign, current.templates, signal, outputs)
                decided.setdefault(decision, []).append(campaign.name)
        # One outcome for each decision, not for each campaign: the table outcomes keeps one row per record and verb.
        outputs += [self._outcome(record, signal, *decision, names) for decision, names in decided.items()]
        return outputs

    def _read(self, payload: bytes) -> Signal:
        decoded = self._codec.decode(payload)
        if decoded.type != RECORD:
            message = f"this topic is for records of type {RECORD}, not {decoded.type}"
            raise DecodeError(Reason.UNKNOWN_EVENT_TYPE, message)
        return parse_signal(decoded.record)

    def _decide(self, campaign: Campaign, templates: Templates, signal: Signal, outputs: list[Output]) -> _Decision:
        lead = signal.lead
        if signal.occurred_at < self._clock() - campaign.max_age_hours * _HOUR_US:
            return What.SKIPPED, Reason.EXPIRED
        if not campaign.consent.allows(lead["consent"]):
            return What.SKIPPED, Reason.NO_CONSENT
        channel = campaign.step.channel
        address = lead[ADDRESS_FIELDS[channel]] if channel in ADDRESS_FIELDS else ""
        if channel in ADDRESS_FIELDS and not address:
            return What.SKIPPED, Reason.NO_ADDRESS
        try:
            rendered = templates.render(campaign, signal)
        except RenderError as error:
            fields = {"campaign": campaign.name, "event_id": signal.event_id, "error": str(error)}
            log(STAGE).error("a template cannot be rendered; no message is requested", extra={"fields": fields})
            return What.SKIPPED, Reason.UNRENDERABLE
        request = {
            "message_id": message_id(campaign, signal),
            "tenant": signal.tenant,
            "lead_id": lead["lead_id"],
            "event_id": signal.event_id,
            "campaign": campaign.name,
            "channel": channel,
            "requested_at": self._clock(),
            "to": address,
            "sender": campaign.step.sender,
            "purpose": campaign.consent.purpose,
            "once_per": campaign.once_per,
            "subject": rendered.subject,
            "body": rendered.body,
        }
        output = Output(REQUESTS, lead["lead_id"].encode(), self._request(request))
        if not fits(output):
            return What.SKIPPED, Reason.TOO_LARGE
        outputs.append(output)
        return What.TRIGGERED, None

    def _outcome(
        self, record: Record, signal: Signal, what: What, reason: Reason | None, campaigns: Sequence[str]
    ) -> Output:
        return self._outcomes.build(
            what,
            reason,
            tenant=signal.tenant,
            event_id=signal.event_id,
            lead_id=signal.lead["lead_id"],
            version=signal.lead["version"],
            source=(record.topic(), record.partition(), record.offset()),
            detail=", ".join(campaigns),
            count=len(campaigns),
        )

    def _dead(self, record: Record, dead: Dead) -> Output:
        metrics.OUTCOMES.labels(STAGE, What.DEAD.value, dead.reason.value).inc()
        return dead_letter(record, STAGE, dead)


def message_id(campaign: Campaign, signal: Signal) -> str:
    """Return the idempotency key of a campaign's message about ``signal``: 32 hexadecimal digits."""
    parts = [signal.tenant, campaign.name, _STEP, signal.lead["lead_id"]]
    if campaign.once_per == "event":
        parts.append(signal.event_id)
    return blake2b(orjson.dumps(parts), digest_size=16).hexdigest()
