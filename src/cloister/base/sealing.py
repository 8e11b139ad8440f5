"""Sealing to the holder of a key pair: HPKE (RFC 9180, base mode) in its hybrid form.

X25519 together with ML-KEM-768, so that what is recorded today stays secret from a quantum computer
of tomorrow. The `cryptography` library implements all of it.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519

from cloister.errors import EncryptionError

SUITE = "MLKEM768-X25519, HKDF-SHA256, AES-256-GCM"
MLKEM_SEED_BYTES = 64
X25519_BYTES = 32
SEED_BYTES = MLKEM_SEED_BYTES + X25519_BYTES
MLKEM_PUBLIC_BYTES = 1184
PUBLIC_BYTES = MLKEM_PUBLIC_BYTES + X25519_BYTES

_HPKE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def seal(public: bytes, plaintext: bytes, *, info: bytes) -> bytes:
    """Encrypt to the holder of a key pair.

    Secret   plaintext.  Public: info, which must be the same at `KeyPair.open_sealed`
    Source   RFC 9180, base mode: the sender is not authenticated
    Raises   EncryptionError when `public` is no key
    """
    try:
        key = hpke.MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES]),
            x25519.X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_BYTES:]),
        )
    except ValueError:
        raise EncryptionError("the key to seal to is damaged; ask for it again") from None
    return _HPKE.encrypt(plaintext, key, info)


class KeyPair:
    """A key pair, from its seed.

    Secret   the seed
    """

    def __init__(self, seed: bytes) -> None:
        """Make the keys of a seed of `SEED_BYTES` random bytes."""
        mlkem_key = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed[:MLKEM_SEED_BYTES])
        x25519_key = x25519.X25519PrivateKey.from_private_bytes(seed[MLKEM_SEED_BYTES:])
        self._key = hpke.MLKEM768X25519PrivateKey(mlkem_key, x25519_key)
        self.public = (
            mlkem_key.public_key().public_bytes_raw() + x25519_key.public_key().public_bytes_raw()
        )

    def open_sealed(self, sealed: bytes, *, info: bytes) -> bytes:
        """The plaintext of `seal`.

        Raises   EncryptionError when it was changed, or sealed to another key or purpose
        """
        try:
            return _HPKE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError):
            raise EncryptionError(
                "what was sealed was changed, or sealed to another authority, data set or purpose"
            ) from None
