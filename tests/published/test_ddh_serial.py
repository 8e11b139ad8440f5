"""What is written is read back, and nothing else is read at all."""

import struct

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError
from cloister.published import ddh

RNG = InsecureSeededRandom(14)
X = np.array([[1, -2, 3], [9, 0, -9]])


def objects(variant="selective"):
    keys = ddh.setup(3, x_bound=9, y_bound=9, rng=RNG, variant=variant)
    ciphertexts = ddh.encrypt(keys.encryption, X, rng=RNG)
    entries = ddh.encrypt_elements(keys.encryption, X, rng=RNG)
    made = [keys.encryption, keys.master, ciphertexts, ddh.keygen(keys.master, X), entries]
    for op in "+-*/":
        y = np.array([[1, 2, 3], [-9, 1, 1]]) if op != "*" else X
        made.append(ddh.keygen_elements(keys.master, op, y, commitments=entries.commitments))
    return made


def read(kind, data):
    """A master key is read with what keeps its count; these make no keys that matter."""
    return kind.from_bytes(data, **({"keep": None} if kind is ddh.MasterKey else {}))


OBJECTS = objects()
NAMES = [f"{type(o).__name__}{getattr(o, 'op', '')}" for o in OBJECTS]
each_object = pytest.mark.parametrize("made", OBJECTS, ids=NAMES)


@pytest.mark.parametrize("made", OBJECTS + objects("adaptive"), ids=NAMES * 2)
def test_round_trip(made):
    data = made.to_bytes()
    again = read(type(made), data)
    assert again.to_bytes() == data
    assert again.public == made.public
    assert getattr(again, "op", None) == getattr(made, "op", None)


def test_what_is_read_back_works():
    encryption, master, *_ = OBJECTS
    encryption = ddh.EncryptionKey.from_bytes(encryption.to_bytes())
    master = read(ddh.MasterKey, master.to_bytes())
    ciphertexts = ddh.Ciphertexts.from_bytes(ddh.encrypt(encryption, X, rng=RNG).to_bytes())
    key = ddh.FunctionKey.from_bytes(ddh.keygen(master, X).to_bytes())
    np.testing.assert_array_equal(ddh.decrypt(master.public, key, ciphertexts), X @ X.T)
    entries = ddh.ElementCiphertexts.from_bytes(
        ddh.encrypt_elements(encryption, X, rng=RNG).to_bytes()
    )
    key = ddh.keygen_elements(master, "-", X, commitments=entries.commitments)
    key = ddh.ElementKey.from_bytes(key.to_bytes())
    np.testing.assert_array_equal(ddh.decrypt_elements(master.public, key, entries), 0 * X)


@each_object
def test_truncated_and_extended_bytes_are_refused(made):
    data = made.to_bytes()
    for size in {*range(60), len(data) // 2, len(data) - 1}:
        with pytest.raises(EncryptionError):
            read(type(made), data[:size])
    with pytest.raises(EncryptionError, match="too many"):
        read(type(made), data + b"\0")


@each_object
def test_every_field_of_the_header_is_checked(made):
    data = made.to_bytes()
    for at in range(12):  # magic, kind, group, variant, padding
        changed = bytearray(data)
        changed[at] ^= 0x40
        with pytest.raises(EncryptionError):
            read(type(made), bytes(changed))
    for at in (32, 40):  # shape: the length must follow from it
        for value in (0, 2**31):
            changed = bytearray(data)
            struct.pack_into("<I", changed, at, value)
            with pytest.raises(EncryptionError):
                read(type(made), bytes(changed))
    for at in (16, 24):  # bounds
        for value in (0, 2**63):
            changed = bytearray(data)
            struct.pack_into("<Q", changed, at, value)
            with pytest.raises(EncryptionError, match="bound"):
                read(type(made), bytes(changed))


def test_the_dimension_must_fit_the_length():
    for made in OBJECTS:
        changed = bytearray(made.to_bytes())
        for dim in (0, 2, 2**31):
            struct.pack_into("<I", changed, 12, dim)
            try:
                found = read(type(made), bytes(changed))
            except EncryptionError:
                continue
            # Element-wise objects have no array of that size; they are of other parameters then.
            assert isinstance(made, ddh.ElementCiphertexts | ddh.ElementKey)
            assert found.public != made.public


def test_sizes_that_would_fill_memory_are_refused_before_allocation():
    data = bytearray(OBJECTS[2].to_bytes())
    struct.pack_into("<Q", data, 32, 2**64 - 1)
    with pytest.raises(EncryptionError, match="end early"):
        ddh.Ciphertexts.from_bytes(bytes(data))


@each_object
def test_one_kind_is_not_read_as_another(made):
    data = made.to_bytes()
    for other in {type(o) for o in OBJECTS} - {type(made)}:
        with pytest.raises(EncryptionError):
            read(other, data)


@pytest.mark.parametrize(
    "bad", [b"\xff" * 32, bytes(32), b"\x01" + bytes(31)], ids=["large", "identity", "negative"]
)
@pytest.mark.parametrize("made", [OBJECTS[i] for i in (0, 2, 4, 5)], ids=lambda o: type(o).__name__)
def test_elements_are_decoded_when_read(made, bad):
    data = made.to_bytes()[:-32] + bad
    with pytest.raises(EncryptionError, match="element"):
        read(type(made), data)


def test_the_key_of_a_product_with_zero_is_the_identity_and_reads():
    made = OBJECTS[7]
    assert made.op == "*"
    assert not made.elements[1, 1].any()
    assert not ddh.ElementKey.from_bytes(made.to_bytes()).elements[1, 1].any()


@pytest.mark.parametrize("made", [OBJECTS[1], OBJECTS[3]], ids=["master", "function"])
def test_scalars_not_below_the_order_are_refused(made):
    with pytest.raises(EncryptionError, match="order"):
        read(type(made), made.to_bytes()[:-32] + b"\xff" * 32)


def test_functions_beyond_the_bound_are_refused():
    data = bytearray(OBJECTS[3].to_bytes())
    struct.pack_into("<q", data, 48, 10)
    with pytest.raises(EncryptionError, match="bound 9"):
        ddh.FunctionKey.from_bytes(bytes(data))
    with pytest.raises(EncryptionError, match="element-wise"):
        ddh.ElementKey.from_bytes(bytes(data))
