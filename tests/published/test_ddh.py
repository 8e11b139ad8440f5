"""Inner products over a group: correct on everything allowed, and closed to everything else."""

import hashlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloister.base._native as native
from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError, InputError, RangeError, ShapeError
from cloister.published import ddh
from cloister.published.dlog import MAX_CURVE_REACH
from instruction_sets import forced
from published import ristretto_reference as reference

RNG = InsecureSeededRandom(12)
VARIANTS = ["selective", "adaptive"]
# Products of every kind are asked for under one key: what that gives away is tested elsewhere
# (tests/published/test_released.py).
setup = partial(ddh.setup, allow_unbounded_leakage=True)


@pytest.fixture(scope="module", params=VARIANTS)
def keys(request):
    return setup(4, x_bound=100, y_bound=100, rng=RNG, variant=request.param)


def product(keys, x, y, threads=1):
    ciphertexts = ddh.encrypt(keys.encryption, x, rng=RNG, threads=threads)
    return ddh.decrypt(keys.public, ddh.keygen(keys.master, y), ciphertexts, threads=threads)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_products_equal_integers(keys, data):
    rows = st.lists(st.integers(-100, 100), min_size=4, max_size=4)
    x = np.array(data.draw(st.lists(rows, min_size=1, max_size=10)), np.int64)
    y = np.array(data.draw(st.lists(rows, min_size=1, max_size=4)), np.int64)
    np.testing.assert_array_equal(product(keys, x, y), x @ y.T)


def test_everything_at_the_bound(keys):
    x = np.array([[100] * 4, [-100] * 4, [0] * 4, [100, -100, 100, -100]])
    np.testing.assert_array_equal(product(keys, x, x), x @ x.T)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("n", "dim", "k"), [(1, 1, 1), (1, 25, 1), (13, 10, 70), (2, 40, 5)])
def test_sizes_and_instruction_sets(n, dim, k):
    rng = np.random.default_rng(dim)
    keys = setup(dim, x_bound=100, y_bound=100, rng=RNG)
    x, y = rng.integers(1, 101, (n, dim)), rng.integers(1, 101, (k, dim))
    np.testing.assert_array_equal(product(keys, x, y, threads=2), x @ y.T)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_instruction_set_gives_the_same_bytes(variant):
    digests = set()
    x = np.random.default_rng(1).integers(-9, 10, (11, 5))
    for isa in native.available_isas():
        with forced(isa):
            rng = InsecureSeededRandom(3)
            keys = ddh.setup(5, x_bound=9, y_bound=9, rng=rng, variant=variant)
            ciphertexts = ddh.encrypt(keys.encryption, x, rng=rng)
            entries = ddh.encrypt_elements(keys.encryption, x, rng=rng)
            operation = ddh.keygen_elements(
                keys.master, "*", np.full_like(x, -3), commitments=entries.commitments
            )
            parts = (
                keys.encryption.points,
                keys.master.scalars,
                ciphertexts.elements,
                entries.commitments,
                entries.values,
                operation.elements,
            )
            digests.add(hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest())
    assert len(digests) == 1


def test_wide_bounds_are_searched_far():
    keys = setup(2, x_bound=2**15, y_bound=2**15, rng=RNG)
    x, y = np.array([[2**15, -(2**15)], [2**15, 1]]), np.array([[2**15, -(2**15)], [-(2**15), 3]])
    np.testing.assert_array_equal(product(keys, x, y), x @ y.T)


def test_the_definition_in_plain_integers():
    """Ciphertexts and keys, taken apart with the reference, are what the paper says."""
    keys = ddh.setup(2, x_bound=9, y_bound=9, rng=RNG)
    s = [int.from_bytes(bytes(row), "little") for row in keys.master.inner(0)]
    g, h1, h2 = (reference.decode(bytes(row)) for row in keys.encryption.inner)
    assert (g, h1) == (reference.decode(reference.encode(reference.G)), h1)
    assert reference.encode(h2) == reference.encode(reference.multiply(s[1], g))
    x, y = np.array([[5, -8]]), np.array([[3, 7]])
    ct = [reference.decode(bytes(e)) for e in ddh.encrypt(keys.encryption, x, rng=RNG).elements[0]]
    for j in range(2):
        expected = reference.add(
            reference.multiply(s[j], ct[0]), reference.multiply(int(x[0, j]), g)
        )
        assert reference.encode(ct[j + 1]) == reference.encode(expected)
    key = int.from_bytes(bytes(ddh.keygen(keys.master, y).scalars[0, 0]), "little")
    assert key == (3 * s[0] + 7 * s[1]) % reference.L


def test_nothing_to_do(keys):
    none = np.empty((0, 4), np.int64)
    some = np.ones((2, 4), np.int64)
    assert product(keys, none, some).shape == (0, 2)
    assert product(keys, some, none).shape == (2, 0)
    np.testing.assert_array_equal(product(keys, some, 0 * some), np.zeros((2, 2)))


def test_encryption_is_randomised(keys):
    x = np.ones((2, 4), np.int64)
    first = ddh.encrypt(keys.encryption, x, rng=RNG).elements
    second = ddh.encrypt(keys.encryption, x, rng=RNG).elements
    seen = {bytes(e) for e in np.concatenate([first, second]).reshape(-1, 32)}
    assert len(seen) == first.size // 32 * 2


def test_functions_and_plaintexts_are_range_checked(keys):
    """Public code never checked what functions were asked for."""
    over = np.array([[0, 0, 101, 0]])
    for matrix in (over, -over, np.array([[0, 0, 0, -(2**63)]])):
        with pytest.raises(RangeError, match="bound 100"):
            ddh.keygen(keys.master, matrix)
        with pytest.raises(RangeError, match="bound 100"):
            ddh.encrypt(keys.encryption, matrix, rng=RNG)
    for wrong in (np.ones((1, 3), np.int64), np.ones(4, np.int64), np.ones((1, 4))):
        with pytest.raises(ShapeError):
            ddh.keygen(keys.master, wrong)
        with pytest.raises(ShapeError):
            ddh.encrypt(keys.encryption, wrong, rng=RNG)


def test_another_authoritys_key_finds_nothing(keys):
    other = ddh.setup(4, x_bound=100, y_bound=100, rng=RNG, variant=keys.public.variant)
    x = np.ones((3, 4), np.int64)
    ciphertexts = ddh.encrypt(keys.encryption, x, rng=RNG)
    with pytest.raises(RangeError, match="does not belong"):
        ddh.decrypt(keys.public, ddh.keygen(other.master, x), ciphertexts)


def test_a_key_of_other_parameters_is_refused(keys):
    other = ddh.setup(4, x_bound=100, y_bound=101, rng=RNG, variant=keys.public.variant)
    x = np.ones((1, 4), np.int64)
    ciphertexts = ddh.encrypt(keys.encryption, x, rng=RNG)
    with pytest.raises(EncryptionError, match="together"):
        ddh.decrypt(keys.public, ddh.keygen(other.master, x), ciphertexts)


def test_a_key_of_y_is_no_key_of_another_vector(keys):
    x = np.array([[1, 2, 3, 4]])
    key = ddh.keygen(keys.master, np.array([[1, 0, 0, 1]]))
    forged = ddh.DdhFunctionKey(key.public, np.array([[0, 1, 0, 1]]), key.scalars)
    with pytest.raises(RangeError):
        ddh.decrypt(keys.public, forged, ddh.encrypt(keys.encryption, x, rng=RNG))


def test_toy_groups_and_groups_where_ddh_is_easy_are_not_offered():
    for name in ("toy", "modp256", "ss512", "bn254", "", "CURVE25519"):
        with pytest.raises(InputError, match="no group"):
            ddh.setup(2, x_bound=1, y_bound=1, rng=RNG, group=name)
    with pytest.raises(InputError, match="variant"):
        ddh.setup(2, x_bound=1, y_bound=1, rng=RNG, variant="weak")


def test_answers_that_could_not_be_found_are_refused_at_setup():
    for dim, x_bound, y_bound in [(1, MAX_CURVE_REACH, 1), (2**10, 2**15, 2**15)]:
        with pytest.raises(RangeError, match="must be below"):
            ddh.setup(dim, x_bound=x_bound, y_bound=y_bound, rng=RNG)
    for dim, x_bound, y_bound in [(0, 1, 1), (1, 0, 1), (1, 1, 0)]:
        with pytest.raises(RangeError, match="at least 1"):
            ddh.setup(dim, x_bound=x_bound, y_bound=y_bound, rng=RNG)


def test_the_key_of_a_ciphertext_is_not_needed_and_ids_are_row_numbers(keys):
    x = np.arange(12).reshape(3, 4)
    ciphertexts = ddh.encrypt(keys.encryption, x, rng=RNG)
    assert ciphertexts.ids.tolist() == [0, 1, 2]
    key = ddh.keygen(keys.master, x[:1], ciphertexts_ids=np.array([7]))
    np.testing.assert_array_equal(ddh.decrypt(keys.public, key, ciphertexts), x @ x[:1].T)


def test_secrets_are_not_printed(keys):
    assert "scalars" not in repr(keys.master)
    assert keys.master.scalars.tobytes().hex()[:8] not in repr(keys)
