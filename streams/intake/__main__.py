"""``python -m streams.intake``: one intake worker; start as many as the topic has partitions."""

from infra.runtime import run
from streams.intake.app import main

if __name__ == "__main__":
    run(main, "intake")
