"""The conversations of a service: found by a token, bounded in number and in time.

A conversation is half-open until its caller has shown that it has the keys. Half-open ones have
places of their own, and a new one takes that of the oldest: strangers lock nobody out.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cloister.attest.attested_conversation import AttestedConversation
from cloister.errors import ChannelClosedError, ServiceUnavailable


@dataclass(frozen=True)
class SessionLimits:
    """Bounds of a service's conversations.

    sessions      at most; the one that is unused for longest leaves for a new one
    kept_s        one that was used within this time never leaves for a new one
    idle_s        one that was not used for this time ends
    answer_s      the latest answer is kept so long, to be sent again if it was lost
    half_open     handshakes that nobody has completed; `half_open_s` is their time
    """

    sessions: int = 64
    kept_s: float = 30.0
    idle_s: float = 900.0
    answer_s: float = 180.0
    half_open: int = 256
    half_open_s: float = 30.0


class SessionTable:
    """Conversations by token."""

    def __init__(self, limits: SessionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._half_open: dict[str, AttestedConversation] = {}
        self._sessions: dict[str, AttestedConversation] = {}
        self._lock = threading.Lock()

    def add_half_open(self, token: str, one: AttestedConversation) -> None:
        """Keep a conversation until its caller confirms it."""
        leaving = None
        with self._lock:
            if len(self._half_open) >= self._limits.half_open:
                leaving = self._half_open.pop(next(iter(self._half_open)))
            self._half_open[token] = one
        if leaving is not None:
            leaving.leave("others began handshakes")

    def find(self, token: str) -> AttestedConversation:
        """The conversation of a token; it waits for nothing.

        Raises   ChannelClosedError
        """
        with self._lock:
            found = self._sessions.get(token) or self._half_open.get(token)
            if found is None or found.ended or self._late(token, found):
                raise ChannelClosedError(
                    "the conversation is not known here: it was closed, has expired, or the "
                    "service was restarted; begin a new one"
                )
            return found

    def confirmed(self, token: str, one: AttestedConversation) -> None:
        """A caller has shown that it has the keys; the one unused for longest leaves for it.

        Raises   ServiceUnavailable when all are in use
        """
        self.sweep()
        leaving = None
        with self._lock:
            self._half_open.pop(token, None)
            for other in [name for name, talk in self._sessions.items() if talk.ended]:
                del self._sessions[other]
            if token not in self._sessions and len(self._sessions) >= self._limits.sessions:
                leaving = self._sessions.pop(self._least_used())
            self._sessions[token] = one
        if leaving is not None:
            leaving.leave("another one took its place")

    def sweep(self) -> None:
        """End what was not used for too long, and forget answers that nobody asks for again."""
        with self._lock:
            now = self._clock()
            for one in self._sessions.values():
                if now - one.used_at > self._limits.answer_s:
                    one.forget()
            late = [
                table.pop(token)
                for table in (self._half_open, self._sessions)
                for token, one in list(table.items())
                if one.idle and (one.ended or self._late(token, one))
            ]
        for one in late:
            one.leave("it was not used for too long")

    def close(self) -> None:
        """End all."""
        with self._lock:
            all_of_them = [*self._half_open.values(), *self._sessions.values()]
            self._half_open.clear()
            self._sessions.clear()
        for one in all_of_them:
            one.leave("the service was stopped")

    def _late(self, token: str, one: AttestedConversation) -> bool:
        most_s = self._limits.idle_s if token in self._sessions else self._limits.half_open_s
        return one.idle and self._clock() - one.used_at > most_s

    def _least_used(self) -> str:
        idle = [(one.used_at, token) for token, one in self._sessions.items() if one.idle]
        if not idle or self._clock() - min(idle)[0] <= self._limits.kept_s:
            raise ServiceUnavailable("the service has as many sessions as it may; ask again later")
        return min(idle)[1]
