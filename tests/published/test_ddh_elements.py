import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError, InputError, RangeError, ShapeError
from cloister.published import ddh

RNG = InsecureSeededRandom(13)
KEYS = ddh.setup(2, x_bound=50, y_bound=50, rng=RNG)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def apply(op, x, y, keys=KEYS):
    ciphertexts = ddh.encrypt_elements(keys.encryption, x, rng=RNG)
    key = ddh.keygen_elements(keys.master, op, y, commitments=ciphertexts.commitments)
    return ddh.decrypt_elements(keys.public, key, ciphertexts)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from("+-*"), st.lists(st.integers(-50, 50), min_size=12, max_size=12))
def test_operations_equal_integers(op, values):
    x, y = np.array(values[:6]).reshape(2, 3), np.array(values[6:]).reshape(2, 3)
    np.testing.assert_array_equal(apply(op, x, y), OPERATIONS[op](x, y))


@pytest.mark.parametrize("op", "+-*")
def test_operations_at_the_bound(op):
    x = np.array([[50, -50, 50, -50, 0, 50, 0, 1, -1]])
    y = np.array([[50, 50, -50, -50, 50, 0, 0, -50, 50]])
    np.testing.assert_array_equal(apply(op, x, y), OPERATIONS[op](x, y))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(-10, 10), st.sampled_from([1, -1, 2, -5, 3])), min_size=1))
def test_exact_division(pairs):
    q, y = np.array(pairs).T.reshape(2, 1, -1)
    np.testing.assert_array_equal(apply("/", q * y, y), q)


def test_a_quotient_that_is_no_integer_is_refused():
    with pytest.raises(RangeError, match=r"entry \(1,\)"):
        apply("/", np.array([[6, 7]]), np.array([[3, 3]]))
    with pytest.raises(RangeError, match="zero"):
        apply("/", np.array([[6]]), np.array([[0]]))


@pytest.mark.parametrize("variant", ["selective", "adaptive"])
def test_both_variants_share_the_scheme(variant):
    keys = ddh.setup(3, x_bound=9, y_bound=9, rng=RNG, variant=variant)
    x, y = np.array([[1, -9], [4, 0]]), np.array([[9, 9], [-2, 5]])
    np.testing.assert_array_equal(apply("*", x, y, keys), x * y)


def test_a_key_belongs_to_its_ciphertext():
    x = np.array([[3, 4]])
    first = ddh.encrypt_elements(KEYS.encryption, x, rng=RNG)
    second = ddh.encrypt_elements(KEYS.encryption, x, rng=RNG)
    key = ddh.keygen_elements(KEYS.master, "-", x, commitments=first.commitments)
    with pytest.raises(RangeError, match="does not belong"):
        ddh.decrypt_elements(KEYS.public, key, second)
    np.testing.assert_array_equal(ddh.decrypt_elements(KEYS.public, key, first), 0 * x)


def test_a_key_belongs_to_its_operation():
    x, y = np.array([[3, 4]]), np.array([[5, 6]])
    ciphertexts = ddh.encrypt_elements(KEYS.encryption, x, rng=RNG)
    key = ddh.keygen_elements(KEYS.master, "*", y, commitments=ciphertexts.commitments)
    wrong = ddh.DdhElementKey(key.public, "+", key.y, key.elements)
    with pytest.raises(RangeError):
        ddh.decrypt_elements(KEYS.public, wrong, ciphertexts)


def test_any_key_opens_its_entry():
    """Stated in the documentation, and so that nobody forgets: FEBO is decryption."""
    x, y = np.array([[42, -17]]), np.array([[7, 7]])
    ciphertexts = ddh.encrypt_elements(KEYS.encryption, x, rng=RNG)
    key = ddh.keygen_elements(KEYS.master, "*", y, commitments=ciphertexts.commitments)
    np.testing.assert_array_equal(ddh.decrypt_elements(KEYS.public, key, ciphertexts) // y, x)


def test_operands_are_checked():
    x = np.array([[1, 2]])
    ciphertexts = ddh.encrypt_elements(KEYS.encryption, x, rng=RNG)
    with pytest.raises(RangeError, match="bound 50"):
        ddh.encrypt_elements(KEYS.encryption, np.array([[51]]), rng=RNG)
    with pytest.raises(RangeError, match="bound 50"):
        ddh.keygen_elements(KEYS.master, "+", 51 * x, commitments=ciphertexts.commitments)
    with pytest.raises(ShapeError, match="commitments"):
        ddh.keygen_elements(KEYS.master, "+", x.T.copy(), commitments=ciphertexts.commitments)
    with pytest.raises(InputError, match="operation"):
        ddh.keygen_elements(KEYS.master, "^", x, commitments=ciphertexts.commitments)


def test_commitments_that_are_no_elements_get_no_key():
    y = np.array([[1]])
    for bad in (np.full((1, 1, 32), 255, np.uint8), np.zeros((1, 1, 32), np.uint8)):
        with pytest.raises(EncryptionError, match="commitments"):
            ddh.keygen_elements(KEYS.master, "+", y, commitments=bad)


def test_keys_of_other_shapes_or_parameters_are_refused():
    x = np.array([[1, 2]])
    ciphertexts = ddh.encrypt_elements(KEYS.encryption, x, rng=RNG)
    short = ddh.encrypt_elements(KEYS.encryption, x[:, :1], rng=RNG)
    key = ddh.keygen_elements(KEYS.master, "+", x[:, :1], commitments=short.commitments)
    with pytest.raises(EncryptionError, match="shapes"):
        ddh.decrypt_elements(KEYS.public, key, ciphertexts)
    other = ddh.setup(2, x_bound=51, y_bound=50, rng=RNG)
    with pytest.raises(EncryptionError, match="together"):
        ddh.decrypt_elements(other.public, key, short)


def test_no_entries():
    none = np.empty((0, 3), np.int64)
    assert apply("+", none, none).shape == (0, 3)
