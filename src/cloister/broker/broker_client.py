"""The runtime's side: it proves itself to the vendor's broker, and is given the keys of its ticket.

The ticket, which the vendor signed, names the broker's certificate. The client connects to this
certificate alone, so the runtime proves itself to nobody else and takes keys from nobody else.

A conversation that has ended is followed by another, in which the keys are released again: the
broker records each release. A call whose answer was lost is made again; it does nothing twice.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.attest.attested_client import AttestedClient
from cloister.attest.attester import Attester
from cloister.attest.handshake import Prover
from cloister.attest.handshake_messages import Direction
from cloister.attest.sealed_messages import as_tensor
from cloister.base.reading import parsing
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.broker.ledger_entry import DIGEST_BYTES
from cloister.bundle.bundle_keys import BundleKey
from cloister.errors import BrokerUnavailable, ChannelClosedError, ProtocolError, TicketError
from cloister.tickets.ticket import Ticket
from cloister.wire.https.bodies import Body
from cloister.wire.https.https_client import RETRY_FOR_S

_T = TypeVar("_T")

TRIES = 3
"""Conversations that may end during one call."""


@dataclass(frozen=True, repr=False)
class ReleasedKeys:
    """What the broker has released.

    entry    number of the ledger's entry, and its digest: the broker can be asked for it later

    Secret   bundle_key, meter_key
    """

    bundle_key: BundleKey
    meter_key: bytes
    entry: int
    digest: bytes


class BrokerClient:
    """A runtime's connection to the broker that its ticket names; threads share it."""

    def __init__(
        self,
        url: str,
        ticket: bytes,
        *,
        vendor: Ed25519PublicKey,
        attester: Attester,
        manifest: bytes,
        meter: bytes,
        rng: Csprng,
        retry_for_s: float = RETRY_FOR_S,
    ) -> None:
        """Prepare to call; nothing is sent yet.

        ticket     as it was signed
        meter      id of the meter that will spend it (lease_counter.py)
        Raises     TicketError for a ticket of another vendor, or one that names no broker
        """
        self.ticket = Ticket.verify(ticket, vendor=vendor)
        if self.ticket.broker is None:
            raise TicketError(
                f"ticket {self.ticket.license}: names no broker's certificate, so that any broker "
                "could answer; ask the vendor for a ticket with one"
            )
        self.broker = self.ticket.broker
        self.rng = rng
        self._url, self._signed, self._meter = url, ticket, meter
        self._attester, self._manifest = attester, manifest
        self._retry_for_s = retry_for_s
        self._lock = threading.Lock()
        self._licensed: _Licensed | None = None
        self._released: ReleasedKeys | None = None

    def release(self) -> ReleasedKeys:
        """Prove this machine, and take the keys.

        Secret   result
        Raises   AttestationError, ReleaseError, TicketError as the broker refuses;
                 BrokerUnavailable
        """
        with self._lock:
            return self._released or self._repeated(lambda: self._ready().keys)

    def call(self, operation: str, fields: Mapping[str, Any]) -> Body:
        """Ask for an operation of this licence.

        Raises   what the broker raises, by class; BrokerUnavailable
        """
        with self._lock:
            return self._repeated(lambda: self._ready().conversation.call(operation, fields))

    def close(self) -> None:
        """End the conversation."""
        with self._lock:
            self._leave()

    def __enter__(self) -> "BrokerClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repeated(self, once: Callable[[], _T]) -> _T:
        """Do it, and again in another conversation where one has ended."""
        left = TRIES
        while True:
            left -= 1
            try:
                return once()
            except ChannelClosedError as error:
                self._leave()
                if not left:
                    raise BrokerUnavailable(
                        f"{self._url}: ended {TRIES} conversations ({error}); try again later"
                    ) from None
            except BrokerUnavailable:
                # It is not known whether the call was done.
                self._leave()
                raise

    def _ready(self) -> "_Licensed":
        """The conversation, in which the keys were released; another one where it has ended."""
        if self._licensed is None:
            conversation = AttestedClient(
                self._url,
                start=self._prover,
                certificate=self.broker,
                retry_for_s=self._retry_for_s,
                unavailable=BrokerUnavailable,
            )
            try:
                found = self._keys(conversation)
            except BaseException:
                conversation.close()
                raise
            self._licensed = _Licensed(conversation, found)
            self._released = self._released or found
        return self._licensed

    def _keys(self, conversation: AttestedClient) -> ReleasedKeys:
        fields = {"meter": self._meter.hex()}
        answer = conversation.call("release", fields, (as_tensor(self._signed),))
        bundle_key, meter_key = (answer.array(i, np.uint8, 1).tobytes() for i in (0, 1))
        with parsing(f"{self._url}: its release is damaged", kind=ProtocolError):
            digest = bytes.fromhex(answer.text("digest"))
        if (len(bundle_key), len(meter_key), len(digest)) != (KEY_BYTES, KEY_BYTES, DIGEST_BYTES):
            raise ProtocolError(f"{self._url}: its release has parts of another size")
        key = BundleKey(self.ticket.bundle_id, bundle_key)
        return ReleasedKeys(key, meter_key, answer.number("entry"), digest)

    def _prover(self) -> Prover:
        return Prover(
            self._attester,
            self._manifest,
            direction=Direction.CALLER,
            context=self.broker,
            rng=self.rng,
        )

    def _leave(self) -> None:
        if self._licensed is not None:
            self._licensed.conversation.close()
            self._licensed = None


@dataclass(frozen=True, repr=False)
class _Licensed:
    """A conversation, and what was released in it."""

    conversation: AttestedClient
    keys: ReleasedKeys
