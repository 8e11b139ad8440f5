"""The handshake against known answers of a second implementation, and against it while it runs."""

import json
from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attest import handshake_oracle as oracle
from attest.sessions import KEY, MANIFEST, POLICY, PlayedAttester, prover, verifier
from cloister.attest import cmw
from cloister.attest.appraiser import Appraiser
from cloister.attest.handshake import Verifier
from cloister.attest.handshake_messages import Direction
from cloister.attest.key_schedule import reattestation_data
from cloister.base.rng import InsecureSeededRandom

DIRECTIONS = {1: Direction.CALLEE, 2: Direction.CALLER}
VECTORS = json.loads(oracle.VECTORS.read_text())


class Drawn:
    """Csprng that gives bytes out which were drawn before."""

    def __init__(self, *pieces):
        self.data = b"".join(pieces)

    def random_bytes(self, n):
        drawn, self.data = self.data[:n], self.data[n:]
        assert len(drawn) == n
        return drawn


@dataclass(frozen=True)
class Recording(Appraiser):
    """Appraiser that accepts everything, and keeps it."""

    seen: tuple = ()

    @property
    def policy_digest(self):
        return self.seen[0]

    def appraise(self, evidence, *, report_data, manifest=None):
        return evidence, report_data, manifest


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_known_answers(vector):
    direction = DIRECTIONS[vector["direction"]]
    known = {name: bytes.fromhex(v) for name, v in vector.items() if name != "direction"}
    drawn = (known[f"verifier_{name}"] for name in ("x25519", "mlkem", "nonce"))
    appraiser = Recording(POLICY, seen=(known["policy_digest"],))
    asks = Verifier(appraiser, direction=direction, context=known["context"], rng=Drawn(*drawn))
    assert asks.offer() == known["offer"]
    channel = asks.accept(known["answer"])
    assert channel.appraisal == (known["evidence"], known["report_data"], known["manifest"])
    assert channel.confirmation == known["verifier_confirmation"]
    assert channel.seal(known["message"]) == known["verifier_record"]
    assert channel.open(known["prover_record"]) == known["message"]
    assert channel.exporter("a label") == known["exported"]
    assert reattestation_data(channel._exporter, bytes(32)) == known["reattest"]


def test_there_are_vectors_of_both_directions():
    assert {vector["direction"] for vector in VECTORS} == {1, 2}


@pytest.mark.parametrize("code", DIRECTIONS)
def test_our_prover_and_their_verifier_agree(code):
    x_private, seed = bytes(range(32)), bytes(range(64))
    attester = PlayedAttester()
    offered = oracle.offer(
        x_private, seed, bytes(32),
        direction=code, padding=0, policy_digest=bytes(32), context=b"about",
    )  # fmt: skip
    answer, channel = prover(DIRECTIONS[code], attester=attester).answer(offered)
    evidence, manifest, keys = oracle.accept(offered, x_private, seed, answer)
    assert attester.asked == [keys.th]
    assert manifest == MANIFEST
    assert cmw.unwrap(evidence)[1] == attester.machine.evidence(keys.th, key=KEY)
    sealed = answer[oracle.FIXED : -97]
    channel.confirm(oracle.record(keys.verifier, 0, oracle.CONFIRMATION, keys.confirmed(sealed)))
    assert channel.open(oracle.record(keys.verifier, 1, oracle.DATA, b"ask")) == b"ask"
    assert channel.seal(b"told") == oracle.record(keys.prover, 1, oracle.DATA, b"told")
    assert channel.exporter("x") == keys.exporter(b"x")
    fresh = channel.prove(bytes(32))
    assert attester.asked[1:] == [keys.reattest(bytes(32))]
    assert cmw.unwrap(fresh)[1]


@pytest.mark.parametrize("code", DIRECTIONS)
def test_their_prover_and_our_verifier_agree(code):
    attester = PlayedAttester()
    asks = verifier(DIRECTIONS[code])
    answer, keys = oracle.answer(
        asks.offer(), bytes(range(1, 33)), bytes(32),
        lambda th, _: cmw.wrap(attester.format, attester.evidence(th)), MANIFEST,
    )  # fmt: skip
    channel = asks.accept(answer)
    assert channel.appraisal.evidence.report_data == keys.th
    assert channel.exporter("x") == keys.exporter(b"x")


@pytest.mark.parametrize("seed", range(20))
def test_the_oracle_computes_x25519(seed):
    private = InsecureSeededRandom(seed).random_bytes(32)
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    assert oracle.x25519(private, oracle.BASE) == public
