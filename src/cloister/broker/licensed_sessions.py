"""The live sessions of each licence: no licence takes the places of all others."""

import threading
from collections import defaultdict

from cloister.attest.channel import AttestedChannel

SESSIONS_OF_A_LICENSE = 256


class LicensedSessions:
    """Sessions in which a key was released, by licence, the oldest first; threads share it."""

    def __init__(self, most: int = SESSIONS_OF_A_LICENSE) -> None:
        self._most, self._lock = most, threading.Lock()
        self._live: defaultdict[str, dict[AttestedChannel, None]] = defaultdict(dict)

    def add(self, license_id: str, channel: AttestedChannel) -> None:
        """One session more; the oldest of its licence ends when there are too many."""
        with self._lock:
            live = self._live[license_id]
            live[channel] = None
            leaving = next(iter(live)) if len(live) > self._most else None
            if leaving is not None:
                del live[leaving]
        if leaving is not None:
            leaving.end(f"its licence has opened more than {self._most} sessions")

    def remove(self, channel: AttestedChannel) -> None:
        """A session has ended."""
        with self._lock:
            for license_id in [name for name, live in self._live.items() if channel in live]:
                del self._live[license_id][channel]
                if not self._live[license_id]:
                    del self._live[license_id]
