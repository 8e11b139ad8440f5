"""The handshake of an attested conversation: a verifier offers, a prover answers.

Who calls whom is the direction, which both are given. The security argument is in
docs/protocols/attested-session.md.
"""

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.attest import cmw
from cloister.attest.appraiser import Appraiser
from cloister.attest.attester import Attester
from cloister.attest.channel import AttestedChannel, handshake_hash
from cloister.attest.check_tree import refused
from cloister.attest.handshake_messages import (
    MAX_CONTEXT_BYTES,
    MAX_MESSAGE_BYTES,
    NONCE_BYTES,
    SUITES,
    X25519_BYTES,
    ClearAnswer,
    Direction,
    Offer,
    ReceivedAnswer,
    decode_proof,
    encode_proof,
)
from cloister.attest.key_schedule import conversation_keys, handshake_key, transcript_hash
from cloister.attest.record_padding import Padding
from cloister.base.process_identity import this_process
from cloister.base.rng import Csprng
from cloister.errors import AttestationError, InputError

MLKEM_SEED_BYTES = 64
_NONCE = bytes(12)
"""A handshake key seals one message."""


class Verifier:
    """The side that appraises, for one handshake."""

    def __init__(
        self,
        appraiser: Appraiser,
        *,
        direction: Direction,
        context: bytes = b"",
        padding: Padding = Padding.NONE,
        rng: Csprng,
    ) -> None:
        """Draw the keys of this handshake.

        context   what the conversation is about, such as a bundle's id; the prover sees it
        """
        if len(context) > MAX_CONTEXT_BYTES:
            raise InputError(f"context: has {len(context)} bytes, of {MAX_CONTEXT_BYTES} at most")
        self.direction = direction
        self._appraiser, self._rng = appraiser, rng
        self._x25519 = X25519PrivateKey.from_private_bytes(rng.random_bytes(X25519_BYTES))
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(rng.random_bytes(MLKEM_SEED_BYTES))
        self._offered = Offer(
            direction, padding, SUITES, rng.random_bytes(NONCE_BYTES),
            self._x25519.public_key().public_bytes_raw(),
            self._mlkem.public_key().public_bytes_raw(),
            appraiser.policy_digest, context,
        )  # fmt: skip
        self._used = False
        self._process = this_process()
        self.refusal = b""
        """After evidence was refused: the record that tells the prover why."""

    def offer(self) -> bytes:
        """The message to the prover."""
        return self._offered.encode()

    def accept(self, answer: bytes) -> AttestedChannel:
        """Appraise the prover; the channel's `confirmation` goes to it before any record.

        Raises   AttestationError
        """
        if self._used:
            raise AttestationError("offer: was answered already; make a new one")
        # Copies of the process would have the same keys, and repeat nonces under them.
        if this_process() != self._process:
            raise AttestationError("offer: was made by another process; make a new one")
        self._used = True
        offer, offered = self.offer(), self._offered
        # (1) The answer's form, and a suite that was offered.
        received = ReceivedAnswer.decode(answer)
        clear = received.clear
        if clear.suite not in offered.suites:
            raise refused(
                "suite", expected=[f"{suite:#06x}" for suite in offered.suites],
                found=f"{clear.suite:#06x}", remedy="the answer is to another offer",
            )  # fmt: skip
        # (2) Shared secrets.
        try:
            secret = _agree(self._x25519, clear.x25519) + self._mlkem.decapsulate(clear.mlkem)
        except ValueError:
            raise AttestationError("answer: holds keys that are none") from None
        # (3) Evidence and manifest.
        key = handshake_key(secret, self.direction, offer, clear.encode())
        try:
            proof = AESGCM(key).decrypt(_NONCE, received.sealed, None)
        except InvalidTag:
            raise AttestationError(
                "answer: was changed, or answers another offer or direction"
            ) from None
        evidence, manifest = decode_proof(proof)
        # (4) Keys from the whole transcript; the prover has them too.
        transcript = transcript_hash(self.direction, offer, clear.encode(), manifest)
        channel = AttestedChannel(
            conversation_keys(secret, self.direction, transcript),
            handshake_hash(transcript, received.sealed),
            manifest=manifest, context=offered.context, padding=offered.padding,
            role=self._appraiser, rng=self._rng,
        )  # fmt: skip
        channel.confirm(received.confirmation)
        # (5) The machine that has them is one that the policy accepts.
        try:
            appraisal = self._appraiser.appraise(
                evidence, report_data=transcript, manifest=manifest
            )
        except AttestationError as error:
            self.refusal = channel.refuse(error)
            raise
        channel.accepted(appraisal)
        return channel


class Prover:
    """The side that attests; it may answer any number of offers."""

    def __init__(
        self,
        attester: Attester,
        manifest: bytes,
        *,
        direction: Direction,
        context: bytes | None = None,
        rng: Csprng,
    ) -> None:
        """Prepare to answer.

        manifest   of this runtime, which the evidence binds
        context    the only one that is answered; None: any
        """
        self.direction = direction
        self._attester, self._manifest = attester, manifest
        self._context, self._rng = context, rng

    def answer(self, offer: bytes) -> tuple[bytes, AttestedChannel]:
        """The message to the verifier, and this end of the conversation.

        The channel seals and opens nothing before `confirm` has opened the verifier's confirmation.

        Raises   AttestationError
        """
        offered = self._understood(offer)
        suite = next((one for one in SUITES if one in offered.suites), None)
        if suite is None:
            raise refused(
                "suite", expected=[f"{one:#06x}" for one in SUITES],
                found=[f"{one:#06x}" for one in offered.suites],
                remedy="use a newer version of Cloister on the other side",
            )  # fmt: skip
        x25519 = X25519PrivateKey.from_private_bytes(self._rng.random_bytes(X25519_BYTES))
        try:
            mlkem_secret, ciphertext = MLKEM768PublicKey.from_public_bytes(
                offered.mlkem
            ).encapsulate()
        except ValueError:
            raise AttestationError("offer: holds a key that is none") from None
        secret = _agree(x25519, offered.x25519) + mlkem_secret
        clear = ClearAnswer(
            suite, self._rng.random_bytes(NONCE_BYTES), x25519.public_key().public_bytes_raw(),
            ciphertext,
        ).encode()  # fmt: skip
        transcript = transcript_hash(self.direction, offer, clear, self._manifest)
        evidence = cmw.wrap(self._attester.format, self._attester.evidence(transcript))
        key = handshake_key(secret, self.direction, offer, clear)
        sealed = AESGCM(key).encrypt(_NONCE, encode_proof(evidence, self._manifest), None)
        channel = AttestedChannel(
            conversation_keys(secret, self.direction, transcript),
            handshake_hash(transcript, sealed),
            manifest=self._manifest, context=offered.context, padding=offered.padding,
            role=self._attester, rng=self._rng,
        )  # fmt: skip
        answer = clear + sealed + channel.confirmation
        if len(answer) > MAX_MESSAGE_BYTES:
            raise AttestationError(
                f"answer: has {len(answer)} bytes, of {MAX_MESSAGE_BYTES} at most; shorten the "
                "manifest"
            )
        return answer, channel

    def _understood(self, offer: bytes) -> Offer:
        offered = Offer.decode(offer)
        if offered.direction is not self.direction:
            raise refused(
                "direction", expected=self.direction.value, found=offered.direction.value,
                remedy="the offer was made for the other side of a conversation",
            )  # fmt: skip
        if self._context is not None and offered.context != self._context:
            raise refused(
                "context", expected=self._context, found=offered.context,
                remedy="the offer is about something else than this runtime serves",
            )  # fmt: skip
        return offered


def _agree(mine: X25519PrivateKey, theirs: bytes) -> bytes:
    """The X25519 secret.

    Raises   AttestationError for the zero secret, which any pair of keys can be made to have
    """
    try:
        secret = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError:
        secret = bytes(X25519_BYTES)
    if hmac.compare_digest(secret, bytes(X25519_BYTES)):
        raise AttestationError("X25519: the other side's key gives the zero secret")
    return secret
