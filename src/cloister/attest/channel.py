"""A conversation with a machine that has proved itself: sealed records both ways, and fresh proofs.

Any error ends it for good: keys are forgotten, and a new handshake is needed.
"""

import hashlib
import hmac
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cloister.attest import cmw
from cloister.attest.appraisal import Appraisal
from cloister.attest.appraiser import Appraiser
from cloister.attest.attester import Attester
from cloister.attest.key_schedule import ConversationKeys, exported, reattestation_data
from cloister.attest.record_padding import Padding, pad, unpad
from cloister.attest.record_stream import RecordStream, RecordType
from cloister.base.process_identity import this_process
from cloister.base.rng import Csprng
from cloister.errors import (
    AttestationError,
    ChannelClosedError,
    CloisterError,
    VerificationError,
)

NONCE_BYTES = 32
MAX_REFUSAL_BYTES = 2048


class AttestedChannel:
    """One end of a conversation.

    manifest   of the runtime that proved itself
    context    what the conversation is about, by the offer
    """

    def __init__(
        self,
        keys: ConversationKeys,
        confirmed: bytes,
        *,
        manifest: bytes,
        context: bytes,
        padding: Padding,
        role: "Appraiser | Attester",
        rng: Csprng,
    ) -> None:
        """An end whose peer has confirmed nothing yet.

        confirmed   hash of the whole handshake, which both ends show each other
        role        an appraiser at the verifier's end, an attester at the prover's
        """
        self.manifest, self.context = manifest, context
        self._role, self._rng = role, rng
        self._exporter, self._padding = keys.exporter, padding
        verifies = isinstance(role, Appraiser)
        mine, theirs = (keys.verifier, keys.prover)[:: 1 if verifies else -1]
        self._out, self._in = RecordStream(mine), RecordStream(theirs)
        self._expected = confirmed
        self._first = b""
        self._confirmed = False
        self._ended = ""
        self._appraisal: Appraisal | None = None
        self._asked: bytes | None = None
        self._process = this_process()
        self._lock = threading.RLock()

    @property
    def appraisal(self) -> Appraisal:
        """What the latest evidence of the other end says, at the verifier's end.

        Raises   AttestationError at the prover's end: it has appraised nobody
        """
        if self._appraisal is None:
            raise AttestationError("appraisal: the other side of this conversation proved nothing")
        return self._appraisal

    @property
    def appraises(self) -> bool:
        """Whether this is the verifier's end."""
        return isinstance(self._role, Appraiser)

    @property
    def confirmed(self) -> bool:
        """Whether the other end has shown that it has the keys."""
        return self._confirmed

    @property
    def ended(self) -> str:
        """Why it has ended; empty while it has not."""
        return self._ended

    @property
    def expired(self) -> bool:
        """Whether evidence that the other end gave has expired by now.

        Raises   AttestationError when the clock has stepped back
        """
        if self._appraisal is None:
            return False
        return self._appraiser().clock.now() > self._appraisal.evidence.not_after

    @property
    def confirmation(self) -> bytes:
        """The record by which this end confirms the keys: its first.

        Raises   ChannelClosedError
        """
        with self._use():
            if not self._first:
                self._first = bytes(self._out.seal(RecordType.CONFIRMATION, self._expected))
            return self._first

    def refuse(self, error: AttestationError) -> bytes:
        """End the conversation with a record, in place of the confirmation, that says why."""
        with self._use():
            if self._first:
                raise AttestationError("confirmation: was sent already")
            why = str(error).encode()[:MAX_REFUSAL_BYTES]
            self._first = bytes(self._out.seal(RecordType.REFUSAL, why))
        self.end(str(error))
        return self._first

    def confirm(self, record: bytes) -> None:
        """Open the other end's confirmation; nothing is sealed or opened before.

        Raises   AttestationError, also when the other end refuses the evidence of this one
        """
        with self._use():
            if self._confirmed:
                raise AttestationError("confirmation: was opened already")
            try:
                kind, shown = self._in.open(record)
            except VerificationError as error:
                raise AttestationError(f"confirmation: {error}") from None
            if kind is RecordType.REFUSAL and not self.appraises:
                why = shown.decode(errors="replace")
                raise AttestationError(f"the other side refuses this side's evidence: {why}")
            right = hmac.compare_digest(shown, self._expected)
            if kind is not RecordType.CONFIRMATION or not right:
                raise AttestationError("confirmation: the other side saw another handshake")
            self._confirmed = True

    def seal(self, plaintext: bytes | bytearray | memoryview) -> bytearray:
        """The record of a message to the other end.

        Raises   ChannelClosedError; ProtocolError for what is too long
        """
        with self._use(confirmed=True):
            padded = pad(plaintext, self._padding)
            return self._out.seal(RecordType.DATA, padded)

    def open(self, record: bytes | bytearray | memoryview) -> bytes:
        """The message in the other end's next record.

        Raises   ChannelClosedError, also when the record closes the conversation;
                 VerificationError
        """
        with self._use(confirmed=True):
            kind, padded = self._in.open(record)
            if kind is RecordType.CLOSE:
                raise ChannelClosedError("the other side has closed the conversation")
            if kind is not RecordType.DATA:
                raise VerificationError("record: is of another type than a message")
            return unpad(padded, self._padding)

    def close(self) -> bytes:
        """End the conversation; the record tells the other end that nothing was cut off.

        Raises   ChannelClosedError when it has ended
        """
        with self._use(confirmed=True):
            record = bytes(self._out.seal(RecordType.CLOSE, b""))
        self.end("this side has closed the conversation")
        return record

    def end(self, why: str) -> None:
        """Forget the keys; nothing is said to the other end."""
        with self._lock:
            if not self._ended:
                self._ended = why
                self._exporter = self._expected = b""
                del self._out, self._in

    def exporter(self, label: str) -> bytes:
        """32 bytes that only the two ends know, for the purpose that `label` names.

        Raises   ChannelClosedError
        """
        with self._use():
            return exported(self._exporter, label)

    def challenge(self) -> bytes:
        """Ask for fresh evidence, at the verifier's end: a nonce for the other end's `prove`."""
        with self._use(confirmed=True):
            self._appraiser()
            self._asked = self._rng.random_bytes(NONCE_BYTES)
            return self._asked

    def prove(self, nonce: bytes) -> bytes:
        """Fresh evidence of this end, at the prover's end.

        Raises   AttestationError
        """
        with self._use(confirmed=True):
            if isinstance(self._role, Appraiser):
                raise AttestationError("evidence: this side of the conversation proves nothing")
            if len(nonce) != NONCE_BYTES:
                raise AttestationError(f"challenge: has {len(nonce)} bytes, of {NONCE_BYTES}")
            bound = reattestation_data(self._exporter, nonce)
            return cmw.wrap(self._role.format, self._role.evidence(bound))

    def check(self, evidence: bytes, *, appraiser: Appraiser | None = None) -> Appraisal:
        """Judge the answer to `challenge`, at the verifier's end; a refusal ends the conversation.

        appraiser   takes the place of the one so far: the policy was changed

        Raises   AttestationError
        """
        with self._use(confirmed=True):
            judge = appraiser or self._appraiser()
            asked, self._asked = self._asked, None
            if asked is None:
                raise AttestationError("evidence: answers no challenge of this side")
            bound = reattestation_data(self._exporter, asked)
            self._appraisal = judge.appraise(evidence, report_data=bound, manifest=self.manifest)
            self._role = judge
            return self._appraisal

    def accepted(self, appraisal: Appraisal) -> None:
        """Enter the first appraisal: the handshake's part."""
        self._appraisal = appraisal

    def _appraiser(self) -> Appraiser:
        if not isinstance(self._role, Appraiser):
            raise AttestationError("evidence: this side of the conversation judges nothing")
        return self._role

    @contextmanager
    def _use(self, *, confirmed: bool = False) -> Iterator[None]:
        """Use the keys; whatever goes wrong meanwhile ends the conversation."""
        with self._lock:
            if self._ended:
                raise ChannelClosedError(
                    f"the conversation has ended; begin a new one ({self._ended})"
                )
            try:
                # A copy of the process would seal another record under the same nonce.
                if this_process() != self._process:
                    raise ChannelClosedError("the conversation belongs to another process")
                if confirmed and not (self._confirmed and self._first):
                    raise AttestationError("confirmation: the keys are not confirmed yet")
                yield
            except CloisterError as error:
                self.end(str(error))
                raise
            except BaseException:
                self.end("it was interrupted")
                raise


def handshake_hash(transcript: bytes, sealed: bytes) -> bytes:
    """What the ends confirm to each other: the transcript, and the evidence as it was sent."""
    return hashlib.sha512(b"cloister confirmation\0" + transcript + sealed).digest()
