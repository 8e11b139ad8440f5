"""The budget of a worker's memory, counted before the memory is allocated."""

import os
import threading
from dataclasses import dataclass

from cloister.errors import RangeError

MAX_BUDGET_BYTES = 32 << 30


def default_budget_bytes() -> int:
    """Three quarters of the machine's memory, at most 32 GiB."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(MAX_BUDGET_BYTES, memory // 4 * 3)


class MemoryBudget:
    """Bytes that all clients of one worker may take, together. Thread-safe.

    Whatever a client can make large is taken from here first: loaded maps with their scratch
    memory, requests, answers, and the processes that run segments.
    """

    def __init__(self, total_bytes: int | None = None) -> None:
        self.total_bytes = default_budget_bytes() if total_bytes is None else total_bytes
        self._left = self.total_bytes
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> None:
        """Reserve memory.

        Raises   RangeError when it is spent
        """
        with self._lock:
            if nbytes > self._left:
                raise RangeError(
                    f"worker memory: {nbytes} B wanted, which is more than is left; use fewer "
                    "clients, a smaller batch or a larger worker"
                )
            self._left -= nbytes

    def give_back(self, nbytes: int) -> None:
        """Return reserved memory."""
        with self._lock:
            self._left += nbytes


class Reservation:
    """Memory that one thread takes from a budget bit by bit and gives back at once."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._taken = 0

    def take(self, nbytes: int) -> None:
        """Reserve more memory.

        Raises   RangeError when the budget is spent
        """
        self._budget.take(nbytes)
        self._taken += nbytes

    def end(self) -> None:
        """Return all of it."""
        if self._taken:
            self._budget.give_back(self._taken)
            self._taken = 0


@dataclass(frozen=True)
class MapMemory:
    """Upper bounds of the bytes that a linear map takes.

    held      as long as it is loaded
    scratch   from the first request of a batch on, since it is kept for the next one
    """

    held: int
    scratch: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.held + self.scratch


def bounded(nbytes: int, *, limit: int, request: int) -> int:
    """A number of bytes that is within a limit.

    Raises   RangeError
    """
    if nbytes > limit:
        raise RangeError(
            f"linear map: a request of {request} B would take {nbytes} B of scratch memory, more "
            f"than the limit of {limit} B; use less padding, dilation or upsampling"
        )
    return nbytes
