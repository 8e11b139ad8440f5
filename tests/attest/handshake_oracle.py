"""A second implementation of the attested handshake and its records, from the document alone.

It shares no code with the package: docs/protocols/attested-session.md is its source. HKDF and
X25519 are written out; ML-KEM-768 and AES-256-GCM are the `cryptography` library's.

    python tests/attest/handshake_oracle.py    # writes handshake_vectors.json
"""

import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VECTORS = Path(__file__).parent / "handshake_vectors.json"
LABEL = b"cloister attested session v1\0"
PRIME = 2**255 - 19
CONFIRMATION, DATA = 1, 2
FIXED = 3 + 4 + 32 + 32 + 1088
"""Bytes of an answer before its sealed part."""


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5."""
    k = (int.from_bytes(scalar, "little") & ~7 & (2**255 - 1)) | 2**254
    u = int.from_bytes(point, "little") & (2**255 - 1)
    x2, z2, x3, z3, swap = 1, 0, u, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb, aa, bb = d * a % PRIME, c * b % PRIME, a * a % PRIME, b * b % PRIME
        x3, z3 = (da + cb) ** 2 % PRIME, u * (da - cb) ** 2 % PRIME
        e = aa - bb
        x2, z2 = aa * bb % PRIME, e * (aa + 121665 * e) % PRIME
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, PRIME - 2, PRIME) % PRIME).to_bytes(32, "little")


BASE = bytes([9]) + bytes(31)


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-512, for 32 bytes."""
    return expand(hmac.digest(salt, secret, "sha512"), info)


def expand(prk: bytes, info: bytes) -> bytes:
    return hmac.digest(prk, info + b"\1", "sha512")[:32]


class Keys:
    """All that both sides know after the two messages."""

    def __init__(self, secret, direction, offer, clear, manifest):
        role = bytes([direction])
        said = LABEL + role + offer + clear
        self.th = hashlib.sha512(said + hashlib.sha512(manifest).digest()).digest()
        self.verifier, self.prover, self.export = (
            hkdf(secret, self.th, LABEL + role + purpose)
            for purpose in (b"verifier", b"prover", b"exporter")
        )

    def exporter(self, label):
        return expand(self.export, b"cloister exporter\0" + label)

    def confirmed(self, sealed):
        return hashlib.sha512(b"cloister confirmation\0" + self.th + sealed).digest()

    def reattest(self, nonce):
        return hashlib.sha512(b"reattest" + self.exporter(b"reattest") + nonce).digest()


def handshake_key(secret, direction, offer, clear):
    early = hashlib.sha512(LABEL + bytes([direction]) + offer + clear).digest()
    return hkdf(secret, early, LABEL + bytes([direction]) + b"handshake")


def offer(x_private, mlkem_seed, nonce, *, direction, padding, policy_digest, context):
    mlkem = MLKEM768PrivateKey.from_seed_bytes(mlkem_seed).public_key().public_bytes_raw()
    front = b"CLOA" + bytes([1, direction, padding, 1, 0, 1]) + nonce
    keys = x25519(x_private, BASE) + mlkem + policy_digest
    return front + keys + struct.pack(">H", len(context)) + context


def answer(offered, x_private, nonce, evidence, manifest):
    """The message and the keys; `evidence` makes it, of what it has to bind and the clear part."""
    direction = offered[5]
    at = 8 + 2 * offered[7] + 32
    mlkem_secret, ciphertext = MLKEM768PublicKey.from_public_bytes(
        offered[at + 32 : at + 32 + 1184]
    ).encapsulate()
    secret = x25519(x_private, offered[at : at + 32]) + mlkem_secret
    clear = b"CLOB\1\0\1" + nonce + x25519(x_private, BASE) + ciphertext
    keys = Keys(secret, direction, offered, clear, manifest)
    made = evidence(keys.th, clear)
    proof = struct.pack(">I", len(made)) + made + manifest
    sealed = AESGCM(handshake_key(secret, direction, offered, clear)).encrypt(
        bytes(12), proof, None
    )
    confirmation = record(keys.prover, 0, CONFIRMATION, keys.confirmed(sealed))
    return clear + sealed + confirmation, keys


def accept(offered, x_private, mlkem_seed, received):
    """Evidence, manifest, and the keys."""
    clear, sealed, confirmation = received[:FIXED], received[FIXED:-97], received[-97:]
    secret = x25519(x_private, clear[39:71])
    secret += MLKEM768PrivateKey.from_seed_bytes(mlkem_seed).decapsulate(clear[71:])
    direction = offered[5]
    proof = AESGCM(handshake_key(secret, direction, offered, clear)).decrypt(
        bytes(12), sealed, None
    )
    (length,) = struct.unpack_from(">I", proof)
    evidence, manifest = proof[4 : 4 + length], proof[4 + length :]
    keys = Keys(secret, direction, offered, clear, manifest)
    assert confirmation == record(keys.prover, 0, CONFIRMATION, keys.confirmed(sealed))
    return evidence, manifest, keys


def record(key, sequence, kind, plaintext):
    header = struct.pack(">BQQ", kind, sequence, len(plaintext) + 16)
    nonce = bytes(4) + struct.pack(">Q", sequence)
    return header + AESGCM(key).encrypt(nonce, plaintext, header)


def _vector(number, direction, context, manifest, evidence, message):
    drawn = {
        name: hashlib.shake_256(f"{number} {name}".encode()).digest(length)
        for name, length in (
            ("verifier_x25519", 32), ("verifier_mlkem", 64), ("verifier_nonce", 32),
            ("prover_x25519", 32), ("prover_nonce", 32), ("policy_digest", 32),
        )
    }  # fmt: skip
    offered = offer(
        drawn["verifier_x25519"], drawn["verifier_mlkem"], drawn["verifier_nonce"],
        direction=direction, padding=0, policy_digest=drawn["policy_digest"], context=context,
    )  # fmt: skip
    answered, keys = answer(
        offered, drawn["prover_x25519"], drawn["prover_nonce"], lambda *_: evidence, manifest
    )
    sealed = answered[FIXED:-97]
    found = drawn | {
        "context": context, "manifest": manifest, "evidence": evidence, "message": message,
        "offer": offered, "answer": answered, "report_data": keys.th,
        "verifier_confirmation": record(keys.verifier, 0, CONFIRMATION, keys.confirmed(sealed)),
        "verifier_record": record(keys.verifier, 1, DATA, message),
        "prover_record": record(keys.prover, 1, DATA, message),
        "exported": keys.exporter(b"a label"), "reattest": keys.reattest(bytes(32)),
    }  # fmt: skip
    return {"direction": direction} | {name: value.hex() for name, value in found.items()}


if __name__ == "__main__":
    made = [
        _vector(1, 1, b"", b"{}", b"evidence of a callee", b""),
        _vector(2, 2, b"bundle " + bytes(range(32)), b"m" * 300, bytes(1000), b"a message"),
        _vector(3, 1, b"c" * 1024, b"", b"", bytes(range(256))),
    ]
    VECTORS.write_text(json.dumps(made, indent=1) + "\n")
    sys.stdout.write(f"{VECTORS}: {len(made)} vectors\n")
