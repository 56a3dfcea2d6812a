"""Runs one enrichment worker: ``python -m streams.enrichment``. A worker without a partition of the topic is idle."""

from infra.runtime import run
from streams.enrichment.app import main

run(main, "enrichment")
