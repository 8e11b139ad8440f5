"""Callers that proved nothing: what they may ask for, and what it costs the broker."""

import contextlib
import os
import time

import numpy as np
import pytest

from broker.brokers import Vendor
from cloister.attest.attested_service import ANSWER, OFFER, RECORD
from cloister.attest.handshake import Prover
from cloister.attest.handshake_messages import Direction
from cloister.attest.pending_offers import offer_digest
from cloister.attest.sealed_messages import as_tensor
from cloister.base.rng import SystemRandom
from cloister.broker import refusal_log
from cloister.broker.release_ledger import KEPT_REFUSALS
from cloister.broker.release_rules import RefusalKind
from cloister.errors import AttestationError, CloisterError, FunctionError
from cloister.wire.https.https_client import CertificateDigest, HttpsClient


@pytest.fixture
def vendor(tmp_path):
    return Vendor.make(tmp_path)


@pytest.fixture
def stranger(vendor):
    """A connection to a broker that serves, without a handshake."""
    with vendor.serving() as service, client_of(vendor, service) as client:
        yield client


def client_of(vendor, service):
    pinned = CertificateDigest(vendor.certificate)
    return contextlib.closing(HttpsClient(service.url, certificate=pinned, retry_for_s=0.0))


@pytest.mark.parametrize("operation", ["release", "counter_read", "counter_advance", RECORD])
def test_a_stranger_may_ask_for_a_handshake_alone(vendor, stranger, operation):
    ticket = as_tensor(vendor.ticket().digest)
    with pytest.raises(FunctionError, match="may ask for a handshake alone"):
        stranger.call(operation, {"meter": "00" * 16}, (ticket,))
    assert vendor.releases() == []


def prover(vendor, **changed):
    given = {
        "attester": vendor.attester(), "manifest": b"manifest", "direction": Direction.CALLER,
        "context": None, "rng": SystemRandom(),
    } | changed  # fmt: skip
    return Prover(given.pop("attester"), given.pop("manifest"), **given)


def offered(stranger):
    return stranger.call(OFFER, {}).array(0, np.uint8, 1).tobytes()


def answer(stranger, offer, data):
    return stranger.call(ANSWER, {}, (as_tensor(offer_digest(offer)), as_tensor(data)))


def test_replayed_evidence_is_refused(vendor, stranger):
    """The answer to one offer is none to the next, and none after a restart."""
    first, second = offered(stranger), offered(stranger)
    data, _ = prover(vendor).answer(first)
    with pytest.raises(AttestationError):
        answer(stranger, second, data)
    answer(stranger, first, data)
    with vendor.serving() as service, client_of(vendor, service) as restarted:
        with pytest.raises(AttestationError):
            answer(restarted, offered(restarted), data)
        with pytest.raises(CloisterError):
            answer(restarted, first, data)
    assert refusals(vendor, 2) == {"evidence": 2}
    assert vendor.releases() == []


def test_evidence_for_one_broker_is_of_no_use_at_another(vendor, stranger, tmp_path):
    """The runtime answers the offer of its own broker alone, whoever passes it on."""
    offer = offered(stranger)
    with pytest.raises(AttestationError, match="context: expected"):
        prover(vendor, context=b"another broker's certificate").answer(offer)


def test_evidence_of_a_callee_is_none_of_a_caller(vendor, stranger):
    with pytest.raises(AttestationError, match="direction: expected"):
        prover(vendor, direction=Direction.CALLEE).answer(offered(stranger))


def test_noise_is_refused_and_counted(vendor, stranger):
    for _ in range(20):
        offer = offered(stranger)
        with pytest.raises(CloisterError):
            answer(stranger, offer, os.urandom(3000))
    refused = refusals(vendor, 20)
    assert refused == {"evidence": 20}
    assert vendor.releases() == []


def refusals(vendor, wanted):
    """What the ledger has counted, once the broker has written it."""
    deadline = time.monotonic() + 30
    while sum(vendor.ledger().refusals.values()) < wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return dict(vendor.ledger().refusals)


def test_refusals_are_written_together(vendor, monkeypatch):
    """However many there are: a stranger does not decide how often the broker writes."""
    monkeypatch.setattr(refusal_log, "WRITE_AFTER_S", 3600.0)
    written = []
    with vendor.opened() as broker:
        ledger, real = broker._ledger, broker._ledger.changing
        monkeypatch.setattr(ledger, "changing", lambda: written.append(1) or real())
        for i in range(1000):
            error = AttestationError(f"reason {i}\x1b[0m" + "x" * 5000)
            broker.refuse(RefusalKind.EVIDENCE, error)
        assert written == []
    found = vendor.ledger()
    assert written == [1]
    assert dict(found.refusals) == {"evidence": 1000}
    assert len(found.last_refusals) == KEPT_REFUSALS
    assert found.last_refusals[-1].message.startswith("reason 999\\x1b")
    assert max(len(one.message) for one in found.last_refusals) <= refusal_log.MAX_REASON_CHARS


def test_refusals_wait_for_a_ledger_that_cannot_be_written(vendor):
    with vendor.opened() as broker:
        broker._ledger._connection.execute("PRAGMA query_only = ON")
        broker.refuse(RefusalKind.EVIDENCE, AttestationError("first"))
        broker._refusals.write()
        assert dict(vendor.ledger().refusals) == {}
        broker._ledger._connection.execute("PRAGMA query_only = OFF")
        broker.refuse(RefusalKind.EVIDENCE, AttestationError("second"))
    assert dict(vendor.ledger().refusals) == {"evidence": 2}
    assert [one.message for one in vendor.ledger().last_refusals] == ["first", "second"]
