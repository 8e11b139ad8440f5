"""Offers of a service that appraises its callers: each is answered once."""

import hashlib
import threading
import time
from collections.abc import Callable

from cloister.attest.channel import AttestedChannel
from cloister.attest.handshake import Verifier
from cloister.errors import AttestationError
from cloister.wire.https.admission import QuietLog


def offer_digest(offer: bytes) -> bytes:
    """How an answer names its offer."""
    return hashlib.sha256(offer).digest()


class _Pending:
    """An offer, and what its answer led to."""

    def __init__(self, verifier: Verifier, made_at: float) -> None:
        self.verifier, self.made_at = verifier, made_at
        self.lock = threading.Lock()
        self.answer = self.record = b""


class PendingOffers:
    """The latest offers; a new one takes the place of the oldest."""

    def __init__(
        self,
        most: int,
        seconds: float,
        *,
        log: QuietLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._most, self._seconds, self._clock = most, seconds, clock
        self._offers: dict[bytes, _Pending] = {}
        self._lock = threading.Lock()

    def add(self, verifier: Verifier) -> None:
        """Keep an offer until it is answered."""
        with self._lock:
            now = self._clock()
            for digest, one in list(self._offers.items()):
                late = now - one.made_at > self._seconds
                if late or len(self._offers) >= self._most:
                    del self._offers[digest]
            self._offers[offer_digest(verifier.offer())] = _Pending(verifier, now)

    def answered(
        self, digest: bytes, answer: bytes, accepted: Callable[[AttestedChannel], None]
    ) -> bytes:
        """The record that follows an answer; the same again for the same answer.

        It confirms the keys, or says why the evidence is refused.

        accepted   is given the channel, once
        Raises     AttestationError
        """
        with self._lock:
            found = self._offers.get(digest)
        if found is None or self._clock() - found.made_at > self._seconds:
            raise AttestationError("offer: has expired, or was made by another process; ask again")
        with found.lock:
            if found.answer != answer or not found.record:
                found.record = _judged(found.verifier, answer, accepted, self._log)
                found.answer = answer
            return found.record


def _judged(
    verifier: Verifier, answer: bytes, accepted: Callable[[AttestedChannel], None], log: QuietLog
) -> bytes:
    try:
        channel = verifier.accept(answer)
    except AttestationError as error:
        log.line(f"a caller's evidence is refused: {error}")
        if verifier.refusal:
            return verifier.refusal
        raise
    confirmation = channel.confirmation
    accepted(channel)
    return confirmation
