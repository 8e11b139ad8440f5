"""Refusals on their way into the ledger: counted at once, written a few times a second together.

A refusal releases nothing, so nobody waits until it is on the disk, and strangers cannot make the
broker write more often by asking more often. A broker that is killed forgets the last of them.
"""

import threading
from collections import Counter

from cloister.broker.release_ledger import KEPT_REFUSALS, RefusedRequest, ReleaseLedger
from cloister.broker.release_rules import RefusalKind
from cloister.errors import EncryptionError, printable

WRITE_AFTER_S = 0.25
MAX_REASON_CHARS = 300


class RefusalLog:
    """Refusals that are not written yet."""

    def __init__(self, ledger: ReleaseLedger) -> None:
        self._ledger, self._lock = ledger, threading.Lock()
        self._counts: Counter[str] = Counter()
        self._last: dict[str, list[RefusedRequest]] = {}
        self._timer: threading.Timer | None = None

    def add(self, kind: RefusalKind, reason: str, *, time: int) -> None:
        """Count a refusal."""
        one = RefusedRequest(kind.value, time, printable(reason, most=MAX_REASON_CHARS))
        with self._lock:
            self._counts[one.kind] += 1
            kept = self._last.setdefault(one.kind, [])
            kept.append(one)
            del kept[:-KEPT_REFUSALS]
            if self._timer is None:
                self._timer = threading.Timer(WRITE_AFTER_S, self.write)
                self._timer.daemon = True
                self._timer.start()

    def write(self) -> None:
        """Write what was counted; a ledger that cannot be written gets it the next time."""
        with self._lock:
            counts, last = self._counts, self._last
            self._counts, self._last, self._timer = Counter(), {}, None
        if not counts:
            return
        try:
            with self._ledger.changing() as change:
                change.count_refusals(counts, [one for kept in last.values() for one in kept])
        except EncryptionError:
            with self._lock:
                self._counts.update(counts)
                for kind, kept in last.items():
                    self._last[kind] = (kept + self._last.get(kind, []))[-KEPT_REFUSALS:]
