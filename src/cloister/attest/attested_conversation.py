"""One caller's conversation at a service: its records, in order, each answered once."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cloister.attest.channel import AttestedChannel
from cloister.attest.record_stream import HEADER, TAG_BYTES
from cloister.attest.sealed_messages import (
    CHALLENGE,
    CHECK,
    PROVE,
    as_tensor,
    decode_call,
    encode_answer,
    encode_error,
)
from cloister.errors import AttestationError, ChannelClosedError, CloisterError, ProtocolError
from cloister.wire.https.admission import BusyError, QuietLog
from cloister.wire.https.bodies import Body
from cloister.wire.https.connection import described


@dataclass(frozen=True)
class Operation:
    """Something that a caller may ask for.

    max_bytes   of a call
    handle      does it, in a thread of its conversation; calls of one conversation come one by one
    """

    max_bytes: int
    handle: Callable[[Body], Body]


MOST_AT_ONCE = 2
"""Requests of one conversation: a call, and the same once more because its connection broke. Each
holds a thread of the service, which others need."""

Operations = Callable[[AttestedChannel], Mapping[str, Operation]]
"""What a caller may ask for, once its channel is confirmed."""


class AttestedConversation:
    """Answers the records of one channel.

    A record that comes again, because its answer was lost, is answered as before and does nothing.
    """

    def __init__(
        self,
        channel: AttestedChannel,
        operations: Operations,
        *,
        closed: Callable[[AttestedChannel], None],
        reattest_s: float | None,
        log: QuietLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel, self._make, self._closed = channel, operations, closed
        self._operations: Mapping[str, Operation] | None = None
        self._reattest_s, self._log = reattest_s, log
        self._last, self._answer = b"", bytearray()
        self._lock = threading.Lock()
        self._places = threading.Semaphore(MOST_AT_ONCE)
        self._clock = clock
        self.used_at = self._proved_at = clock()

    @property
    def idle(self) -> bool:
        """Whether no call is being answered."""
        return not self._lock.locked()

    @property
    def ended(self) -> str:
        """Why it has ended; empty while it has not."""
        return self.channel.ended

    @contextmanager
    def place(self) -> Iterator[None]:
        """What a request holds while it waits for the conversation and is answered.

        Raises   BusyError when there is none: the caller may ask again
        """
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            yield
        finally:
            self._places.release()

    def confirm(self, record: bytes) -> None:
        """Open the caller's confirmation; nothing happens when it comes again.

        Raises   AttestationError
        """
        with self._lock:
            if not self.channel.confirmed:
                self.channel.confirm(record)

    def begin(self) -> None:
        """Make the operations, once: the caller has shown that it has the keys."""
        with self._lock:
            if self._operations is None and not self.ended:
                self._operations = self._make(self.channel)

    def exchange(self, record: memoryview) -> bytearray:
        """The sealed answer to a sealed call.

        Raises   ChannelClosedError, in words that may cross the wire unsealed
        """
        with self._lock:
            try:
                # Other bytes under the same header and tag get the answer that was sent already.
                name = bytes(record[: HEADER.size]) + bytes(record[-TAG_BYTES:])
                if name == self._last and not self.ended:
                    return self._answer
                plaintext = self.channel.open(record)
                self._answer = self.channel.seal(self._call(plaintext))
                self._last = name
                return self._answer
            except CloisterError as error:
                self.channel.end(str(error))
                if not isinstance(error, ChannelClosedError):
                    self._log.line(f"a conversation has ended: {error}")
                raise ChannelClosedError(
                    "the conversation has ended; begin a new one (the service's log says why)"
                ) from None
            finally:
                self.used_at = self._clock()
                if self.ended:
                    self._release()

    def forget(self) -> None:
        """Let go of the latest answer, unless a call is in flight; it cannot be sent again."""
        if self._lock.acquire(blocking=False):
            self._last, self._answer = b"", bytearray()
            self._lock.release()

    def leave(self, why: str) -> None:
        """End it, and let go of what its operations hold; waits for a call in flight."""
        self.channel.end(why)
        with self._lock:
            self._release()

    def _release(self) -> None:
        self._last, self._answer = b"", bytearray()
        if self._operations is None:
            return
        self._operations = None
        try:
            self._closed(self.channel)
        except Exception as error:  # noqa: BLE001  (there are others to end)
            self._log.line(f"a conversation's end failed: {described(error)}")

    def _call(self, plaintext: bytes) -> bytes:
        try:
            operation, body = decode_call(plaintext)
            answer = self._found(operation, len(plaintext))(body)
            return encode_answer(answer, due=self._overdue(0.5))
        except CloisterError as error:
            return encode_error(error, due=self._overdue(0.5))
        except Exception as error:  # noqa: BLE001  (a fault of ours: for the service's log alone)
            self._log.line(f"an operation failed: {described(error)}")
            fault = ProtocolError("the service failed on this request; see its log")
            return encode_error(fault, due=False)

    def _found(self, operation: str, length: int) -> Callable[[Body], Body]:
        own = {CHALLENGE: self._challenge, PROVE: self._prove, CHECK: self._check}
        if operation in own:
            return own[operation]
        if self._overdue(1.0):
            self.channel.end("its caller gave no fresh evidence in time")
            raise AttestationError("evidence: is too old; the conversation has ended")
        found = (self._operations or {}).get(operation)
        if found is None:
            raise ProtocolError(
                f"operation {operation!r} is not known; is the service of another version?"
            )
        if length > found.max_bytes:
            raise ProtocolError(
                f"operation {operation!r}: {length} bytes, of {found.max_bytes} at most"
            )
        return found.handle

    def _overdue(self, part: float) -> bool:
        """Whether this part of the time until fresh evidence has to come has passed."""
        if not self.channel.appraises:
            return False
        if self.channel.expired:
            return True
        if self._reattest_s is None:
            return False
        return self._clock() - self._proved_at > part * self._reattest_s

    def _challenge(self, _: Body) -> Body:
        return Body({}, (as_tensor(self.channel.challenge()),))

    def _prove(self, body: Body) -> Body:
        nonce = body.array(0, np.uint8, 1).tobytes()
        return Body({}, (as_tensor(self.channel.prove(nonce)),))

    def _check(self, body: Body) -> Body:
        self.channel.check(body.array(0, np.uint8, 1).tobytes())
        self._proved_at = self._clock()
        return Body()
