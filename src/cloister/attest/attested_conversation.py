"""One caller's conversation at a service: its records, in order, each answered once."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
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
from cloister.errors import AttestationError, CloisterError, ProtocolError
from cloister.wire.https.bodies import Body
from cloister.wire.https.connection import described

_log = logging.getLogger("cloister.attest")


@dataclass(frozen=True)
class Operation:
    """Something that a caller may ask for.

    max_bytes   of a call
    handle      does it, in a thread of its conversation; calls of one conversation come one by one
    """

    max_bytes: int
    handle: Callable[[Body], Body]


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
    ) -> None:
        self.channel, self._make, self._closed = channel, operations, closed
        self._operations: Mapping[str, Operation] | None = None
        self._reattest_s = reattest_s
        self._last, self._answer = b"", bytearray()
        self.confirmed = False
        self._lock = threading.Lock()
        self.used_at = self._proved_at = time.monotonic()

    @property
    def idle(self) -> bool:
        """Whether no call is being answered."""
        return not self._lock.locked()

    @property
    def ended(self) -> str:
        """Why it has ended; empty while it has not."""
        return self.channel.ended

    def confirm(self, record: bytes) -> None:
        """Open the caller's confirmation; nothing happens when it comes again.

        Raises   AttestationError
        """
        with self._lock:
            if not self.confirmed:
                self.channel.confirm(record)
                self.confirmed = True

    def begin(self) -> None:
        """Make the operations, once: the caller has shown that it has the keys."""
        with self._lock:
            if self._operations is None and not self.ended:
                self._operations = self._make(self.channel)

    def exchange(self, record: memoryview) -> bytearray:
        """The sealed answer to a sealed call.

        Raises   ChannelClosedError, VerificationError, ProtocolError: the channel has ended
        """
        with self._lock:
            try:
                # Who sends other bytes under the same header and tag gets what was sent already.
                name = bytes(record[: HEADER.size]) + bytes(record[-TAG_BYTES:])
                if name == self._last and not self.ended:
                    return self._answer
                plaintext = self.channel.open(record)
                self._answer = self.channel.seal(self._call(plaintext))
                self._last = name
                return self._answer
            finally:
                self.used_at = time.monotonic()
                if self.ended:
                    self._release()

    def leave(self, why: str) -> None:
        """End it, and let go of what its operations hold; waits for a call in flight."""
        self.channel.end(why)
        with self._lock:
            self._release()

    def _release(self) -> None:
        self._last, self._answer = b"", bytearray()
        if self._operations is not None:
            self._operations = None
            self._closed(self.channel)

    def _call(self, plaintext: bytes) -> bytes:
        try:
            operation, body = decode_call(plaintext)
            answer = self._found(operation, len(plaintext))(body)
            return encode_answer(answer, due=self._overdue(0.5))
        except CloisterError as error:
            return encode_error(error, due=self._overdue(0.5))
        except Exception as error:  # noqa: BLE001  (a fault of ours: for the service's log alone)
            _log.warning("an operation failed: %s", described(error))
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
        if self._reattest_s is None or not self.channel.appraises:
            return False
        return time.monotonic() - self._proved_at > part * self._reattest_s

    def _challenge(self, _: Body) -> Body:
        return Body({}, (as_tensor(self.channel.challenge()),))

    def _prove(self, body: Body) -> Body:
        nonce = body.array(0, np.uint8, 1).tobytes()
        return Body({}, (as_tensor(self.channel.prove(nonce)),))

    def _check(self, body: Body) -> Body:
        self.channel.check(body.array(0, np.uint8, 1).tobytes())
        self._proved_at = time.monotonic()
        return Body()
