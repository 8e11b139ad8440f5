"""Randomness: the operating system's generator, and AES-256-CTR streams for pads."""

import hashlib
import os
from typing import Protocol, runtime_checkable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from jaxtyping import UInt32

from cloister.errors import RangeError

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_WORDS = 2**34
"""Words under one nonce: the 32-bit block counter counts 16-byte blocks of four words."""


@runtime_checkable
class Csprng(Protocol):
    """A cryptographically secure source of bytes."""

    def random_bytes(self, n: int) -> bytes:
        """`n` uniform bytes."""
        ...


class SystemRandom:
    """The operating system's generator."""

    def random_bytes(self, n: int) -> bytes:
        """`n` uniform bytes."""
        return os.urandom(n)


class InsecureSeededRandom:
    """Reproducible bytes for tests: the seed determines all of them."""

    def __init__(self, seed: int) -> None:
        key = hashlib.sha256(b"cloister insecure seed" + seed.to_bytes(16, "big")).digest()
        self._stream = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def random_bytes(self, n: int) -> bytes:
        """`n` bytes of the stream."""
        return self._stream.update(bytes(n))


def keystream(key: bytes, nonce: bytes, count: int) -> UInt32[np.ndarray, " count"]:
    """The AES-256-CTR keystream under (key, nonce) as little-endian 32-bit words.

    Domain   the 16-byte counter block is the nonce followed by a 32-bit big-endian block number
    Secret   key; a nonce must never serve two pads
    Source   NIST SP 800-38A; the reference of the native generator
    Raises   RangeError for a key or nonce of the wrong length or too many words
    """
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES or not 0 <= count <= MAX_WORDS:
        raise RangeError(f"a pad needs a {KEY_BYTES}-byte key and a {NONCE_BYTES}-byte nonce")
    stream = Cipher(AES(key), CTR(nonce + bytes(4))).encryptor()
    words = stream.update(bytes(4 * count))
    return np.frombuffer(words, dtype="<u4").astype(np.uint32, copy=False)
