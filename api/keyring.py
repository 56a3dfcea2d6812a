"""The active API keys in memory, so that no request waits for Postgres.

Guarantees:

- A request with an active key waits for nothing. The keys are read again every second, so a revoked key is refused
  within 5 s by every instance.
- While Postgres is unavailable, the keys of the last read are used for ``stale_s`` seconds; no key can be revoked in
  that time either, unless only this instance does not reach Postgres. After it every request gets status 503.
- A key that is not in memory is looked up: at most 50 queries a second, each for up to 500 keys. What is remembered of
  unknown keys is bounded, so a flood of random keys fills neither the memory nor Postgres.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from api.errors import Refusal
from infra.clock import DAY_US, Clock, now_us
from infra.errors import DependencyUnavailable
from infra.keys import ApiKey
from infra.runtime import log

_READ_EVERY_S = 1.0
_QUERY_S = 2.0  # maximum duration of a query
_MAX_KEYS = 10_000  # in memory
_MAX_WAITING = 2_000  # keys that are looked up
_MAX_PER_QUERY = 500
_QUERY_EVERY_S = 0.02
_MAX_ABSENT = 10_000
_ABSENT_S = 2.0

Read = ApiKey | None | DependencyUnavailable


class KeySource(Protocol):
    """Where keys are stored: :class:`infra.postgres.keys_table.KeysTable`."""

    async def active(self, limit: int) -> dict[bytes, ApiKey]:
        """Return the active keys by digest, at most ``limit``."""
        ...

    async def find(self, digests: Sequence[bytes]) -> Mapping[bytes, ApiKey]:
        """Return those of ``digests`` that belong to an active key."""
        ...

    async def note_used(self, ids: Sequence[str]) -> None:
        """Store that keys were used today."""
        ...


class KeyRing:
    """The active keys of ``source``; :meth:`run` keeps them up to date. ``stale_s``: see the module's guarantees."""

    def __init__(
        self,
        source: KeySource,
        *,
        stale_s: float,
        now: Clock = now_us,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._stale_s = stale_s
        self._now = now
        self._clock = clock
        self._known: dict[bytes, ApiKey] = {}
        self._valid_until = float("-inf")
        self._used: set[str] = set()
        self._noted: tuple[int, set[str]] = (0, set())  # day, and the keys whose use on it is stored
        self._absent: dict[bytes, float] = {}  # digest -> until when it is not looked up; in the order of the times
        self._asked: dict[bytes, asyncio.Future[Read]] = {}
        self._wake = asyncio.Event()
        self._unavailable = "the keys were not read yet"

    @property
    def unavailable(self) -> str:
        """Why requests are refused with status 503; "" if they are not."""
        return "" if self._clock() <= self._valid_until else f"waiting for Postgres: {self._unavailable}"

    def get(self, digest: bytes) -> ApiKey | None:
        """Return the key with this digest if it is in memory and valid."""
        key = self._known.get(digest)
        if key is None or key.expires_at <= self._now() or self._clock() > self._valid_until:
            return None
        self._used.add(key.id)
        return key

    async def find(self, digest: bytes) -> ApiKey | None:
        """Look up a key that :meth:`get` does not return; None: there is no active key with this digest.

        Raises:
            Refusal: ``keys_unavailable``: Postgres is unavailable; ``overloaded``: too many unknown keys are looked up.

        """
        if self._absent.get(digest, float("-inf")) > self._clock():
            return None
        asked = self._asked.get(digest)
        if asked is None:
            if len(self._asked) >= _MAX_WAITING:
                raise Refusal("overloaded", "too many unknown keys are being looked up")
            asked = self._asked[digest] = asyncio.get_running_loop().create_future()
            self._wake.set()
        found = await asyncio.shield(asked)
        if isinstance(found, DependencyUnavailable):
            raise Refusal("keys_unavailable", "keys cannot be checked now: Postgres is unavailable")
        if found is not None:
            self._used.add(found.id)
        return found

    async def run(self) -> None:
        """Read the keys, and look up unknown ones, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_repeatedly())
            tasks.create_task(self._look_up_repeatedly())

    async def read(self) -> None:
        """Read all active keys, and store which keys were used since the last read.

        Raises:
            DependencyUnavailable: Postgres is unavailable; the keys of the last read stay.

        """
        began = self._clock()  # what is read is at least as new as this moment
        try:
            async with asyncio.timeout(_QUERY_S):
                self._known = await self._source.active(_MAX_KEYS)
                self._valid_until = began + self._stale_s
                await self._note_used()
        except TimeoutError as error:
            raise DependencyUnavailable("Postgres", f"no response within {_QUERY_S:g} s") from error

    async def _note_used(self) -> None:
        day = self._now() // DAY_US
        if self._noted[0] != day:
            self._noted = (day, set())
        used, self._used = self._used, set()
        if new := used - self._noted[1]:
            await self._source.note_used(sorted(new))
            self._noted[1].update(new)

    async def _read_repeatedly(self) -> None:
        failed = False
        while True:
            try:
                await self.read()
            except DependencyUnavailable as error:
                self._unavailable = str(error)
                if not failed:
                    log("api").warning("keys cannot be read", extra={"fields": {"reason": str(error)}})
                failed = True
            else:
                if failed:
                    log("api").warning("keys can be read again")
                failed = False
            await asyncio.sleep(_READ_EVERY_S)

    async def _look_up_repeatedly(self) -> None:
        while True:
            await self._wake.wait()
            await self.look_up()
            if not self._asked:
                self._wake.clear()
            await asyncio.sleep(_QUERY_EVERY_S)

    async def look_up(self) -> None:
        """Look up the keys that requests wait for, at most 500, in one query."""
        digests = list(self._asked)[:_MAX_PER_QUERY]
        failure: DependencyUnavailable | None = None
        found: Mapping[bytes, ApiKey] = {}
        try:
            async with asyncio.timeout(_QUERY_S):
                found = await self._source.find(digests)
        except TimeoutError:
            failure = DependencyUnavailable("Postgres", f"no response within {_QUERY_S:g} s")
        except DependencyUnavailable as error:
            failure = error
        for digest in digests:
            key = found.get(digest)
            if key is None and failure is None:
                self._remember_absent(digest)
            self._asked.pop(digest).set_result(failure or key)

    def _remember_absent(self, digest: bytes) -> None:
        if len(self._absent) >= _MAX_ABSENT:
            del self._absent[next(iter(self._absent))]
        self._absent.pop(digest, None)
        self._absent[digest] = self._clock() + _ABSENT_S
