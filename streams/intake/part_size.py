"""Bounds the size of a transaction: how many events it decides, given the size of the leads of the events before."""

from __future__ import annotations

_FIRST_PART = 256  # events: until the size of the leads is known
_GROWTH = 4  # maximum ratio of the sizes of a part and the one before it


class Cut(Exception):  # noqa: N818 - control flow, not a defect
    """Rolls a transaction back: its records are too large together. ``share`` of its events can be decided."""

    def __init__(self, share: float) -> None:
        super().__init__(f"{share:.2f} of the events can be decided in one transaction")
        self.share = share


class PartSize:
    """The number of events of a part, so that their records probably have at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes_per_event = limit / _FIRST_PART

    @property
    def events(self) -> int:
        """The number of events of the next part."""
        return max(1, int(self._limit / self._bytes_per_event))

    def decided(self, events: int, size: int) -> None:
        """Adapt to a part of ``events`` events whose records had ``size`` bytes: larger parts by steps only.

        A part without records, such as one of duplicates, says nothing about the size of leads.
        """
        if size == 0:
            return
        self._bytes_per_event = max(size / events, self._bytes_per_event / _GROWTH, 1)

    def cut(self, events: int) -> None:
        """Adapt to a part that was too large, of which ``events`` events can be decided."""
        self._bytes_per_event = max(self._limit / events, 1)
