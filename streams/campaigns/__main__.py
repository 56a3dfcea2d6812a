"""Runs the campaigns stage as a process: ``python -m streams.campaigns``."""

from infra.runtime import run
from streams.campaigns.app import main
from streams.campaigns.evaluate import STAGE

if __name__ == "__main__":
    run(main, STAGE)
