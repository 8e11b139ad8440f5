"""Attacks on whole attested conversations, over HTTPS, by whoever carries or serves them."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from attest.sessions import CODE, PlayedAttester, echo, prover, verifier
from cloister.attest import cmw, handshake
from cloister.attest.appraiser import Appraiser
from cloister.attest.attested_client import AttestedClient
from cloister.attest.attested_service import ATTEST, AttestedService
from cloister.attest.clock import Clock
from cloister.attest.handshake import Prover, Verifier
from cloister.attest.handshake_messages import Direction, Offer
from cloister.attest.policy import Policy
from cloister.attest.record_padding import Padding
from cloister.attest.sealed_messages import as_tensor
from cloister.attest.simulated import SimulatedMachine
from cloister.base.identity import create_certificate
from cloister.base.rng import SystemRandom
from cloister.errors import AttestationError, ChannelClosedError, VerificationError
from cloister.examples.replaying_proxy import ReplayingProxy
from cloister.wire.https.bodies import Body, decode

CALLEE, CALLER = Direction.CALLEE, Direction.CALLER
OWN_CHIP, SIBLING_CHIP = "aa" * 64, "bb" * 64
OWN = PlayedAttester(SimulatedMachine(CODE, chip_id=OWN_CHIP))
SIBLING = PlayedAttester(SimulatedMachine(CODE, chip_id=SIBLING_CHIP))
"""A genuine machine of the same code, which the attacker has."""


@pytest.fixture
def folder(tmp_path):
    create_certificate(tmp_path, "attested service")
    return tmp_path


@pytest.fixture
def running():
    with ExitStack() as stack:
        yield stack.enter_context


def service(folder, side=prover, **options):
    return AttestedService("127.0.0.1:0", folder=folder, start=side, operations=echo, **options)


def client(url, side=verifier):
    return AttestedClient(url, start=side, retry_for_s=0)


def policy(**fields):
    return Policy.of({"insecure-simulated": {"measurements": [CODE], **fields}})


@dataclass
class Recorded(PlayedAttester):
    """An attacker without a machine, who shows evidence that one gave to somebody."""

    shown: bytes = b""

    def evidence(self, report_data):
        return self.shown


@dataclass(frozen=True)
class Eavesdropper(Appraiser):
    """Keeps the evidence that it is shown, in the clear."""

    kept: list = field(default_factory=list)

    def appraise(self, evidence, **given):
        self.kept.append(cmw.unwrap(evidence)[1])
        return super().appraise(evidence, **given)


def eavesdropper():
    return Eavesdropper(policy(), clock=Clock())


def judging(appraiser, direction=CALLEE):
    return Verifier(appraiser, direction=direction, rng=SystemRandom())


def evidence_for_the_attacker(url):
    """Genuine evidence of a service: any caller gets it, bound to its own offer."""
    appraiser = eavesdropper()
    client(url, lambda: judging(appraiser)).close()
    (shown,) = appraiser.kept
    return shown


# ---- relay through a genuine other machine


def test_a_relay_through_a_genuine_other_machine(folder, running):
    """Who listed no chips gets a sibling of the machine, which keeps the code's promises."""
    sibling = running(service(folder, lambda: prover(attester=SIBLING)))
    relay = running(ReplayingProxy(sibling.url, folder=folder))
    with client(relay.url, lambda: verifier(policy=policy())) as calling:
        assert calling.appraisal.evidence.claims["chip_id"] == bytes.fromhex(SIBLING_CHIP)
    with pytest.raises(AttestationError, match=r"chip_id: expected aaaa.*, found bbbb"):
        client(relay.url, lambda: verifier(policy=policy(chip_ids=[OWN_CHIP])))


def test_a_relay_gives_the_attacker_no_key_of_the_conversation(folder, running):
    """The attacker answers himself, with evidence that the sibling made for another offer."""
    sibling = running(service(folder, lambda: prover(attester=SIBLING)))
    shown = evidence_for_the_attacker(sibling.url)
    attacker = running(service(folder, lambda: prover(attester=Recorded(shown=shown))))
    with pytest.raises(AttestationError, match=r"report data: expected .*another conversation"):
        client(attacker.url)


# ---- replayed evidence


@pytest.mark.parametrize("restarted", [False, True])
def test_replayed_evidence(folder, running, restarted):
    serving = service(folder)
    relay = running(ReplayingProxy(serving.url, folder=folder))
    with client(relay.url) as calling:
        assert calling.call("echo", {"n": 1}).number("n") == 1
    if restarted:
        # Neither side has anything left of the first conversation.
        serving.close()
        serving = service(folder)
    running(serving)
    relay.replaying = True
    with pytest.raises(AttestationError, match="answers another offer"):
        client(relay.url)
    assert relay.messages[-1] == relay.messages[1], "it was not replayed"


@pytest.mark.parametrize("restarted", [False, True])
def test_evidence_that_was_recorded_in_the_clear(folder, running, restarted):
    genuine = service(folder)
    shown = evidence_for_the_attacker(genuine.url)
    genuine.close()
    attacker = running(service(folder, lambda: prover(attester=Recorded(shown=shown))))
    if restarted:
        attacker.close()
        attacker = running(service(folder, lambda: prover(attester=Recorded(shown=shown))))
    for _ in range(2):
        with pytest.raises(AttestationError, match="report data: expected"):
            client(attacker.url)


def test_records_of_an_earlier_conversation(folder, running):
    serving = running(service(folder))
    relay = running(ReplayingProxy(serving.url, folder=folder))
    with client(relay.url) as calling:
        calling.call("echo", {"n": 1})
    old = decode(relay.messages[3]).array(0, np.uint8, 1).tobytes()
    with client(relay.url) as calling:
        calling.call("echo", {"n": 2})
        with pytest.raises(VerificationError, match="record: "):
            calling.channel.open(old)


# ---- evidence of the other direction


def test_client_evidence_offered_as_the_servers(folder, running):
    """A rogue broker has runtimes prove themselves to it, and would pass for one of them."""
    runtime = prover(CALLER, attester=OWN)
    victim = verifier(CALLEE)
    # (1) The victim's own offer, shown to the runtime as the broker's.
    with pytest.raises(AttestationError, match="direction: expected caller-attests"):
        runtime.answer(victim.offer())
    # (2) The same offer with the direction that the runtime answers.
    turned = replace(Offer.decode(victim.offer()), direction=CALLER).encode()
    answer, _ = runtime.answer(turned)
    with pytest.raises(AttestationError, match="answers another offer or direction"):
        victim.accept(answer)


def test_client_evidence_in_an_answer_of_the_attackers(folder, running):
    """The runtime's evidence in the clear, in an answer that the attacker makes for a customer."""
    appraiser = eavesdropper()
    rogue = running(service(folder, lambda: judging(appraiser, CALLER)))
    client(rogue.url, lambda: prover(CALLER, attester=OWN)).close()
    (shown,) = appraiser.kept
    attacker = running(service(folder, lambda: prover(attester=Recorded(shown=shown))))
    with pytest.raises(AttestationError, match="report data: expected"):
        client(attacker.url)


# ---- what is changed on the way


class Changing(ReplayingProxy):
    """Changes the offers that it passes on."""

    change = staticmethod(lambda offer: offer)

    def _pass_on(self, token, operation, body):
        if operation == ATTEST:
            offer = body.array(0, np.uint8, 1).tobytes()
            body = Body({}, (as_tensor(self.change(offer)),))
        return super()._pass_on(token, operation, body)


def _stripped(offer):
    found = Offer.decode(offer)
    assert len(found.suites) == 2
    return replace(found, suites=found.suites[1:]).encode()


def test_a_suite_stripped_from_the_offer(folder, running, monkeypatch):
    """Both know a better suite; whoever removes it from the offer is noticed."""
    (known,) = handshake.SUITES
    monkeypatch.setattr(handshake, "SUITES", (0x00FF, known))
    monkeypatch.setattr(Prover, "answer", _answers_the_last_suite(Prover.answer, known))
    serving = running(service(folder))
    relay = running(Changing(serving.url, folder=folder))
    with client(relay.url) as calling:
        calling.call("echo")
    relay.change = _stripped
    with pytest.raises(AttestationError, match="was changed, or answers another offer"):
        client(relay.url)


def _answers_the_last_suite(answer, known):
    """There is one suite in this version: the better one is only a number in the offer."""

    def answered(self, offer):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(handshake, "SUITES", (known,))
            return answer(self, offer)

    return answered


def test_a_padding_profile_taken_from_the_offer(folder, running):
    serving = running(service(folder))
    relay = running(Changing(serving.url, folder=folder))
    relay.change = lambda offer: replace(Offer.decode(offer), padding=Padding.NONE).encode()
    with pytest.raises(AttestationError, match="was changed, or answers another offer"):
        client(relay.url, lambda: verifier(padding=Padding.BLOCKS))


# ---- a policy that has changed


def test_a_stale_policy(folder, running):
    """The vendor's patch is out: what was accepted before is not, and the conversation ends."""
    serving = running(service(folder, lambda: prover(attester=OWN)))
    calling = running(client(serving.url, lambda: verifier(policy=policy())))
    calling.call("echo")
    patched = Appraiser(policy(min_svn=2), clock=Clock())
    with pytest.raises(AttestationError, match="svn: expected at least 2, found 1"):
        calling.reattest(patched)
    with pytest.raises(ChannelClosedError):
        calling.call("echo")
    with pytest.raises(AttestationError, match="svn: expected at least 2"):
        client(serving.url, lambda: verifier(policy=policy(min_svn=2)))


def test_an_answer_to_the_offer_of_an_older_policy(folder, running):
    """The offer names the policy: evidence for a lax one is none for the strict one."""
    lax, strict = policy(), policy(min_svn=2)
    assert lax.digest != strict.digest
    side = verifier(policy=strict)
    older = replace(Offer.decode(side.offer()), policy_digest=lax.digest).encode()
    answer, _ = prover(attester=PlayedAttester(SimulatedMachine(CODE, svn=9))).answer(older)
    with pytest.raises(AttestationError, match="answers another offer"):
        side.accept(answer)
