"""``make bench``: run all benchmarks, print their results and write them to ``bench/latest.json``.

``--only hop,intake`` runs only these benchmarks and writes no file; ``--runs`` is the number of runs of each (5).
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from bench import clickhouse, end_to_end, hop, intake, keys
from bench.result import Result, publish
from infra.kafka_settings import KafkaSettings
from infra.runtime import collect_garbage_rarely
from infra.settings import Settings
from local.attached import AttachedStack

_GROUPS = ("hop", "intake", "clickhouse", "keys", "end_to_end")


def main() -> None:
    """Run the benchmarks that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument(
        "--only", default=",".join(_GROUPS), help="benchmarks to run, separated by commas (%(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each benchmark (%(default)s)")
    options = parser.parse_args()
    wanted = options.only.split(",")
    home = Path(tempfile.mkdtemp(prefix="leadstream-bench-"))
    results: list[Result] = []
    collect_garbage_rarely()  # as every worker does
    try:
        if "keys" in wanted:
            results += keys.measure(options.runs)
        if set(wanted) == {"keys"}:  # needs no stack
            publish(results, write=False)
            return
        with AttachedStack(home / "parts", "--no-pipeline") as stack:
            state = stack.state
            if "hop" in wanted:
                results += hop.measure(KafkaSettings(kafka_bootstrap=state["kafka"]["bootstrap"]), home, options.runs)
            if "intake" in wanted:
                results += intake.measure(state["postgres"]["dsn"], home, Settings.load().batch_size, options.runs)
            if "clickhouse" in wanted:
                results += clickhouse.measure(state["clickhouse"]["url"], options.runs)
        if "end_to_end" in wanted:
            with AttachedStack(home / "whole") as stack:
                results += end_to_end.measure(stack.state, options.runs)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    publish(results, write=set(wanted) == set(_GROUPS))


if __name__ == "__main__":
    main()
