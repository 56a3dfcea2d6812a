"""Runs one intake worker: ``python -m streams.intake``. A worker without a partition of the topic is idle."""

from infra.runtime import run
from streams.intake.app import main

if __name__ == "__main__":
    run(main, "intake")
