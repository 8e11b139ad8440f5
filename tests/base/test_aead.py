import pytest

from cloister.base.aead import open_sealed, seal
from cloister.base.rng import InsecureSeededRandom
from cloister.errors import VerificationError

KEY = bytes(range(32))


def test_round_trip():
    for text in (b"", b"x", bytes(1000)):
        sealed = seal(KEY, text, aad=b"record 7", rng=InsecureSeededRandom(1))
        assert len(sealed) == len(text) + 28
        assert open_sealed(KEY, sealed, aad=b"record 7") == text


def test_nist_gcm_vector():
    # The GCM specification (McGrew, Viega), test case 14: AES-256, zero key, nonce and block.
    class ZeroRandom:
        def random_bytes(self, n: int) -> bytes:
            return bytes(n)

    sealed = seal(bytes(32), bytes(16), aad=b"", rng=ZeroRandom())
    assert sealed[12:].hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


def test_every_flipped_bit_is_noticed():
    sealed = bytearray(seal(KEY, b"twelve bytes", aad=b"a", rng=InsecureSeededRandom(2)))
    for i in range(8 * len(sealed)):
        sealed[i // 8] ^= 1 << (i % 8)
        with pytest.raises(VerificationError):
            open_sealed(KEY, bytes(sealed), aad=b"a")
        sealed[i // 8] ^= 1 << (i % 8)
    assert open_sealed(KEY, bytes(sealed), aad=b"a") == b"twelve bytes"


def test_other_key_aad_or_length_is_noticed():
    sealed = seal(KEY, b"text", aad=b"a", rng=InsecureSeededRandom(3))
    for key, data, aad in (
        (bytes(32), sealed, b"a"),
        (KEY, sealed, b"b"),
        (KEY, sealed[:-1], b"a"),
        (KEY, sealed[:27], b"a"),
        (KEY, b"", b"a"),
    ):
        with pytest.raises(VerificationError):
            open_sealed(key, data, aad=aad)


def test_nonces_are_fresh():
    rng = InsecureSeededRandom(4)
    assert len({seal(KEY, b"", aad=b"", rng=rng)[:12] for _ in range(100)}) == 100
