"""Releases of keys: who is refused, for which reason, and what the ledger says afterwards."""

import contextlib
import threading
from dataclasses import replace
from datetime import timedelta

import pytest

from broker.brokers import BEGIN, CHIP, CODE, MACHINE, METER, SetTime, Vendor, manifest_for
from bundle.bundles import FOREIGN_SIGNER, KEY, SIGNER, VENDOR
from cloister.attest.attested_client import AttestedClient
from cloister.attest.sealed_messages import as_tensor
from cloister.broker.broker import UNLICENSED_CALLS
from cloister.broker.lease_counter import LeaseCounter
from cloister.broker.licensed_sessions import LicensedSessions
from cloister.broker.release_ledger import LicenseTerms, changing, record_terms
from cloister.broker.release_rules import RELEASES_AN_HOUR
from cloister.bundle.bundle_keys import BundleKey
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.errors import (
    AttestationError,
    BrokerUnavailable,
    ChannelClosedError,
    CloisterError,
    CounterError,
    EncryptionError,
    InputError,
    ReleaseError,
    TicketError,
)
from cloister.tickets.ticket import CounterKind, CounterRule


@pytest.fixture
def vendor(tmp_path):
    return Vendor.make(tmp_path)


def refusals(vendor):
    found = vendor.ledger()
    return dict(found.refusals), [one.message for one in found.last_refusals]


def release(made, *, ticket=None, machine=MACHINE, **changed):
    """Ask a broker that serves for this request alone."""
    with (
        made.serving() as service,
        made.client(service.url, ticket, machine=machine, **changed) as client,
    ):
        return client.release()


def terms(vendor, **chosen):
    with changing(vendor.broker / "releases.sqlite") as change:
        record_terms(change, "clinic", LicenseTerms(**chosen), time=1)


def test_a_released_key_opens_the_bundle_of_its_ticket_and_no_other(tmp_path):
    vendor = Vendor.make(tmp_path, bundles=2)
    keys = release(vendor)
    SealedBundle.open(vendor.bundle(0), keys.bundle_key, vendor=VENDOR)
    stolen = BundleKey(SealedBundle.show(vendor.bundle(1)).bundle_id, keys.bundle_key.key)
    with pytest.raises(EncryptionError, match="does not open"):
        SealedBundle.open(vendor.bundle(1), stolen, vendor=VENDOR)
    assert KEY not in (keys.bundle_key.key, keys.meter_key)


def test_the_ledger_says_what_went_where(vendor):
    keys = release(vendor)
    (entry,) = vendor.releases()
    assert (entry.number, entry.digest) == (keys.entry, keys.digest)
    ticket = vendor.ticket()
    told = {
        "license": "clinic", "bundle": ticket.bundle_id.hex(), "ticket": ticket.digest.hex(),
        "meter": METER.hex(), "format": "insecure-simulated", "measurement": CODE, "chip": CHIP,
        "hardware_rooted": False,
    }  # fmt: skip
    assert told.items() <= entry.fields.items()
    assert refusals(vendor) == ({}, [])


def test_a_release_gives_the_same_keys_again_and_is_counted_again(vendor):
    with vendor.serving() as service:
        with vendor.client(service.url) as client:
            first = client.release()
            client._released = None
            assert client.release().entry == first.entry
        with vendor.client(service.url) as client:
            second = client.release()
    assert second.bundle_key == first.bundle_key
    assert second.meter_key == first.meter_key
    assert [entry.number for entry in vendor.releases()] == [first.entry, second.entry]


def test_keys_of_other_meters_and_licences_differ(tmp_path):
    vendor = Vendor.make(tmp_path, terms=LicenseTerms(meters=2), bundles=2)
    asked = [{}, {"meter": b"m" * 16}, {"ticket": vendor.ticket(license="other")},
             {"ticket": vendor.ticket(1)}]  # fmt: skip
    assert len({release(vendor, **one).meter_key for one in asked}) == len(asked)


@pytest.mark.parametrize(("machine", "text"), [
    (replace(MACHINE, debug=True), "debug: expected false, found true"),
    (replace(MACHINE, measurement="cd" * 32), "measurement: expected abab"),
])  # fmt: skip
def test_a_machine_that_the_policy_refuses_gets_nothing(vendor, machine, text):
    with pytest.raises(AttestationError, match=text):
        release(vendor, machine=machine)
    counts, (message,) = refusals(vendor)
    assert counts == {"evidence": 1}
    assert text in message
    assert vendor.releases() == []


REFUSED = {
    "expired": ({"not_before": 1, "not_after": 2}, "time", TicketError, "expired"),
    "not valid yet": (
        {"not_before": int((BEGIN + timedelta(days=1)).timestamp())}, "time", TicketError,
        "is not valid before",
    ),
    "another bundle": ({"bundle_id": b"b" * 16}, "bundle", ReleaseError, "has no key of it"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_ticket_that_is_not_good_gets_nothing(vendor, name):
    changed, kind, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        release(vendor, ticket=vendor.ticket(**changed))
    counts, (message,) = refusals(vendor)
    assert counts == {kind: 1}
    assert text in message
    assert vendor.releases() == []


def test_a_ticket_of_another_vendor_is_refused_by_the_broker(vendor):
    theirs = FOREIGN_SIGNER.public_key()
    ticket = vendor.ticket(vendor=theirs.public_bytes_raw())
    with pytest.raises(TicketError, match="signature"):
        release(vendor, ticket=ticket, signer=FOREIGN_SIGNER, vendor=theirs)
    assert refusals(vendor)[0] == {"ticket": 1}


def test_a_tampered_ticket_is_refused_by_the_broker(vendor):
    with vendor.serving() as service, vendor.client(service.url) as client:
        signed = client._signed
        for place in (0, 20, len(signed) // 2, len(signed) - 1):
            client._signed = bytes((*signed[:place], signed[place] ^ 1, *signed[place + 1 :]))
            with pytest.raises(TicketError):
                client.release()
    assert refusals(vendor)[0] == {"ticket": 4}
    assert vendor.releases() == []


def test_a_ticket_of_another_broker_is_refused_by_the_broker(vendor):
    with vendor.serving() as service:
        client = vendor.client(service.url, vendor.ticket(broker=b"x" * 32))
        client.broker = vendor.certificate
        with client, pytest.raises(ReleaseError, match="ticket: broker: expected"):
            client.release()
    assert refusals(vendor)[0] == {"broker": 1}


def test_a_runtime_proves_itself_to_the_broker_of_its_ticket_alone(vendor, tmp_path):
    (tmp_path / "other").mkdir()
    other = Vendor.make(tmp_path / "other")
    refused = pytest.raises(BrokerUnavailable, match="another certificate")
    with other.serving() as service, refused:
        vendor.client(service.url).release()
    assert refusals(other)[0] == {}
    with pytest.raises(TicketError, match="names no broker"):
        vendor.client(service.url, vendor.ticket(broker=None))


@pytest.mark.parametrize(("manifest", "text"), [
    (lambda ticket: manifest_for(ticket, bundle="00" * 16), "manifest: bundle: expected"),
    (lambda ticket: manifest_for(ticket, license="other"), "manifest: license: expected clinic"),
    (lambda ticket: manifest_for(ticket, environment={"LD_PRELOAD": "x"}), "found LD_PRELOAD"),
])  # fmt: skip
def test_a_runtime_that_was_started_for_something_else_gets_nothing(vendor, manifest, text):
    with pytest.raises((ReleaseError, AttestationError), match=text):
        release(vendor, manifest=manifest(vendor.ticket()).to_bytes())
    with pytest.raises(AttestationError, match="manifest"):
        release(vendor, manifest=b"{}")
    assert refusals(vendor)[0] == {"runtime": 2}
    assert vendor.releases() == []


def test_a_revoked_licence_gets_nothing_more(vendor):
    with vendor.serving() as service, vendor.client(service.url) as client:
        counter = LeaseCounter(client)
        counter.advance(0, 1)
        terms(vendor, revoked=True)
        with pytest.raises(ReleaseError, match="has revoked it"):
            counter.advance(1, 2)
        with pytest.raises(ReleaseError, match="has revoked it"):
            counter.read()
        with vendor.client(service.url) as late, pytest.raises(ReleaseError, match="has revoked"):
            late.release()
        with vendor.client(service.url, vendor.ticket(license="other")) as other:
            other.release()
        terms(vendor)
        assert counter.read() == 1
    assert refusals(vendor)[0] == {"revoked": 3}


@pytest.mark.parametrize("why", ["revoked", "expired"])
def test_a_session_that_asks_again_gets_no_key_that_it_may_not_have_any_more(vendor, why):
    body = {"meter": METER.hex()}, (as_tensor(vendor.ticket().signed_by(SIGNER)),)
    with vendor.serving() as service, vendor.client(service.url) as client:
        client.release()
        conversation = client._licensed.conversation
        assert len(conversation.call("release", *body).tensors) == 2
        if why == "revoked":
            terms(vendor, revoked=True)
        else:
            vendor.time.forward(days=31)
        with pytest.raises((ReleaseError, TicketError), match=why):
            conversation.call("release", *body)
    assert len(vendor.releases()) == 1


def test_a_licence_runs_on_as_many_chips_as_it_may(tmp_path):
    vendor = Vendor.make(tmp_path, terms=LicenseTerms(chips=1))
    release(vendor)
    other = replace(MACHINE, chip_id="c2" * 32)
    with pytest.raises(ReleaseError, match="expected one of the 1 that have the key"):
        release(vendor, machine=other)
    with pytest.raises(ReleaseError, match="names no chip"):
        release(vendor, machine=replace(MACHINE, chip_id="00" * 32))
    release(vendor)
    terms(vendor, chips=2)
    release(vendor, machine=other)
    assert refusals(vendor)[0] == {"chips": 2}
    assert [entry.fields["chip"][:2] for entry in vendor.releases()] == ["c1", "c1", "c2"]


def test_a_ticket_has_as_many_meters_as_it_may(vendor):
    release(vendor)
    with pytest.raises(ReleaseError, match="expected one of the 1 that its ticket has"):
        release(vendor, meter=b"m" * 16)
    release(vendor, ticket=vendor.ticket(first_serial=50, last_serial=99), meter=b"m" * 16)
    assert refusals(vendor)[0] == {"meters": 1}


def test_releases_without_end_are_refused(vendor):
    with vendor.opened() as broker, broker._ledger.changing() as change:
        for _ in range(RELEASES_AN_HOUR):
            change.note_release("clinic", time=int(BEGIN.timestamp()))
    with pytest.raises(ReleaseError, match="releases an hour"):
        release(vendor)
    vendor.time.forward(seconds=3601)
    release(vendor)
    assert refusals(vendor)[0] == {"rate": 1}


def test_one_session_is_for_one_ticket(vendor):
    with vendor.serving() as service, vendor.client(service.url) as client:
        client.release()
        for changed in ({"_meter": b"m" * 16},
                        {"_signed": vendor.ticket(license="other").signed_by(SIGNER)}):  # fmt: skip
            before = {name: getattr(client, name) for name in changed}
            for name, value in changed.items():
                setattr(client, name, value)
            with pytest.raises(ReleaseError, match="open a session for each"):
                client._keys(client._licensed.conversation)
            for name, value in before.items():
                setattr(client, name, value)
    assert len(vendor.releases()) == 1


def test_nothing_is_released_that_cannot_be_recorded(vendor):
    with vendor.opened() as broker:
        broker._ledger._connection.execute("PRAGMA query_only = ON")
        with broker_serving(broker) as service, vendor.client(service.url) as client:
            with pytest.raises(EncryptionError, match="nothing is released until then"):
                client.release()
            broker._ledger._connection.execute("PRAGMA query_only = OFF")
            client.release()
    assert len(vendor.releases()) == 1


@contextlib.contextmanager
def broker_serving(broker):
    from cloister.base.rng import SystemRandom
    from cloister.broker import broker_service

    with broker_service.serve(broker, listen="127.0.0.1:0", rng=SystemRandom()) as service:
        yield service


def test_a_key_is_read_after_the_commit_alone(vendor, monkeypatch):
    """The commit fails: the caller gets an error, though the rules were met."""
    from cloister.broker import release_ledger

    real, fails = release_ledger._transaction, []

    @contextlib.contextmanager
    def failing(connection):
        with real(connection) as change:
            yield change
            if fails:
                raise EncryptionError("the disk is full")

    monkeypatch.setattr(release_ledger, "_transaction", failing)
    with vendor.serving() as service, vendor.client(service.url) as client:
        fails.append(1)
        with pytest.raises(EncryptionError, match="the disk is full"):
            client.release()
        fails.clear()
    assert vendor.releases() == []


def test_a_broker_without_its_folder_or_certificate(vendor, tmp_path):
    from cloister.attest.clock import Clock
    from cloister.broker.broker import Broker

    with pytest.raises(InputError, match="run `cloister broker init`"):
        Broker(tmp_path / "nothing", clock=Clock(SetTime()))
    (tmp_path / "other").mkdir()
    other = Vendor.make(tmp_path / "other")
    (other.broker / "certificate.pem").replace(vendor.broker / "certificate.pem")
    with pytest.raises(EncryptionError, match="belongs to another certificate"):
        Broker(vendor.broker, clock=Clock(SetTime()))


def test_a_busy_runtime_does_not_stop_another(vendor):
    stop, failed = threading.Event(), []

    def flood(number):
        try:
            name = vendor.ticket(license=f"busy-{number}", last_serial=10**6, quota=10**5)
            with vendor.client(service.url, name) as client:
                counter, at = LeaseCounter(client), 0
                while not stop.is_set():
                    counter.advance(at, at + 1)
                    at += 1
        except CloisterError as error:
            failed.append(error)

    with vendor.serving() as service:
        threads = [threading.Thread(target=flood, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        with vendor.client(service.url) as client:
            counter = LeaseCounter(client)
            for i in range(10):
                counter.advance(i, i + 1)
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert sum(vendor.ledger().counters.values()) > 10


def test_a_clock_that_was_put_back_is_refused(vendor):
    """Within a process and across restarts: an expired ticket stays expired."""
    release(vendor)
    vendor.time.forward(days=31)
    with vendor.serving() as service, vendor.client(service.url) as client:
        with pytest.raises(TicketError, match="expired"):
            client.release()
        vendor.time.forward(days=-31)
        with pytest.raises(AttestationError, match="clock: stepped back"):
            client.release()
    vendor.time.forward(days=-1)
    with pytest.raises(InputError, match="set the clock right"):
        release(vendor)
    assert len(vendor.releases()) == 1


def test_no_licence_takes_all_sessions(vendor):
    with vendor.opened() as broker:
        broker.sessions = LicensedSessions(2)
        with broker_serving(broker) as service, contextlib.ExitStack() as held:
            mine, *theirs = [
                held.enter_context(vendor.client(service.url, vendor.ticket(license=name)))
                for name in ("other", "clinic", "clinic", "clinic")
            ]
            for client in (mine, *theirs):
                client.release()
            ended = [client._licensed.conversation for client in (mine, *theirs)]
            with pytest.raises(ChannelClosedError):
                ended[1].call("counter_read")
            for conversation in (ended[0], *ended[2:]):
                conversation.call("counter_read")
            # It goes on in another session.
            assert LeaseCounter(theirs[0]).read() == 0
            assert len(broker.sessions._live["clinic"]) == 2
        assert dict(broker.sessions._live) == {}


def test_a_session_without_a_licence_ends(vendor):
    with vendor.serving() as service, vendor.client(service.url) as client:
        client.release()
        conversation = client._licensed.conversation
        for _ in range(2 * UNLICENSED_CALLS):
            conversation.call("counter_read")
    with vendor.serving() as service:
        opened = AttestedClient(
            service.url, start=vendor.client(service.url)._prover,
            certificate=vendor.certificate, retry_for_s=0.0,
        )  # fmt: skip
        with opened:
            for _ in range(UNLICENSED_CALLS):
                with pytest.raises(ReleaseError, match="ask for its release first"):
                    opened.call("counter_read")
            with pytest.raises(ChannelClosedError):
                opened.call("counter_read")


# ---- leased counters


@contextlib.contextmanager
def leased(vendor, ticket=None, **changed):
    with vendor.serving() as service, vendor.client(service.url, ticket, **changed) as client:
        yield LeaseCounter(client)


def test_a_leased_counter_goes_up_and_stays(vendor):
    with leased(vendor) as counter:
        assert (counter.kind, counter.identity) == (CounterKind.LEASE, vendor.certificate)
        assert counter.read() == 0
        counter.advance(0, 1)
        counter.advance(1, 4)
        assert counter.read() == 4
    with leased(vendor) as counter:
        assert counter.read() == 4
    assert list(vendor.ledger().counters.values()) == [4]


@pytest.mark.parametrize(("before", "to"), [(0, 1), (1, 2), (3, 4), (2, 2), (2, 1)])
def test_a_leased_counter_moves_forward_from_where_it_is_alone(vendor, before, to):
    with leased(vendor) as counter:
        counter.advance(0, 2)
        with pytest.raises(CounterError, match=f"counter: expected {before}, found 2"):
            counter.advance(before, to)
        assert counter.read() == 2
    assert refusals(vendor)[0] == {"counter": 1}


def test_a_counter_begins_at_its_tickets_start(vendor):
    rule = CounterRule(CounterKind.LEASE, vendor.certificate, 7)
    with leased(vendor, vendor.ticket(counter=rule)) as counter:
        assert counter.read() == 7
        counter.advance(7, 17)
        with pytest.raises(CounterError, match="at most 10 outputs of all its meters, found 11"):
            counter.advance(17, 18)


def test_the_meters_of_a_ticket_share_its_quota(tmp_path):
    vendor = Vendor.make(tmp_path, terms=LicenseTerms(meters=2))
    ticket = vendor.ticket(counter=CounterRule(CounterKind.LEASE, b"", 5))
    with leased(vendor, ticket) as counter:
        counter.advance(5, 12)
    with leased(vendor, ticket, meter=b"m" * 16) as counter:
        counter.advance(5, 8)
        with pytest.raises(CounterError, match="at most 10 outputs of all its meters, found 11"):
            counter.advance(8, 9)


def test_the_same_call_twice_moves_once(vendor):
    with vendor.serving() as service, vendor.client(service.url) as client:
        fields = {"before": 0, "to": 2, "name": "01" * 16}
        for _ in range(3):
            client.call("counter_advance", fields)
        assert LeaseCounter(client).read() == 2
        with pytest.raises(CounterError, match="expected 0, found 2"):
            client.call("counter_advance", fields | {"name": "02" * 16})


def test_a_ticket_of_another_counter_leases_none(vendor):
    ticket = vendor.ticket(counter=CounterRule(CounterKind.TPM, b"t" * 32))
    refused = pytest.raises(CounterError, match="metered by one of kind tpm")
    with leased(vendor, ticket) as counter, refused:
        counter.advance(0, 1)


def test_an_expired_ticket_moves_no_counter(vendor):
    with leased(vendor) as counter:
        counter.advance(0, 1)
        vendor.time.forward(days=31)
        with pytest.raises(TicketError, match="expired"):
            counter.advance(1, 2)


@pytest.mark.parametrize("fields", [
    {"before": -1, "to": 1, "name": "01" * 16},
    {"before": 0, "to": 1 << 80, "name": "01" * 16},
    {"before": 0, "to": "1", "name": "01" * 16},
    {"before": 0, "to": 1, "name": "01" * 15},
    {"before": 0, "to": 1, "name": "xx"},
    {},
])  # fmt: skip
def test_a_message_out_of_bounds_is_refused(vendor, fields):
    from cloister.errors import ProtocolError

    with vendor.serving() as service, vendor.client(service.url) as client:
        with pytest.raises(ProtocolError, match="message: field"):
            client.call("counter_advance", fields)
        assert LeaseCounter(client).read() == 0
