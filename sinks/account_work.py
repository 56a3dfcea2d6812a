"""Runs one task for each account: started, restarted and stopped when the tenant files change."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from infra.errors import first_error
from infra.runtime import Stop, log
from sinks.accounts import Account

Work = Callable[[Account[Any], Stop], Awaitable[None]]


class AccountWork:
    """The tasks of the accounts of ``current``.

    ``work`` uses one account until its ``Stop``. An account whose settings changed is stopped before it starts again;
    the others go on. A failure of one is a defect and ends all: what may be expected of an account, such as a rejected
    token, is its pause.
    """

    def __init__(self, stage: str, current: Callable[[], Mapping[str, Account[Any]]], work: Work) -> None:
        self._log = log(stage)
        self._current = current
        self._work = work
        self._wanted: dict[str, Account[Any]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    async def apply(self) -> None:
        """Make the running tasks match the accounts of ``current``."""
        self._wanted = dict(self._current())
        self._changed.set()

    async def run(self, stop: Stop) -> None:
        """Run until ``stop``, then until every account has stopped."""
        try:
            async with asyncio.TaskGroup() as group:
                await self.apply()
                while not stop.requested:
                    self._changed.clear()
                    for scope in self._wanted.keys() - self._tasks.keys():
                        self._tasks[scope] = group.create_task(self._run(scope, stop))
                    await self._until_change(stop)
        except BaseExceptionGroup as errors:
            failed = first_error(errors)
        else:
            return
        raise failed  # outside the handler: the group must not become its context

    async def _run(self, scope: str, stop: Stop) -> None:
        """Run the account of ``scope`` with its settings of each time, until it is not wanted any more."""
        try:
            while not stop.requested and (account := self._wanted.get(scope)) is not None:
                self._log.info("account started", extra={"fields": {"account": scope}})
                # The health of the process shows the dependencies of the account of all, not those of one tenant.
                own = Stop() if account.tenant else Stop(status=stop.status)
                work = asyncio.ensure_future(self._work(account, own))
                try:
                    while not (stop.requested or work.done() or self._wanted.get(scope) != account):
                        await self._until_change(stop, work)
                    own.request()
                    await work
                finally:
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
                self._log.info("account stopped", extra={"fields": {"account": scope}})
        finally:
            del self._tasks[scope]
            self._changed.set()

    async def _until_change(self, stop: Stop, work: asyncio.Future[None] | None = None) -> None:
        waits = {asyncio.ensure_future(stop.wait()), asyncio.ensure_future(self._changed.wait())}
        try:
            await asyncio.wait(waits | ({work} if work else set()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
