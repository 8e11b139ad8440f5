"""The broker over attested conversations, in which the caller proves itself.

A stranger may ask for a handshake and for nothing else. What a runtime may ask for once its
evidence was accepted stands in `_operations`.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from cloister.attest.attested_conversation import Operation
from cloister.attest.attested_service import AttestedService
from cloister.attest.channel import AttestedChannel
from cloister.attest.handshake import Verifier
from cloister.attest.handshake_messages import Direction
from cloister.attest.sealed_messages import as_tensor
from cloister.attest.session_table import SessionLimits
from cloister.base.rng import Csprng
from cloister.broker.broker import ADVANCE_BYTES, METER_BYTES, Broker, BrokerSession
from cloister.broker.release_rules import RefusalKind
from cloister.errors import AttestationError, ProtocolError
from cloister.tickets.ticket import MAX_SERIAL
from cloister.wire.https.admission import ServerLimits
from cloister.wire.https.bodies import Body

RELEASE_BYTES, COUNTER_BYTES = 1 << 14, 1 << 12
REATTEST_S = 900.0
"""A runtime that keeps its session proves itself anew in this time."""
LIMITS = SessionLimits(sessions=4096, kept_s=5.0)
"""A session is a few keys and a ticket; each runtime of each customer keeps one."""


class CountingVerifier(Verifier):
    """A verifier whose refusals the broker counts."""

    def __init__(self, broker: Broker, *, rng: Csprng) -> None:
        """See Verifier; the context is the broker's certificate: the evidence is for it alone."""
        super().__init__(
            broker.appraiser,
            direction=Direction.CALLER,
            context=broker.folder.certificate,
            rng=rng,
        )
        self._broker = broker

    def accept(self, answer: bytes) -> AttestedChannel:
        """See Verifier."""
        try:
            return super().accept(answer)
        except AttestationError as error:
            raise self._broker.refuse(RefusalKind.EVIDENCE, error) from None


def serve(
    broker: Broker,
    *,
    listen: str,
    rng: Csprng,
    limits: SessionLimits = LIMITS,
    server_limits: ServerLimits | None = None,
) -> AttestedService:
    """Serve in the background until the result is closed.

    Raises   InputError when the address cannot be used
    """
    return AttestedService(
        listen,
        folder=broker.folder.path,
        start=partial(CountingVerifier, broker, rng=rng),
        operations=partial(_operations, broker),
        closed=broker.sessions.remove,
        reattest_s=REATTEST_S,
        limits=limits,
        server_limits=server_limits,
        max_call_bytes=RELEASE_BYTES,
    )


def _operations(broker: Broker, channel: AttestedChannel) -> Mapping[str, Operation]:
    """What a runtime may ask for, with how large a body."""
    session = BrokerSession(broker, channel)
    return {
        "release": Operation(RELEASE_BYTES, partial(_release, session)),
        "counter_read": Operation(COUNTER_BYTES, partial(_read, session)),
        "counter_advance": Operation(COUNTER_BYTES, partial(_advance, session)),
    }


def _release(session: BrokerSession, body: Body) -> Body:
    ticket = body.array(0, np.uint8, 1).tobytes()
    found = session.release(ticket, _hexadecimal(body, "meter", METER_BYTES))
    fields = {"entry": found.entry.number, "digest": found.entry.digest.hex()}
    return Body(fields, (as_tensor(found.bundle_key.key), as_tensor(found.meter_key)))


def _read(session: BrokerSession, _: Body) -> Body:
    return Body({"count": session.read_counter()})


def _advance(session: BrokerSession, body: Body) -> Body:
    before, to = (_counted(body, name) for name in ("before", "to"))
    name = _hexadecimal(body, "name", ADVANCE_BYTES)
    session.advance_counter(before=before, to=to, name=name)
    return Body()


def _counted(body: Body, name: str) -> int:
    found = body.number(name)
    if not 0 <= found <= MAX_SERIAL:
        raise ProtocolError(f"message: field {name!r} must be 0 to {MAX_SERIAL}")
    return found


def _hexadecimal(body: Body, name: str, size: int) -> bytes:
    try:
        found = bytes.fromhex(body.text(name))
    except ValueError:
        found = b""
    if len(found) != size:
        raise ProtocolError(f"message: field {name!r} must be {size} bytes in hexadecimal")
    return found
