"""The client of an attested service: nothing is sent before the side that attests was accepted."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cloister.attest.appraisal import Appraisal
from cloister.attest.appraiser import Appraiser
from cloister.attest.attested_service import (
    ANSWER,
    ATTEST,
    BODY_OVERHEAD_BYTES,
    OFFER,
    RECORD,
    transport_token,
)
from cloister.attest.channel import AttestedChannel
from cloister.attest.handshake import Prover, Verifier
from cloister.attest.handshake_messages import MAX_MESSAGE_BYTES, Direction
from cloister.attest.pending_offers import offer_digest
from cloister.attest.sealed_messages import (
    CHALLENGE,
    CHECK,
    PROVE,
    as_tensor,
    decode_answer,
    encode_call,
)
from cloister.errors import (
    ChannelClosedError,
    CloisterError,
    InputError,
    ServiceUnavailable,
)
from cloister.wire.https.bodies import Body
from cloister.wire.https.https_client import (
    ANSWER_TIMEOUT_S,
    RETRY_FOR_S,
    CertificateDigest,
    HttpsClient,
    InsecureAnyCertificate,
)

CLOSE_RETRY_S = 0.0
MAX_ANSWER_BYTES = MAX_MESSAGE_BYTES + BODY_OVERHEAD_BYTES
"""Of a handshake."""


class AttestedClient:
    """One attested conversation with a service; calls come one by one.

    channel   the exporter, the manifest and, where the service attests, the appraisal
    """

    def __init__(
        self,
        url: str,
        *,
        start: Callable[[], Verifier | Prover],
        certificate: bytes | None = None,
        reattest_s: float | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retry_for_s: float = RETRY_FOR_S,
        unavailable: type[ServiceUnavailable] = ServiceUnavailable,
    ) -> None:
        """Connect, and make the handshake.

        start         makes this side of the handshake: a `Verifier` of direction CALLEE, or a
                      `Prover` of direction CALLER
        certificate   SHA-256 of the service's certificate; None: any, since the channel protects
        reattest_s    ask for fresh evidence before a call when the latest is this old
        unavailable   the class of errors when the service cannot be reached or is busy

        Raises   AttestationError when the evidence is refused, by either side; InputError for an
                 address that is none; `unavailable`
        """
        pin = InsecureAnyCertificate() if certificate is None else CertificateDigest(certificate)
        self._https = HttpsClient(
            url, certificate=pin, timeout_s=timeout_s,
            retry_for_s=retry_for_s, unavailable=unavailable,
        )  # fmt: skip
        self._url, self._reattest_s = url, reattest_s
        self._first: tuple[np.ndarray, ...] = ()
        self._lock = threading.RLock()
        try:
            side = start()
            accept = self._appraise if isinstance(side, Verifier) else self._attest
            self.channel = accept(side)
            self._https.show(transport_token(self.channel))
        except BaseException:
            self._https.close()
            raise
        self._proved_at = time.monotonic()
        self._due = False

    @property
    def appraisal(self) -> Appraisal:
        """Of the service.

        Raises   AttestationError when this side is the one that attests
        """
        return self.channel.appraisal

    def call(
        self, operation: str, fields: Mapping[str, Any] = {}, tensors: Sequence[np.ndarray] = ()
    ) -> Body:
        """Ask for an operation.

        Raises   what the service raised, by class; `unavailable`; ChannelClosedError. After the
                 last two the conversation has ended, and it is not known whether the call was done
        """
        with self._lock:
            old = time.monotonic() - self._proved_at
            late = self._reattest_s is not None and old > self._reattest_s
            if late or self._due or self.channel.expired:
                self.reattest()
            return self._call(operation, fields, tensors)

    def reattest(self, appraiser: Appraiser | None = None) -> None:
        """Have the side that attests prove itself again; the conversation ends if it fails.

        appraiser   takes the place of the one so far: the policy was changed

        Raises   AttestationError
        """
        with self._lock:
            if self.channel.appraises:
                nonce = self.channel.challenge()
                evidence = self._call(PROVE, {}, (as_tensor(nonce),)).array(0, np.uint8, 1)
                self.channel.check(evidence.tobytes(), appraiser=appraiser)
            else:
                nonce = self._call(CHALLENGE, {}, ()).array(0, np.uint8, 1).tobytes()
                self._call(CHECK, {}, (as_tensor(self.channel.prove(nonce)),))
            self._proved_at, self._due = time.monotonic(), False

    def close(self) -> None:
        """Close the conversation, and tell the service."""
        with self._lock:
            with contextlib.suppress(CloisterError):
                tensors = (as_tensor(self.channel.close()), *self._first)
                self._https.call(RECORD, {}, tensors, retry_for_s=CLOSE_RETRY_S)
            self._https.close()

    def __enter__(self) -> "AttestedClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self, operation: str, fields: Mapping[str, Any], tensors: Sequence[np.ndarray]
    ) -> Body:
        record = self.channel.seal(encode_call(operation, fields, tensors))
        try:
            found = self._https.call(RECORD, {}, (as_tensor(record), *self._first))
            plaintext = self.channel.open(found.array(0, np.uint8, 1).data)
            answer, self._due = decode_answer(plaintext)
        except CloisterError as error:
            # The next record of either side has another number: there is no way to go on.
            self.channel.end(str(error))
            if isinstance(error, ServiceUnavailable):
                raise
            # The error came unsealed: an attacker may have chosen its class.
            raise ChannelClosedError(f"{self._url}: {error}") from None
        self._first = ()
        if isinstance(answer, CloisterError):
            raise answer
        return answer

    def _appraise(self, side: Verifier | Prover) -> AttestedChannel:
        if not isinstance(side, Verifier) or side.direction is not Direction.CALLEE:
            raise InputError("start: a client that appraises makes a Verifier of callee-attests")
        answer = self._ask(ATTEST, as_tensor(side.offer()))
        channel = side.accept(answer)
        self._first = (as_tensor(channel.confirmation),)
        return channel

    def _attest(self, side: Verifier | Prover) -> AttestedChannel:
        if not isinstance(side, Prover) or side.direction is not Direction.CALLER:
            raise InputError("start: a client that attests makes a Prover of caller-attests")
        offer = self._ask(OFFER)
        answer, channel = side.answer(offer)
        channel.confirm(self._ask(ANSWER, as_tensor(offer_digest(offer)), as_tensor(answer)))
        return channel

    def _ask(self, operation: str, *sent: np.ndarray) -> bytes:
        """A message of the handshake: nobody vouches yet for the side that sends it."""
        found = self._https.call(operation, {}, sent, max_answer_bytes=MAX_ANSWER_BYTES)
        return found.array(0, np.uint8, 1).tobytes()
