"""A service whose callers talk to it in attested conversations, over HTTPS.

A stranger may ask for a handshake and no more. The token of a conversation's transport is exported
from it: it finds the conversation, and protects nothing.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cloister.attest.attested_conversation import AttestedConversation, Operations
from cloister.attest.channel import AttestedChannel
from cloister.attest.handshake import Prover, Verifier
from cloister.attest.handshake_messages import MAX_MESSAGE_BYTES, Direction
from cloister.attest.pending_offers import PendingOffers
from cloister.attest.sealed_messages import as_tensor
from cloister.attest.session_table import SessionLimits, SessionTable
from cloister.base.identity import CERTIFICATE_FILE, PRIVATE_KEY_FILE
from cloister.errors import (
    AttestationError,
    FunctionError,
    ProtocolError,
    ServiceUnavailable,
)
from cloister.wire.https.admission import QuietLog, ServerLimits
from cloister.wire.https.bodies import Body
from cloister.wire.https.connection import Job, Principal, Route
from cloister.wire.https.server import HttpsServer

ATTEST, OFFER, ANSWER, RECORD = "attest", "offer", "answer", "record"
"""Operations of the transport: offer -> answer; nothing -> offer; answer -> confirmation; record ->
record."""
TOKEN_LABEL = "transport token"  # noqa: S105  (a label)
BODY_OVERHEAD_BYTES = 4096
COPIES = 3
"""A call is there as it was sent, once more as it is opened, and as its answer."""
MAX_CALL_BYTES = 1 << 26
SWEEP_S = 5.0
STRANGERS = "strangers"
CONNECTIONS = ServerLimits(per_caller=4, per_share=8)
"""A conversation needs one connection, and another when that breaks; no few of them take all."""


def transport_token(channel: AttestedChannel) -> str:
    """The token by which the transport finds a conversation."""
    return channel.exporter(TOKEN_LABEL).hex()


class AttestedService:
    """Serves in background threads until `close`."""

    def __init__(
        self,
        listen: str,
        *,
        folder: Path,
        start: Callable[[], Prover | Verifier],
        operations: Operations,
        closed: Callable[[AttestedChannel], None] = lambda channel: None,
        reattest_s: float | None = None,
        limits: SessionLimits | None = None,
        server_limits: ServerLimits | None = None,
        max_call_bytes: int = MAX_CALL_BYTES,
    ) -> None:
        """Bind and start; port 0 picks one, see `url`.

        folder       of the certificate and its key (base/identity.py: create_certificate)
        start        makes this side of a handshake: a `Prover` of direction CALLEE, or a `Verifier`
                     of direction CALLER
        operations   what a caller may ask for, made for each confirmed channel
        closed       called once for each of these channels when it has ended
        reattest_s   callers that prove themselves have to do so again in this time
        Raises       InputError when the address or the certificate cannot be used
        """
        self._start, self._operations, self._closed = start, operations, closed
        self._reattest_s, self._log = reattest_s, QuietLog()
        limits = limits or SessionLimits()
        self._table = SessionTable(limits)
        self._offers = PendingOffers(limits.half_open, limits.half_open_s, log=self._log)
        self._max = max_call_bytes + BODY_OVERHEAD_BYTES
        self._server = HttpsServer(
            listen,
            self._admit,
            certificate=folder / CERTIFICATE_FILE,
            private_key=folder / PRIVATE_KEY_FILE,
            limits=server_limits or CONNECTIONS,
        )
        self.url = self._server.url
        self._stop = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="attested", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        """Answer what is in flight, then end all conversations."""
        self._stop.set()
        self._server.close()
        self._sweeper.join()
        self._table.close()

    def __enter__(self) -> "AttestedService":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sweep(self) -> None:
        while not self._stop.wait(SWEEP_S):
            self._table.sweep()

    def _admit(self, token: str | None) -> Principal:
        if token is None:
            return Principal(STRANGERS, self._stranger_route, stranger=True)
        found = self._table.find(token)
        return Principal(token, lambda operation: self._session_route(token, found, operation))

    def _stranger_route(self, operation: str) -> Route:
        known = {ATTEST: self._attest, OFFER: self._offer, ANSWER: self._answer}
        if operation not in known:
            raise FunctionError("a stranger may ask for a handshake alone")
        work = known[operation]
        return Route(
            MAX_MESSAGE_BYTES + BODY_OVERHEAD_BYTES,
            lambda body: Job(lambda: work(body), lane=STRANGERS),
        )

    def _session_route(self, token: str, found: AttestedConversation, operation: str) -> Route:
        if operation != RECORD:
            raise ProtocolError("a conversation consists of records alone")

        def exchange(body: Body) -> Body:
            record = body.array(0, np.uint8, 1).data
            with found.place():
                if len(body.tensors) > 1:
                    found.confirm(body.array(1, np.uint8, 1).tobytes())
                    self._opened(token, found)
                if not found.channel.confirmed:
                    raise AttestationError("confirmation: is missing in front of the first record")
                return Body({}, (as_tensor(found.exchange(record)),))

        def job(body: Body) -> Job:
            nbytes = COPIES * sum(tensor.nbytes for tensor in body.tensors)
            return Job(lambda: exchange(body), lane=token, nbytes=nbytes)

        return Route(self._max, job)

    def _attest(self, body: Body) -> Body:
        """This side proves itself."""
        prover = self._start()
        if not isinstance(prover, Prover) or prover.direction is not Direction.CALLEE:
            raise ProtocolError(
                "this service proves nothing: its callers have to, as those of a key broker; give "
                "the address of a `cloister trusted serve`"
            )
        answer, channel = prover.answer(body.array(0, np.uint8, 1).tobytes())
        self._table.add_half_open(transport_token(channel), self._conversation(channel))
        return Body({}, (as_tensor(answer),))

    def _offer(self, _: Body) -> Body:
        """The caller wants to prove itself."""
        verifier = self._start()
        if not isinstance(verifier, Verifier) or verifier.direction is not Direction.CALLER:
            raise ProtocolError("this service judges nobody: it proves itself to its callers")
        self._offers.add(verifier)
        return Body({}, (as_tensor(verifier.offer()),))

    def _answer(self, body: Body) -> Body:
        """The caller proves itself."""
        digest, answer = (body.array(index, np.uint8, 1).tobytes() for index in (0, 1))
        return Body({}, (as_tensor(self._offers.answered(digest, answer, self._accepted)),))

    def _accepted(self, channel: AttestedChannel) -> None:
        found = self._conversation(channel)
        self._opened(transport_token(channel), found)

    def _opened(self, token: str, found: AttestedConversation) -> None:
        try:
            self._table.confirmed(token, found)
        except ServiceUnavailable as error:
            found.leave(str(error))
            raise
        found.begin()

    def _conversation(self, channel: AttestedChannel) -> AttestedConversation:
        return AttestedConversation(
            channel, self._operations, closed=self._closed, reattest_s=self._reattest_s,
            log=self._log,
        )  # fmt: skip
