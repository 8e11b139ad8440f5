"""The same schemes in the 2048-bit group of RFC 7919."""

import decimal
from math import factorial

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError, RangeError, UnsupportedError
from cloister.published import ddh
from cloister.published.ddh import ffdhe
from cloister.published.ddh.parameters import group_named

RNG = InsecureSeededRandom(15)


def needs_gmpy2():
    return pytest.importorskip("gmpy2")


@pytest.fixture(scope="module", params=["selective", "adaptive"])
def keys(request):
    needs_gmpy2()
    return ddh.setup(
        2, x_bound=20, y_bound=20, rng=RNG, group="ffdhe2048", variant=request.param,
        allow_unbounded_leakage=True,
    )  # fmt: skip


def test_the_prime_is_the_standards():
    """RFC 7919: p = 2^2048 - 2^1984 + (floor(2^1918 e) + 560316) 2^64 - 1."""
    decimal.getcontext().prec = 700
    e = sum(decimal.Decimal(1) / factorial(i) for i in range(400))
    assert int(e * 2**1918) == (ffdhe.P + 1 - 2**2048 + 2**1984) // 2**64 - 560316
    assert ffdhe.P.bit_length() == 2048
    assert ffdhe.P % 8 == 7  # so that 2 is a square
    gmpy2 = needs_gmpy2()
    assert gmpy2.is_prime(ffdhe.P, 5)
    assert gmpy2.is_prime((ffdhe.P - 1) // 2, 5)


def test_products_equal_integers(keys):
    x, y = np.array([[20, -20], [3, 0]]), np.array([[20, -20], [-1, 7]])
    ciphertexts = ddh.encrypt(keys.encryption, x, rng=RNG)
    found = ddh.decrypt(keys.public, ddh.keygen(keys.master, y), ciphertexts)
    np.testing.assert_array_equal(found, x @ y.T)
    other = ddh.setup(
        2, x_bound=20, y_bound=20, rng=RNG, group="ffdhe2048", variant=keys.public.variant
    )
    with pytest.raises(RangeError, match="does not belong"):
        ddh.decrypt(keys.public, ddh.keygen(other.master, y[:1]), ciphertexts)


@pytest.mark.parametrize("op", "+-*/")
def test_operations_equal_integers(keys, op):
    x, y = np.array([[-12, 20]]), np.array([[-4, 5]])
    entries = ddh.encrypt_elements(keys.encryption, x, rng=RNG)
    key = ddh.keygen_elements(keys.master, op, y, commitments=entries.commitments)
    expected = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[op]
    np.testing.assert_array_equal(ddh.decrypt_elements(keys.public, key, entries), expected)


def refused(keys, value):
    """Asks for a key of a commitment that may be no group element."""
    commitment = np.frombuffer(value.to_bytes(256, "big"), np.uint8).reshape(1, 1, 256)
    ddh.keygen_elements(keys.master, "*", np.array([[1]]), commitments=commitment)


def test_ciphertexts_are_reduced(keys):
    """Public code multiplied without reducing: whoever saw the product divided the mask out."""
    ciphertexts = ddh.encrypt(keys.encryption, np.array([[20, -20]]), rng=RNG)
    values = [int.from_bytes(bytes(e), "big") for e in ciphertexts.elements[0]]
    assert all(0 < v < ffdhe.P for v in values)
    unreduced = values[-1] + ffdhe.P
    if unreduced < 2**2048:
        with pytest.raises(EncryptionError, match="subgroup"):
            refused(keys, unreduced)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "subgroup"),
        (1, "identity"),
        (ffdhe.P - 1, "subgroup"),  # of order 2
        (ffdhe.P - 2, "subgroup"),  # of order 2 q
        (ffdhe.P, "subgroup"),
        (ffdhe.P + 2, "subgroup"),  # the generator, not reduced
        (2**2048 - 1, "subgroup"),
    ],
)
def test_elements_outside_the_subgroup_are_refused(keys, value, message):
    with pytest.raises(EncryptionError, match=message):
        refused(keys, value)


def test_without_gmpy2_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ffdhe, "_gmpy2", None)
    group_named.cache_clear()
    with pytest.raises(UnsupportedError, match=r"pip install 'cloister\[fe\]'"):
        ddh.setup(2, x_bound=1, y_bound=1, rng=RNG, group="ffdhe2048")
    group_named.cache_clear()
