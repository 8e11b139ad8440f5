"""Both sides of attested conversations, on simulated evidence."""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.attest.appraiser import Appraiser
from cloister.attest.attested_conversation import Operation
from cloister.attest.clock import Clock
from cloister.attest.handshake import Prover, Verifier
from cloister.attest.handshake_messages import Direction
from cloister.attest.policy import Policy
from cloister.attest.simulated import SimulatedMachine
from cloister.attest.verified_evidence import Format
from cloister.base.rng import SystemRandom
from cloister.wire.https.bodies import Body

CODE = "ab" * 32
MANIFEST = b'{"program": "a runtime"}'
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
POLICY = Policy.of({"insecure-simulated": {"measurements": [CODE]}})
RNG = SystemRandom()


@dataclass
class PlayedAttester:
    """Attester (cloister/attest/attester.py) of a machine in memory."""

    machine: SimulatedMachine = field(default_factory=lambda: SimulatedMachine(CODE))
    name: str = "played"
    format: Format = Format.SIMULATED
    asked: list = field(default_factory=list)

    def evidence(self, report_data):
        self.asked.append(report_data)
        return self.machine.evidence(report_data, key=KEY)


def verifier(direction=Direction.CALLEE, *, policy=POLICY, rng=RNG, clock=None, **options):
    appraiser = Appraiser(policy, clock=clock or Clock())
    return Verifier(appraiser, direction=direction, rng=rng, **options)


def prover(direction=Direction.CALLEE, *, attester=None, manifest=MANIFEST, rng=RNG, **options):
    return Prover(attester or PlayedAttester(), manifest, direction=direction, rng=rng, **options)


def channels(direction=Direction.CALLEE, *, manifest=MANIFEST, **options):
    """The verifier's and the prover's end of a conversation."""
    asks = verifier(direction, **options)
    answer, proves = prover(direction, manifest=manifest).answer(asks.offer())
    judges = asks.accept(answer)
    proves.confirm(judges.confirmation)
    return judges, proves


def echo(channel):
    """Operations of a service for tests."""
    return {
        "echo": Operation(1 << 20, lambda body: body),
        "context": Operation(
            1 << 10,
            lambda _: Body(
                {"context": channel.context.hex(), "label": channel.exporter("x").hex()}
            ),
        ),
    }
