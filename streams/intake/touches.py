"""The touches of a lead that an erasure may restore: few, however many a lead has."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from streams.intake.merge import Touch


class Outermost:
    """Selects the first and the last touch after each of several times.

    Guarantees: at most two touches for each time are stored. With more touches added to :attr:`touches`, these still
    include the first and the last one after each time.

    Args:
        after: times in microseconds since 1970, rising.

    """

    def __init__(self, after: Sequence[int]) -> None:
        self._after = after
        self._between: dict[int, tuple[Touch, Touch]] = {}  # first and last one before the time with this index

    def add(self, touch: Touch) -> None:
        """Add a touch, in any order."""
        if place := bisect_left(self._after, touch[0]):  # 0: not after any of the times
            first, last = self._between.get(place, (touch, touch))
            self._between[place] = min(first, touch), max(last, touch)

    @property
    def touches(self) -> list[Touch]:
        """The selected touches."""
        return [touch for pair in self._between.values() for touch in dict.fromkeys(pair)]
