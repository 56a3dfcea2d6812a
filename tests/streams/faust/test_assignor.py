"""A group whose leader has no metadata of the topic must not stay without partitions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
from types import SimpleNamespace
from streams.faust.consumer import Assignor

partitions = {partitions}
cluster = SimpleNamespace(partitions_for_topic=lambda _: partitions)
member = SimpleNamespace(subscription=["leads.campaign-signals"])
assigned = Assignor.assign(cluster, {{"member": member}})
print(assigned["member"].assignment)
"""


@pytest.mark.parametrize(("partitions", "code"), [("{0, 1}", 0), ("None", 70)])
def test_without_metadata_the_process_ends_to_be_restarted(partitions: str, code: int) -> None:
    program = PROGRAM.format(partitions=partitions)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    assert (b"leads.campaign-signals" in done.stdout) is (code == 0)
