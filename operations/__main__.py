"""Runs the daily job as a process: ``python -m operations``."""

from infra.runtime import run
from operations.app import main
from operations.maintenance import STAGE

if __name__ == "__main__":
    run(main, STAGE)
