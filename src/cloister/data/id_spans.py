"""A set of sample ids, as spans: those that clients withdrew, or that one client registered."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from cloister.errors import InputError
from cloister.ring.bounds import MAX_ID_SPANS, MAX_SAMPLES


@dataclass(frozen=True, eq=False)
class IdSpans:
    """Ids, as ascending spans that do not touch.

    bounds   first id of a span and the id behind its last one, by turns; an id is in the set if the
             number of bounds up to it is odd

    Raises   InputError for bounds that do not ascend, are no ids, or are too many
    """

    bounds: Int64[np.ndarray, " bounds"]

    def __post_init__(self) -> None:
        bounds = self.bounds
        if len(bounds) % 2:
            raise InputError("spans of sample ids come as pairs of numbers")
        if (np.diff(bounds, prepend=-1) <= 0).any() or bounds.max(initial=0) > MAX_SAMPLES:
            raise InputError(f"spans of sample ids must ascend, from 0 to {MAX_SAMPLES}")
        if len(bounds) > 2 * MAX_ID_SPANS:
            raise InputError(
                f"{len(bounds) // 2} separate spans of sample ids are too many, at most "
                f"{MAX_ID_SPANS} are possible; name whole parts"
            )

    @staticmethod
    def of(spans: Iterable[tuple[int, int]]) -> "IdSpans":
        """The ids of spans (first, behind the last) in any order.

        Raises   InputError
        """
        ends = np.array(sorted(spans), np.int64).reshape(-1, 2)
        if (ends[:, 0] >= ends[:, 1]).any():
            raise InputError("a span of sample ids holds at least one id")
        # Behind the last of all spans so far; one that begins there or before goes on with them.
        reach = np.maximum.accumulate(ends[:, 1])
        fresh = np.append(True, ends[1:, 0] > reach[:-1])[: len(ends)]
        last = np.append(fresh[1:], True)[: len(ends)]
        return IdSpans(np.stack([ends[fresh, 0], reach[last]], axis=1).reshape(-1))

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First id of each span, and the id behind its last one."""
        return [(first, behind) for first, behind in self.bounds.reshape(-1, 2).tolist()]

    @property
    def count(self) -> int:
        """Number of ids."""
        return int(np.diff(self.bounds.reshape(-1, 2)).sum())

    def holds(self, ids: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of these ids are in the set."""
        return np.asarray(np.searchsorted(self.bounds, ids, side="right") % 2 == 1)

    def __or__(self, other: "IdSpans") -> "IdSpans":
        """The ids of both."""
        return IdSpans.of([*self.spans, *other.spans])

    def __le__(self, other: "IdSpans") -> bool:
        """Whether every id is in the other set."""
        return np.array_equal((self | other).bounds, other.bounds)


NO_IDS = IdSpans(np.empty(0, np.int64))
