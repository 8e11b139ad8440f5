"""Folders of receipts: what they show of a ticket, and which of them contradict each other."""

import dataclasses
import shutil

import pytest

from cloister.errors import InputError, TicketError
from cloister.tickets.receipt import receipt_signer
from cloister.tickets.receipt_files import read_receipts, save_receipt
from cloister.tickets.ticket_meter import SignedReceipt
from tickets.licences import DIGEST, FOREIGN_KEY, KEY, TICKET, MemoryCounter, meter, ticket

SIGNER = receipt_signer(KEY, TICKET)
PUBLIC = SIGNER.public_key().public_bytes_raw()
OPENING = bytes(range(32))


@pytest.fixture
def spent(tmp_path):
    """Receipts of 1, 2 and 3 outputs."""
    opened = meter(tmp_path / "meter", counter=MemoryCounter())
    return [opened.spend(count, DIGEST) for count in (1, 2, 3)]


def saved(folder, receipts):
    return [save_receipt(folder, one, OPENING) for one in receipts]


def signed(receipt, **changes) -> SignedReceipt:
    made = dataclasses.replace(receipt.receipt, **changes)
    return SignedReceipt(made, made.signed_by(SIGNER))


def test_a_folder_is_verified_in_any_order_of_its_files(tmp_path, spent):
    paths = saved(tmp_path / "receipts", reversed(spent))
    found = read_receipts(tmp_path / "receipts", TICKET, signer=PUBLIC)
    assert list(found.receipts) == [one.receipt for one in spent]
    assert (found.outputs, found.signer, found.gaps) == (6, PUBLIC, ())
    assert {path.with_suffix(".opening").read_bytes() for path in paths} == {OPENING}
    assert all(path.with_suffix(".opening").stat().st_mode & 0o777 == 0o600 for path in paths)


def test_a_receipt_can_be_written_again(tmp_path, spent):
    assert saved(tmp_path, spent[:1]) == saved(tmp_path, spent[:1])
    assert read_receipts(tmp_path, TICKET, signer=None).outputs == 1


@pytest.mark.parametrize(
    ("missing", "gaps"),
    [(0, (range(100, 101),)), (1, (range(101, 103),)), (2, ())],
)
def test_serials_without_a_receipt_are_named(tmp_path, spent, missing, gaps):
    del spent[missing]
    saved(tmp_path / "receipts", spent)
    found = read_receipts(tmp_path / "receipts", TICKET, signer=PUBLIC)
    assert found.gaps == gaps
    assert len(found.receipts) == 2


def test_two_receipts_of_one_number_are_a_fork(tmp_path, spent):
    saved(tmp_path / "receipts", spent)
    fork = signed(spent[1], commitment=bytes(32))
    (tmp_path / "receipts" / "fork.receipt").write_bytes(fork.data)
    with pytest.raises(TicketError, match="and is another receipt: a copy of the meter was used"):
        read_receipts(tmp_path / "receipts", TICKET, signer=PUBLIC)


@pytest.mark.parametrize(
    "changes", [{"previous": bytes(32)}, {"first": 102}, {"time": TICKET.not_before}]
)
def test_neighbours_that_are_no_chain_are_refused(tmp_path, spent, changes):
    saved(tmp_path, [spent[0], signed(spent[1], **changes), spent[2]])
    with pytest.raises(TicketError, match=r"receipt [23]: (does not follow|is older)"):
        read_receipts(tmp_path, TICKET, signer=PUBLIC)


def test_a_gap_without_room_for_its_receipts_is_refused(tmp_path, spent):
    saved(tmp_path, [spent[0], signed(spent[2], number=9)])
    with pytest.raises(TicketError, match="leave no room for the 7 receipts before it"):
        read_receipts(tmp_path, TICKET, signer=PUBLIC)


def test_receipts_of_other_meters_and_tickets_are_refused(tmp_path, spent):
    saved(tmp_path / "receipts", spent)
    foreign = receipt_signer(FOREIGN_KEY, TICKET).public_key().public_bytes_raw()
    with pytest.raises(TicketError, match="no valid signature of meter"):
        read_receipts(tmp_path / "receipts", TICKET, signer=foreign)
    with pytest.raises(TicketError, match="receipt 1: is of another ticket"):
        read_receipts(tmp_path / "receipts", ticket(quota=9), signer=PUBLIC)
    other = meter(tmp_path / "other", counter=MemoryCounter(), key=FOREIGN_KEY)
    saved(tmp_path / "mixed", [spent[0]])
    (tmp_path / "mixed" / "other.receipt").write_bytes(other.spend(1, DIGEST).data)
    with pytest.raises(TicketError, match="no valid signature of meter"):
        read_receipts(tmp_path / "mixed", TICKET, signer=None)


def test_what_is_no_receipt_is_refused_or_passed_over(tmp_path, spent):
    saved(tmp_path, spent)
    (tmp_path / "notes.txt").write_bytes(b"nothing")
    assert read_receipts(tmp_path, TICKET, signer=PUBLIC).outputs == 6
    for content in (b"", b"CLOR", spent[0].data + b"\0", TICKET.head):
        (tmp_path / "odd.receipt").write_bytes(content)
        with pytest.raises(TicketError, match=r"odd\.receipt: "):
            read_receipts(tmp_path, TICKET, signer=PUBLIC)
    (tmp_path / "odd.receipt").unlink()
    (tmp_path / "odd.receipt").mkdir()
    with pytest.raises(InputError, match=r"odd\.receipt: Is a directory"):
        read_receipts(tmp_path, TICKET, signer=PUBLIC)
    shutil.rmtree(tmp_path / "odd.receipt")
    for folder in (tmp_path / "none", tmp_path / "notes.txt"):
        with pytest.raises(InputError):
            read_receipts(folder, TICKET, signer=PUBLIC)
