import numpy as np
import pytest

import cloister.base._native as native
from cloister.base.rng import InsecureSeededRandom, SystemRandom, keystream
from cloister.errors import RangeError

# NIST SP 800-38A, F.5.5 (CTR-AES256.Encrypt).
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
NONCE = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafb")
FIRST_BLOCK = 0xFCFDFEFF
PLAINTEXT = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHERTEXT = bytes.fromhex(
    "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
)


def filled(key, nonce, first_block, count):
    out = np.zeros(count, np.uint32)
    native.aes_ctr_fill(key, nonce, first_block, out)
    return out


def test_nist_vectors(isa):
    if isa == "portable":
        with pytest.raises(ValueError, match="no AES"):
            filled(KEY, NONCE, FIRST_BLOCK, 16)
        return
    stream = filled(KEY, NONCE, FIRST_BLOCK, 16)
    found = stream ^ np.frombuffer(PLAINTEXT, "<u4")
    assert found.astype("<u4").tobytes() == CIPHERTEXT


def test_native_stream_equals_cryptography(isa):
    if isa == "portable":
        return
    rng = np.random.default_rng(1)
    for count in (0, 1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 1000):
        key, nonce = rng.bytes(32), rng.bytes(12)
        np.testing.assert_array_equal(filled(key, nonce, 0, count), keystream(key, nonce, count))


def test_native_stream_can_start_anywhere(isa):
    if isa == "portable":
        return
    whole = keystream(KEY, NONCE, 4000)
    for block in (1, 3, 4, 255, 256, 257):
        np.testing.assert_array_equal(
            filled(KEY, NONCE, block, 1000), whole[4 * block : 4 * block + 1000]
        )


def test_counter_does_not_wrap(isa):
    if isa == "portable":
        return
    filled(KEY, NONCE, 2**32 - 1, 4)
    with pytest.raises(ValueError, match="more than 2"):
        filled(KEY, NONCE, 2**32 - 1, 5)


def test_native_rejects_wrong_sizes():
    for key, nonce in ((KEY[:-1], NONCE), (KEY, NONCE[:-1]), (KEY, NONCE + b"0")):
        with pytest.raises(ValueError, match="bytes"):
            filled(key, nonce, 0, 4)
        with pytest.raises(RangeError):
            keystream(key, nonce, 4)


def test_pads_of_different_nonces_differ():
    streams = {keystream(KEY, i.to_bytes(12, "big"), 8).tobytes() for i in range(64)}
    assert len(streams) == 64


def test_seeded_random_is_reproducible():
    first, again, other = (InsecureSeededRandom(seed) for seed in (3, 3, 4))
    stream = first.random_bytes(10) + first.random_bytes(22)
    assert stream == again.random_bytes(32)
    assert stream != other.random_bytes(32)


def test_system_random():
    assert SystemRandom().random_bytes(32) != SystemRandom().random_bytes(32)
    assert len(SystemRandom().random_bytes(7)) == 7
