"""Hostile handshakes, records, and bodies inside of records: either side may be the attacker."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import cbor2
import numpy as np

from attest.sessions import PlayedAttester, channels, echo, prover, verifier
from cloister.attest import cmw, handshake
from cloister.attest.attested_conversation import AttestedConversation
from cloister.attest.attested_service import ANSWER, ATTEST, OFFER, AttestedService
from cloister.attest.handshake_messages import Direction, Offer, ReceivedAnswer
from cloister.attest.record_padding import Padding
from cloister.attest.record_stream import HEADER
from cloister.attest.sealed_messages import CHALLENGE, CHECK, PROVE, as_tensor
from cloister.base.identity import create_certificate
from cloister.wire.https.bodies import PRELUDE, Body, decode, encode
from fuzz.bounds import FindingError
from fuzz.case import Case, Maker
from fuzz.mutate import DEEP, mutated_bytes, mutated_json
from fuzz.structures import mutated_cbor, parts_changed, pick, spliced, with_odd_length

CALLEE = Direction.CALLEE


@contextmanager
def handshakes(folder: Path) -> Iterator[Maker]:
    """Cases; a service's certificate is kept in a folder."""
    create_certificate(folder, "fuzzed service")
    kinds = (
        _offer, _offer_parts, _answer, _answer_parts, _proof, _proof, _confirmation, _records,
        _reordered, _inside, _inside, _fresh_evidence, _stranger,
    )  # fmt: skip
    with (
        AttestedService(
            "127.0.0.1:0", folder=folder, start=prover, operations=echo
        ) as callee,
        AttestedService(
            "127.0.0.1:0", folder=folder, start=lambda: verifier(Direction.CALLER), operations=echo
        ) as caller,
    ):  # fmt: skip

        def case(rng: np.random.Generator) -> Case:
            kind = pick(rng, kinds)
            data, run = kind(rng) if kind is not _stranger else _stranger(rng, callee, caller)
            return Case(kind.__name__.strip("_"), data, run)

        yield case


class _Log:
    """A service hides its own faults from callers, but not from this."""

    def line(self, text: str) -> None:
        """See QuietLog."""
        if not text.startswith("a conversation has ended"):
            raise FindingError("fault of the service", text)


Made = tuple[bytes, Callable[[], object]]


# ---- the messages of a handshake


def _offer(rng) -> Made:
    one, other = verifier().offer(), verifier(pick(rng, list(Direction)), context=b"x").offer()
    data = mutated_bytes(one, rng) if rng.integers(0, 2) else spliced(one, other, rng)
    return data, lambda: prover().answer(data)


def _offer_parts(rng) -> Made:
    """Fields of any value, in an offer that can be decoded."""
    offer = Offer.decode(verifier().offer())
    points = (bytes(32), b"\1" + bytes(31), b"\xff" * 32, b"\xec" + b"\xff" * 30 + b"\x7f",
              rng.bytes(32))  # fmt: skip
    changes = {
        "direction": pick(rng, list(Direction)),
        "padding": pick(rng, list(Padding)),
        "suites": tuple(int(n) for n in rng.integers(0, 4, int(rng.integers(0, 17)))),
        "x25519": pick(rng, points),
        "mlkem": pick(rng, (bytes(1184), b"\xff" * 1184, rng.bytes(1184))),
        "context": rng.bytes(int(rng.integers(0, 2000))),
    }
    name = pick(rng, list(changes))
    data = replace(offer, **{name: changes[name]}).encode()
    return data, lambda: prover().answer(data)


def _answer(rng) -> Made:
    """Bytes changed on the way: never accepted."""
    side = verifier()
    good, _ = prover().answer(side.offer())
    other, _ = prover().answer(verifier().offer())
    data = mutated_bytes(good, rng) if rng.integers(0, 3) else spliced(good, other, rng)
    return data, lambda: _refused(data != good, lambda: side.accept(data))


def _answer_parts(rng) -> Made:
    """Parts of another answer, changed keys, or the answer to another offer: never accepted."""
    side, another = verifier(), verifier()
    answers = [prover().answer(one.offer())[0] for one in (side, another)]
    good, other = (_parts(ReceivedAnswer.decode(one)) for one in answers)
    made = parts_changed(good, other, rng)
    data = b"".join(made)
    return data, lambda: _refused(data != answers[0], lambda: side.accept(data))


def _parts(answer: ReceivedAnswer) -> list[bytes]:
    clear = answer.clear
    head = clear.encode()[:7]
    return [head, clear.nonce, clear.x25519, clear.mlkem, answer.sealed, answer.confirmation]


def _proof(rng) -> Made:
    """A prover who seals damaged evidence or another manifest: it has all keys."""
    side = verifier()
    kinds: tuple[Callable[[bytes], bytes], ...] = (
        lambda record: mutated_cbor(record, rng),
        lambda record: mutated_bytes(record, rng),
        lambda record: cmw.wrap(*_with_odd_evidence(record, rng)),
        lambda record: cbor2.dumps([cbor2.CBORTag(35, "(?i)" + "[\0-\U0010ffff]" * 5000), record]),
    )
    damage = pick(rng, kinds)
    odd_manifest = rng.integers(0, 4) == 0
    encode_proof = handshake.encode_proof

    def encoded(evidence: bytes, manifest: bytes) -> bytes:
        made = damage(evidence)
        if odd_manifest:
            return with_odd_length(encode_proof(made, mutated_bytes(manifest, rng)), [(0, 4)], rng)
        return encode_proof(made, manifest)

    def run() -> None:
        with patch.object(handshake, "encode_proof", encoded):
            answer, _ = prover().answer(side.offer())
        side.accept(answer)

    return side.offer(), run


def _with_odd_evidence(record: bytes, rng) -> tuple[object, bytes]:
    kind, evidence = cmw.unwrap(record)
    return pick(rng, (kind, kind, *type(kind))), mutated_json(evidence, rng)


def _confirmation(rng) -> Made:
    asks, other = verifier(), verifier()
    answer, proves = prover().answer(asks.offer())
    judges = asks.accept(answer)
    another, _ = prover().answer(other.offer())
    foreign = other.accept(another).confirmation
    good = judges.confirmation
    data = pick(rng, (mutated_bytes(good, rng), foreign, spliced(good, foreign, rng)))
    return data, lambda: _refused(data != good, lambda: proves.confirm(data))


# ---- records


def _records(rng) -> Made:
    """A record that was changed, or is of another conversation or direction."""
    judges, proves = channels(padding=pick(rng, list(Padding)))
    foreign, _ = channels()
    good, other = bytes(judges.seal(rng.bytes(300))), bytes(foreign.seal(rng.bytes(300)))
    back = bytes(proves.seal(b"back"))
    header = [(0, 1), (1, 8), (9, 8)]
    data = pick(rng, (
        mutated_bytes(good, rng), other, back, spliced(good, other, rng),
        good[: HEADER.size] + other[HEADER.size :],
        with_odd_length(good[::-1], header, rng)[::-1], b"", good * 2,
    ))  # fmt: skip
    return data, lambda: _refused(data != good, lambda: proves.open(data))


def _reordered(rng) -> Made:
    """Records left out, repeated, or in another order."""
    judges, proves = channels()
    sent = [bytes(judges.seal(bytes([i]) * i)) for i in range(6)]
    order = [int(i) for i in rng.integers(0, 6, 6)]
    right = next((i for i, place in enumerate(order) if place != i), 6)

    def run() -> None:
        for place in order[:right]:
            proves.open(sent[place])
        if right < len(order):
            _refused(True, lambda: proves.open(sent[order[right]]))

    return b"".join(sent[place] for place in order), run


def _inside(rng) -> Made:
    """A caller whose handshake was accepted, and who seals whatever it likes."""
    judges, proves = channels()
    conversation = AttestedConversation(
        proves, echo, closed=lambda channel: None, reattest_s=pick(rng, (None, 60.0)), log=_Log()
    )
    conversation.begin()
    operation = pick(rng, ("echo", "context", PROVE, CHECK, CHALLENGE, "", "\ud800", "x" * 999))
    tensors = (as_tensor(rng.bytes(int(rng.integers(1, 80)))),) * int(rng.integers(0, 3))
    fields = {"operation": operation.encode(errors="replace").decode(), "fields": {"a": {"b": [1]}}}
    body = encode(Body(fields, tensors))
    body = _with_odd_fields(body, rng) if rng.integers(0, 2) else mutated_bytes(body, rng)
    return body, lambda: judges.open(conversation.exchange(memoryview(judges.seal(body))))


def _with_odd_fields(body: bytes, rng) -> bytes:
    """The body with other fields, in the one form that is read."""
    *front, length, payload = PRELUDE.unpack_from(body)
    end = PRELUDE.size + length
    text = mutated_json(body[PRELUDE.size : end], rng)
    if text is not DEEP:
        text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode()
    return PRELUDE.pack(*front, len(text), payload) + text + body[end:]


def _fresh_evidence(rng) -> Made:
    """Fresh evidence that was changed, or answers another nonce."""
    judges, proves = channels()
    asked = judges.challenge()
    if rng.integers(0, 4) == 0:
        nonce = pick(rng, (b"", asked[:-1], asked * 2, rng.bytes(32)))
        return nonce, lambda: judges.check(proves.prove(nonce))
    good = proves.prove(asked)
    stale = cmw.wrap(PlayedAttester().format, PlayedAttester().evidence(rng.bytes(64)))
    data = pick(rng, (mutated_bytes(good, rng), mutated_cbor(good, rng), stale))
    return data, lambda: _refused(data == stale, lambda: judges.check(data))


# ---- a service that strangers call


def _stranger(rng, callee: AttestedService, caller: AttestedService) -> Made:
    """What may be sent without a conversation."""
    offer = verifier().offer()
    operation, service = pick(rng, (
        (ATTEST, callee), (OFFER, caller), (ANSWER, caller), (ATTEST, caller), (OFFER, callee),
    ))  # fmt: skip
    answer, _ = prover(Direction.CALLER).answer(verifier(Direction.CALLER).offer())
    sent = mutated_bytes(pick(rng, (offer, answer, rng.bytes(64))), rng)
    arrays = (
        as_tensor(sent), as_tensor(rng.bytes(32)), np.zeros((2, 2), np.float32),
        np.zeros(0, np.uint8), np.zeros((), np.int64),
    )  # fmt: skip
    tensors = tuple(pick(rng, arrays) for _ in range(int(rng.integers(0, 4))))
    data = encode(Body({}, tensors))

    def run() -> object:
        return service._stranger_route(operation).handle(decode(data)).run()

    return data, run


def _refused(must: bool, run: Callable[[], object]) -> None:
    """Run what has to be refused."""
    run()
    if must:
        raise FindingError("accepted", "what was changed")
