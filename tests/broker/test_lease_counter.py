"""A meter whose counter the broker leases: restarts, copies of its folder, old states of it."""

import shutil

import pytest

from broker.brokers import METER, Vendor
from cloister.attest.clock import Clock
from cloister.base.rng import SystemRandom
from cloister.broker.lease_counter import ID_FILE, LeaseCounter, meter_id
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.errors import (
    BrokerUnavailable,
    BudgetError,
    CounterError,
    InputError,
    RollbackError,
)
from cloister.tickets.ticket_meter import TicketMeter
from tickets.licences import ticket


@pytest.fixture
def vendor(tmp_path):
    return Vendor.make(tmp_path)


def meter(vendor, client, folder):
    return TicketMeter.open(
        folder,
        client.ticket,
        bundle=SealedBundle.show(vendor.bundle()),
        key=client.release().meter_key,
        counter=LeaseCounter(client),
        clock=Clock(vendor.time),
        rng=SystemRandom(),
    )


def spend(opened, count=1):
    return opened.spend(count, b"c" * 32).receipt


def test_a_meter_spends_by_its_lease_until_nothing_is_left(vendor, tmp_path):
    with vendor.serving() as service, vendor.client(service.url) as client:
        opened = meter(vendor, client, tmp_path / "meter")
        # So that the vendor can verify receipts, which the customer hands in.
        (entry,) = vendor.releases()
        assert entry.fields["receipt_key"] == opened.receipt_key.hex()
        assert [spend(opened, 4).first for _ in range(2)] == [100, 104]
    with vendor.serving() as service, vendor.client(service.url) as client:
        again = meter(vendor, client, tmp_path / "meter")
        assert again.left() == 2
        spend(again, 2)
        with pytest.raises(BudgetError, match="0 of its 10 outputs are left"):
            spend(again)
    assert list(vendor.ledger().counters.values()) == [10]


def test_a_runtime_goes_on_with_a_broker_that_was_restarted(vendor, tmp_path):
    with vendor.serving() as service:
        url = service.url
        client = vendor.client(url)
        opened = meter(vendor, client, tmp_path / "meter")
        spend(opened)
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        spend(opened)
    with vendor.serving(url.removeprefix("https://")), client:
        assert spend(opened).first == 101
    assert len(vendor.releases()) == 2


def test_a_copy_of_the_folder_spends_nothing_twice(vendor, tmp_path):
    with vendor.serving() as service, vendor.client(service.url) as client:
        opened = meter(vendor, client, tmp_path / "meter")
        spend(opened)
        shutil.copytree(tmp_path / "meter", tmp_path / "copy")
        copied = meter(vendor, client, tmp_path / "copy")
        assert spend(copied).first == 101
        with pytest.raises(RollbackError):
            spend(opened)


def test_a_folder_that_was_emptied_is_not_new(vendor, tmp_path):
    with vendor.serving() as service, vendor.client(service.url) as client:
        spend(meter(vendor, client, tmp_path / "meter"))
        with pytest.raises(RollbackError, match="the folder was emptied"):
            meter(vendor, client, tmp_path / "new")


def test_an_answer_that_was_lost_is_asked_for_again(vendor, monkeypatch):
    """The counter moved, and the runtime did not hear of it: the same call is made again."""
    from cloister.broker import broker_service

    with vendor.serving() as service:
        client = vendor.client(service.url)
        counter = LeaseCounter(client)
        counter.advance(0, 1)
        conversation, real = client._licensed.conversation, broker_service.BrokerSession
        advance, lost = real.advance_counter, []

        def losing(self, **given):
            advance(self, **given)
            if not lost:
                lost.append(given)
                conversation.channel.end("the network broke")

        monkeypatch.setattr(real, "advance_counter", losing)
        counter.advance(1, 3)
        assert lost
        assert counter.read() == 3
        with pytest.raises(CounterError):
            counter.advance(1, 2)
        client.close()


def test_the_id_of_a_meter_stays(tmp_path):
    folder, one = tmp_path / "meter", ticket()
    first = meter_id(folder, one, rng=SystemRandom())
    assert meter_id(folder, one, rng=SystemRandom()) == first
    assert meter_id(tmp_path / "other", one, rng=SystemRandom()) != first
    assert len(first) == len(METER)
    text = (folder / ID_FILE).read_text()
    for changed in ("", "xx", text[:-2], text + "00"):
        (folder / ID_FILE).write_text(changed)
        with pytest.raises(InputError, match="is no id of a meter"):
            meter_id(folder, one, rng=SystemRandom())
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        meter_id(tmp_path / "file", one, rng=SystemRandom())


def test_the_folder_of_another_ticket_is_refused_and_stays(tmp_path):
    first = meter_id(tmp_path, ticket(), rng=SystemRandom())
    with pytest.raises(InputError, match=r"ticket beta is .*; give each ticket a folder"):
        meter_id(tmp_path, ticket(license="beta"), rng=SystemRandom())
    assert meter_id(tmp_path, ticket(), rng=SystemRandom()) == first
