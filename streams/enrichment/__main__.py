"""``python -m streams.enrichment``: one enrichment worker; start as many as the topic has partitions."""

from infra.runtime import run
from streams.enrichment.app import main

run(main, "enrichment")
