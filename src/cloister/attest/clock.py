"""The time at which evidence is judged: it never runs backwards within a process."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

from cloister.errors import AttestationError


def _system_time() -> datetime:
    return datetime.now(UTC)


class Clock:
    """A source of time that refuses to step back: an expired certificate stays expired."""

    def __init__(self, source: Callable[[], datetime] = _system_time) -> None:
        """Take time from `source`, whose answers have a time zone."""
        self._source = source
        self._latest: datetime | None = None
        # Without the lock a thread could compare an older reading with a newer one.
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The time, in UTC.

        Raises   AttestationError when it lies before one that was given out
        """
        with self._lock:
            found = self._source()
            if found.tzinfo is None:
                raise AttestationError("clock: its time has no time zone")
            found = found.astimezone(UTC)
            if self._latest is not None and found < self._latest:
                raise AttestationError(
                    f"clock: stepped back from {self._latest.isoformat()} to {found.isoformat()}; "
                    "set it right, then start the process again"
                )
            self._latest = found
            return found


SYSTEM_CLOCK = Clock()
"""The one of this process."""
