"""Tickets: what is signed is what is read, and nothing else is."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError, InputError, TicketError
from cloister.graph.canonical import PRELUDE
from cloister.tickets.ticket import (
    KIND,
    MAX_QUOTA,
    MAX_SERIAL,
    MAX_TIME,
    MAX_TOP,
    CounterKind,
    CounterRule,
    OutputMode,
    Ticket,
)
from tickets.licences import FOREIGN_SIGNER, NOW, SIGNER, TICKET, VENDOR, MemoryCounter, ticket

SIGNED = TICKET.signed_by(SIGNER)
TPM = CounterRule(CounterKind.TPM, bytes(32), 57)


def signed(document: bytes) -> bytes:
    """As only the vendor could."""
    return KIND.sign(PRELUDE.pack(KIND.magic, KIND.format, len(document)) + document, SIGNER)


def document(**changes: object) -> bytes:
    fields = json.loads(TICKET.head[PRELUDE.size :]) | changes
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outputs": OutputMode.TOP_K, "top": 5},
        {"outputs": OutputMode.PROBABILITIES, "broker": bytes(range(32))},
        {"counter": TPM},
        {"counter": CounterRule(CounterKind.LEASE)},
        {"last_serial": MAX_SERIAL, "quota": MAX_QUOTA, "not_after": MAX_TIME},
        {"first_serial": 0, "last_serial": 0, "quota": 1, "not_before": 0},
    ],
)
def test_a_ticket_is_read_as_it_was_signed(changes, tmp_path):
    made = ticket(**changes)
    (tmp_path / "t.lic").write_bytes(made.signed_by(SIGNER))
    found = Ticket.read(tmp_path / "t.lic", vendor=VENDOR)
    assert found == made
    assert found.digest == made.digest
    assert (found.digest == TICKET.digest) == (not changes)


def test_no_byte_of_a_ticket_can_be_changed():
    for place in range(len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[place] ^= 1 << place % 8
        with pytest.raises(TicketError):
            Ticket.verify(bytes(changed), vendor=VENDOR)


def test_a_ticket_cannot_be_cut_off_or_continued():
    for length in range(len(SIGNED)):
        with pytest.raises(TicketError):
            Ticket.verify(SIGNED[:length], vendor=VENDOR)
    for more in (b"\0", SIGNED):
        with pytest.raises(TicketError, match="bytes follow its signature"):
            Ticket.verify(SIGNED + more, vendor=VENDOR)


def test_another_vendor_is_refused_by_both():
    foreign = ticket(vendor=FOREIGN_SIGNER.public_key().public_bytes_raw())
    with pytest.raises(TicketError, match="no valid signature of vendor"):
        Ticket.verify(foreign.signed_by(FOREIGN_SIGNER), vendor=VENDOR)
    with pytest.raises(TicketError, match="not that of the ticket's vendor"):
        foreign.signed_by(SIGNER)
    with pytest.raises(TicketError, match="names another vendor than the one who signed it"):
        Ticket.verify(KIND.sign(foreign.head, SIGNER), vendor=VENDOR)


def test_a_signature_for_another_kind_of_document_is_none_for_a_ticket():
    forged = TICKET.head + SIGNER.sign(b"cloister receipt\0" + TICKET.head)
    with pytest.raises(TicketError, match="no valid signature"):
        Ticket.verify(forged, vendor=VENDOR)


def test_the_test_writes_documents_as_the_library_does():
    assert signed(document()) == SIGNED


@pytest.mark.parametrize(
    "changes",
    [
        {"license": ""}, {"license": "a" * 65}, {"license": "a/b"}, {"license": "\x1b[2J"},
        {"license": None}, {"license": 7}, {"license": "-a"}, {"license": "a\n"},
        {"bundle_id": "00"}, {"bundle_id": "zz" * 16}, {"bundle_id": "00" * 17},
        {"vendor": "00" * 31},
        {"first_serial": -1}, {"first_serial": 200}, {"first_serial": 2**63},
        {"first_serial": 1e2}, {"first_serial": True}, {"first_serial": "100"},
        {"first_serial": 10**300}, {"last_serial": MAX_SERIAL + 1}, {"last_serial": 99},
        {"quota": 0}, {"quota": 101}, {"quota": -1}, {"quota": 2**64},
        {"last_serial": MAX_SERIAL, "quota": MAX_QUOTA + 1},
        {"not_before": -1}, {"not_after": MAX_TIME + 1}, {"not_after": NOW - 1000},
        {"outputs": "everything"}, {"outputs": None}, {"outputs": "LABEL"},
        {"top": 5}, {"outputs": "top-k"}, {"outputs": "top-k", "top": 0},
        {"outputs": "top-k", "top": MAX_TOP + 1},
        {"broker": ""}, {"broker": "00" * 31}, {"broker": 0},
        {"counter": None}, {"counter": []}, {"counter": {"kind": "lease"}},
        {"counter": {"kind": "sundial", "identity": "", "start": 0}},
        {"counter": {"kind": "tpm", "identity": "", "start": 0}},
        {"counter": {"kind": "lease", "identity": "00", "start": 0}},
        {"counter": {"kind": "lease", "identity": "", "start": -1}},
        {"counter": {"kind": "lease", "identity": "", "start": MAX_SERIAL - 9}},
        {"counter": {"kind": "lease", "identity": "", "start": 0, "more": 0}},
        {"more": 1},
    ],
)  # fmt: skip
def test_a_field_out_of_bounds_is_refused_although_the_vendor_signed_it(changes):
    with pytest.raises(TicketError):
        Ticket.verify(signed(document(**changes)), vendor=VENDOR)


@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text.replace(b'"quota":10', b'"quota":10,"quota":10'),
        lambda text: text.replace(b'"quota":10', b'"quota":9,"quota":10'),
        lambda text: text.replace(b'"quota":10', b'"quota": 10'),
        lambda text: text.replace(b'"quota":10', b'"quota":1e1'),
        lambda text: text.replace(b'"quota":10', b'"quota":10.0'),
        lambda text: text.replace(b'"quota":10', b'"quota":NaN'),
        lambda text: text.replace(b'"quota":10', b'"quota":' + b"9" * 1000),
        lambda text: text.replace(b'"quota":10,', b""),
        lambda text: text.replace(b"acme", b"\\u0061cme"),
        lambda text: text.replace(b"acme", "acmé".encode()),
        lambda text: text.replace(b"acme", b"\xff"),
        lambda text: text + b" ",
        lambda text: text[:-1],
        lambda text: b"",
        lambda text: b"null",
        lambda text: b"[" * 2000,
        lambda text: b'{"a":' * 400,
    ],
)
def test_a_document_that_is_written_otherwise_is_refused(changed):
    text = changed(document())
    assert text != document()
    assert len(text) <= KIND.most
    with pytest.raises(TicketError):
        Ticket.verify(signed(text), vendor=VENDOR)


@pytest.mark.parametrize("length", [KIND.most + 1, 2**31, 2**63, 2**64 - 1])
def test_an_over_long_length_is_refused_before_anything_is_read(length):
    forged = PRELUDE.pack(KIND.magic, KIND.format, length) + SIGNED[PRELUDE.size :]
    with pytest.raises(TicketError, match=f"longer than {KIND.most} B"):
        Ticket.verify(forged, vendor=VENDOR)


def test_another_format_and_other_files_are_refused(tmp_path):
    with pytest.raises(TicketError, match="has format 2, and this version of Cloister reads 1"):
        Ticket.verify(SIGNED[:4] + b"\2" + SIGNED[5:], vendor=VENDOR)
    path = tmp_path / "t.lic"
    path.write_bytes(b"CLOB" + SIGNED[4:])
    with pytest.raises(TicketError, match=r"t\.lic: is not a ticket"):
        Ticket.read(path, vendor=VENDOR)
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(TicketError, match="is not a ticket"):
        Ticket.read(path, vendor=VENDOR)
    for odd in (tmp_path, tmp_path / "none.lic"):
        with pytest.raises(InputError):
            Ticket.read(odd, vendor=VENDOR)


@settings(max_examples=200)
@given(st.data())
def test_noise_raises_the_library_s_own_errors(data):
    noise = bytearray(SIGNED)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(noise) - 1))
        noise[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    head = bytes(noise[:-64])
    if bytes(noise) != SIGNED:
        with pytest.raises(CloisterError):
            Ticket.verify(bytes(noise), vendor=VENDOR)
    if head != TICKET.head:
        with pytest.raises(CloisterError):
            Ticket.verify(KIND.sign(head, SIGNER), vendor=VENDOR)


def test_a_ticket_of_another_bundle_or_vendor_is_refused():
    TICKET.require_bundle(TICKET.bundle_id, vendor=TICKET.vendor)
    for bundle, vendor in ((bytes(15) + b"\1", TICKET.vendor), (TICKET.bundle_id, bytes(32))):
        with pytest.raises(TicketError, match=r"buys outputs of bundle 0000.*ask the vendor"):
            TICKET.require_bundle(bundle, vendor=vendor)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (NOW - 1000.001, "is not valid before 2027-01-15T07:43:20"),
        (0, "is not valid before"),
        (NOW + 1001, "expired; it was valid until 2027-01-15T08:16:40"),
        (MAX_TIME, "expired"),
    ],
)
def test_a_ticket_has_a_period(at, message):
    TICKET.require_time(datetime.fromtimestamp(NOW - 1000, UTC))
    TICKET.require_time(datetime.fromtimestamp(NOW + 1000, UTC))
    with pytest.raises(TicketError, match=message):
        TICKET.require_time(datetime.fromtimestamp(at, UTC))


def test_one_counter_meters_a_ticket():
    TICKET.require_counter(MemoryCounter())
    with pytest.raises(TicketError, match="by a counter of kind tpm, not insecure-file"):
        ticket(counter=TPM).require_counter(MemoryCounter())
    other = CounterRule(CounterKind.INSECURE_FILE, bytes([1]) * 32)
    with pytest.raises(TicketError, match=r"by counter 0101.*, and this is 0000"):
        ticket(counter=other).require_counter(MemoryCounter())
