"""Every secret byte string of a whole run occurs in no message and in no file where it may not be.

A vendor's broker, a runtime that serves a bundle under a ticket, and a customer, with someone who
ends all TLS connections between them. The keys of the conversations are taken where they are made.
"""

from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import nets
from broker.brokers import METER, VENDOR
from bundle.bundles import KEY, SIGNER
from cloister.attest import handshake
from cloister.attest.clock import SYSTEM_CLOCK
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.base.identity import create_certificate
from cloister.base.rng import SystemRandom
from cloister.broker import broker_folder, broker_service
from cloister.broker.broker import Broker
from cloister.broker.broker_client import BrokerClient
from cloister.broker.broker_folder import METER_KEY
from cloister.broker.lease_counter import LeaseCounter
from cloister.broker.release_ledger import LicenseTerms
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.examples.hidden_search import HiddenWords
from cloister.examples.replaying_proxy import ReplayingProxy
from cloister.tickets.receipt import receipt_signer
from cloister.tickets.receipt_files import save_receipt
from cloister.tickets.ticket import CounterKind, CounterRule, OutputMode, Ticket
from cloister.tickets.ticket_meter import TicketMeter
from cloister.trusted.hosted_session import BundleKeys
from cloister.trusted.runtime_service import ServedBundle
from cloister.trusted.session import Session
from trusted.modules import planned_end
from trusted.runtimes import MEASUREMENT, Played

FEEDS = nets.samples(nets.chain(), 3)
LEAST = 16
"""Bytes that do not occur by chance."""
MADE = ("conversation_keys", "handshake_key")


def pieces(data):
    """Parts of 16 bytes, of which none is all zeros or one number again and again."""
    parts = (bytes(data[at : at + LEAST]) for at in range(0, len(data) - LEAST + 1, LEAST))
    return [part for part in parts if len(set(part)) > 4]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with all that was secret in it, the messages, and the folders of the parties."""
    folder = tmp_path_factory.mktemp("run")
    session_keys = []
    with ExitStack() as stack:
        for name in MADE:
            made = getattr(handshake, name)
            stack.enter_context(patch.object(handshake, name, _noted(made, session_keys)))
        yield _run(folder, stack, session_keys)


def _noted(make, kept):
    """The function, whose secret arguments and results are kept."""

    def noted(*given):
        found = make(*given)
        kept.append(given[0])
        if isinstance(found, bytes):
            kept.append(found)
        else:
            kept.extend((found.verifier, found.prover, found.exporter))
        return found

    return noted


def _run(folder, stack, session_keys):
    rng, model = SystemRandom(), planned_end(nets.chain())
    vendor, operator, customer, network = (
        folder / name for name in ("vendor", "operator", "customer", "network")
    )
    for one in (vendor, operator, customer, network):
        one.mkdir()
    header = SealedBundle.seal(
        operator / "net.bundle", model.plan, model.module, content_key=KEY, signer=SIGNER,
        version=1, rng=rng,
    )  # fmt: skip
    manifest = RuntimeManifest("1.0", (), bundle=header.bundle_id.hex(), license="clinic",
                               vendor=VENDOR.public_bytes_raw().hex())  # fmt: skip
    machine = Played(folder / "machine", manifest=manifest)
    broker = _broker(vendor, operator, machine, header, stack)
    create_certificate(network, "a network")
    to_broker = stack.enter_context(ReplayingProxy(broker.url, folder=vendor / "broker"))
    ticket = _ticket(header, broker.certificate)
    client = stack.enter_context(
        BrokerClient(
            to_broker.url, ticket.signed_by(SIGNER), vendor=VENDOR, attester=machine.attester,
            manifest=manifest.to_bytes(), meter=METER, rng=rng,
        )
    )  # fmt: skip
    released = client.release()
    meter = TicketMeter.open(
        operator / "meter", ticket, bundle=header, key=released.meter_key,
        counter=LeaseCounter(client), clock=SYSTEM_CLOCK, rng=rng,
    )  # fmt: skip
    keys = BundleKeys(
        operator / "net.bundle", header.bundle_id, released.bundle_key.key,
        VENDOR.public_bytes_raw(), "onnxruntime", None,
    )  # fmt: skip
    service = stack.enter_context(machine.serving(bundle=ServedBundle(model.plan, keys, meter)))
    to_runtime = stack.enter_context(ReplayingProxy(service.url, folder=network))
    with Session(model.plan, trusted=to_runtime.url, appraisal=machine.policy()) as session:
        result = session.run(FEEDS)
    save_receipt(customer, result.receipt, result.opening)
    return SimpleNamespace(
        folder=folder, result=result, model=model, header=header, ticket=ticket,
        messages=[*to_broker.messages, *to_runtime.messages],
        keys={
            "content key": KEY,
            "bundle key": released.bundle_key.key,
            "meter key": released.meter_key,
            "key of all meters": (vendor / "broker" / METER_KEY).read_bytes(),
            "receipt signer": receipt_signer(released.meter_key, ticket).private_bytes_raw(),
        },
        session_keys=session_keys,
    )  # fmt: skip


def _broker(vendor, operator, machine, header, stack):
    (vendor / "content.key").write_bytes(KEY)
    (vendor / "content.key").chmod(0o600)
    pem = VENDOR.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (vendor / "vendor.pub").write_bytes(pem)
    machine.save_policy("policy.toml", MEASUREMENT)
    certificate = broker_folder.create(
        vendor / "broker", vendor=vendor / "vendor.pub", policy=machine.folder / "policy.toml",
        bundles=[(operator / "net.bundle", vendor / "content.key")], collateral=(),
        terms=LicenseTerms(), now=SYSTEM_CLOCK.now(), rng=SystemRandom(),
    )  # fmt: skip
    opened = Broker(vendor / "broker", clock=SYSTEM_CLOCK)
    stack.callback(opened.close)
    service = broker_service.serve(opened, listen="127.0.0.1:0", rng=SystemRandom())
    stack.enter_context(service)
    return SimpleNamespace(url=service.url, certificate=certificate)


def _ticket(header, certificate):
    now = int(SYSTEM_CLOCK.now().timestamp())
    return Ticket(
        license="clinic", bundle_id=header.bundle_id, vendor=VENDOR.public_bytes_raw(),
        first_serial=1, last_serial=10, quota=10, not_before=now - 60, not_after=now + 3600,
        outputs=OutputMode.LABEL, top=None, broker=certificate,
        counter=CounterRule(CounterKind.LEASE, certificate),
    )  # fmt: skip


def files(folder, *, without=()):
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(path.is_relative_to(folder / w) for w in without)]


def where(secret, run, *, without=()):
    """Where a secret occurs, in bytes and in hexadecimal digits."""
    forms = (secret, secret.hex().encode(), secret.hex().upper().encode())
    found = [f"message {i}" for i, one in enumerate(run.messages) if any(f in one for f in forms)]
    for path in files(run.folder, without=without):
        data = path.read_bytes()
        found += [str(path.relative_to(run.folder))] if any(f in data for f in forms) else []
    return found


def test_the_run_was_a_whole_one(run):
    assert run.result.report.inputs == 3
    assert run.result.receipt.receipt.count == 3
    assert len(run.messages) > 10
    assert len(files(run.folder)) > 10


def test_keys_are_with_the_vendor_alone(run):
    assert len(set(run.keys.values())) == 5
    for name, key in run.keys.items():
        assert where(key, run, without=("vendor",)) == [], name
    # The search finds them where they belong.
    assert where(run.keys["content key"], run) == ["vendor/content.key"]
    assert any("vendor/broker" in path for path in where(run.keys["bundle key"], run))


def test_keys_of_conversations_are_nowhere(run):
    kept = {bytes(key) for key in run.session_keys if len(set(key)) > 4}
    # Two conversations, each with secrets, a handshake key, two streams and an exporter, by both.
    assert len(kept) >= 10
    for key in kept:
        for part in pieces(key):
            assert where(part, run) == []


def test_inputs_scores_and_hidden_weights_are_nowhere(run):
    with Session(run.model.plan, modules=_module(run), engine="onnxruntime") as session:
        plain = session.run(FEEDS)
    secrets = [part for value in FEEDS.values() for part in pieces(value.tobytes())]
    scores = [part for value in plain.outputs.values() for part in pieces(value.tobytes())]
    assert len(secrets) > 100
    assert scores
    for part in (*secrets, *scores):
        assert where(part, run) == []
    weights = HiddenWords(run.model.hidden, run.model.module.weights)
    parts = [*run.messages, *(path.read_bytes() for path in files(run.folder))]
    assert len(weights.words) > 10
    assert weights.search("everywhere", parts).hidden_words == 0
    builds = run.model.module.builds.values()
    assert weights.search("the module", builds).hidden_words > 10


def _module(run):
    (node,) = run.model.plan.modules
    return {node.node: run.model.module}


def test_what_opens_the_receipt_is_with_the_customer_alone(run):
    """Who has the opening can try all labels until one fits the receipt."""
    places = where(run.result.opening, run)
    assert places
    assert all(place.startswith("customer/") for place in places)
