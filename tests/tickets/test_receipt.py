"""Receipts: signed, offline to verify, one chain, and silent about the outputs."""

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.errors import TicketError
from cloister.tickets.receipt import KIND, Receipt, receipt_signer
from cloister.tickets.ticket import OutputMode
from tickets.licences import DIGEST, FOREIGN_KEY, KEY, NOW, SIGNER, TICKET, meter, ticket

METER = receipt_signer(KEY, TICKET)
FIRST = Receipt(
    license=TICKET.license, bundle_id=TICKET.bundle_id, ticket=TICKET.digest,
    signer=METER.public_key().public_bytes_raw(), number=1, first=100, count=3,
    outputs=OutputMode.LABEL, top=None, commitment=DIGEST, time=NOW, previous=TICKET.digest,
)  # fmt: skip
SECOND = dataclasses.replace(FIRST, number=2, first=103, count=7, previous=FIRST.digest)


def test_a_receipt_is_verified_with_the_meter_s_public_key_alone(tmp_path):
    opened = meter(tmp_path / "meter")
    made = opened.spend(3, DIGEST)
    public = Ed25519PublicKey.from_public_bytes(opened.receipt_key)
    assert Receipt.verify(made.data, signer=public) == made.receipt == FIRST
    assert FIRST.serials == range(100, 103)


def test_no_byte_of_a_receipt_can_be_changed():
    data = FIRST.signed_by(METER)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(TicketError):
            Receipt.verify(bytes(changed), signer=METER.public_key())
    for odd in (data[:-1], data + b"\0", b"", TICKET.signed_by(SIGNER)):
        with pytest.raises(TicketError):
            Receipt.verify(odd, signer=METER.public_key())


def test_the_meters_of_other_tickets_and_keys_sign_otherwise():
    for other in (receipt_signer(KEY, ticket(quota=9)), receipt_signer(FOREIGN_KEY, TICKET)):
        with pytest.raises(TicketError, match="no valid signature of meter"):
            Receipt.verify(FIRST.signed_by(other), signer=METER.public_key())
        named = dataclasses.replace(FIRST, signer=other.public_key().public_bytes_raw())
        with pytest.raises(TicketError, match="names another meter"):
            Receipt.verify(named.signed_by(METER), signer=METER.public_key())


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 0}, {"number": 2**33}, {"first": -1}, {"first": 2**53}, {"count": 0},
        {"count": 2**33}, {"time": -1}, {"time": 2**60}, {"commitment": b""}, {"previous": b"1"},
        {"license": 7}, {"top": "5"},
    ],
)  # fmt: skip
def test_a_receipt_out_of_bounds_is_refused_although_a_meter_signed_it(changes):
    data = dataclasses.replace(FIRST, **changes).signed_by(METER)
    with pytest.raises(TicketError, match="its document cannot be read"):
        Receipt.verify(data, signer=METER.public_key())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ticket": bytes(32)}, "is of another ticket"),
        ({"license": "other"}, "contradicts its ticket"),
        ({"bundle_id": bytes([9]) * 16}, "contradicts its ticket"),
        ({"outputs": OutputMode.PROBABILITIES}, "contradicts its ticket"),
        ({"top": 3}, "contradicts its ticket"),
        ({"first": 99}, "beyond the quota"),
        ({"count": 8}, "beyond the quota"),
        ({"time": NOW + 1001}, "when its ticket was not valid"),
        ({"number": 3}, "receipt 3: does not follow receipt 1"),
        ({"number": 1}, "does not follow"),
        ({"first": 102}, "does not follow"),
        ({"first": 104, "count": 1}, "does not follow"),
        ({"previous": TICKET.digest}, "does not follow"),
        ({"time": NOW - 1}, "is older than the one before it"),
    ],
)
def test_a_receipt_follows_the_one_before(changes, message):
    FIRST.require_predecessor(None, TICKET)
    SECOND.require_predecessor(FIRST, TICKET)
    with pytest.raises(TicketError, match=message):
        dataclasses.replace(SECOND, **changes).require_predecessor(FIRST, TICKET)


def test_the_first_receipt_follows_the_ticket():
    for changes in ({"number": 2}, {"first": 101}, {"previous": bytes(32)}):
        with pytest.raises(TicketError, match="does not follow receipt 0"):
            dataclasses.replace(FIRST, **changes).require_predecessor(None, TICKET)


def test_receipts_and_tickets_cannot_be_taken_for_each_other():
    assert KIND.magic != b"CLOT"
    with pytest.raises(TicketError, match="is not a receipt"):
        Receipt.verify(TICKET.signed_by(SIGNER), signer=SIGNER.public_key())
