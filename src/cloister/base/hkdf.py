"""Key derivation: HKDF with SHA-256 (RFC 5869)."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def derive(key: bytes, *, info: bytes, length: int = 32, salt: bytes | None = None) -> bytes:
    """A key for one purpose, named by `info`, from a uniform master key."""
    return HKDF(SHA256(), length, salt, info).derive(key)
