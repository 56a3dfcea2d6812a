"""Runs one enrichment worker: ``python -m streams.enrichment``. At most one worker a partition has work."""

from infra.runtime import run
from streams.enrichment.app import main

run(main, "enrichment")
