"""Campaigns' composition root: files and settings to the handler, on Faust."""

from __future__ import annotations

from infra.clock import now_us
from infra.kafka.producer import Deliverer
from infra.runtime import Stop
from infra.settings import Settings
from schemas.codec import Codec
from streams.campaigns.decide import STAGE, TOPIC, Decider
from streams.campaigns.templates import Templates, check
from streams.faust.agent import run_agent


async def main(settings: Settings, stop: Stop) -> None:
    """Run the campaigns of ``settings.campaigns_dir``, as they are now, until ``stop``.

    Raises:
        SettingsError: naming every problem of every campaign and template.

    """
    campaigns = check(settings.campaigns_dir)
    decider = Decider(list(campaigns.values()), Templates(settings.campaigns_dir), Codec(), now_us)
    deliverer = Deliverer(settings, STAGE, on_fatal=stop.fail)
    try:
        await run_agent(settings, stop, group=STAGE, topic=TOPIC, handler=decider, deliverer=deliverer)
    finally:
        await deliverer.close()
