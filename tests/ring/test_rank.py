from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import RangeError, ShapeError
from cloister.ring import rank
from cloister.ring.rank import MERSENNE_61, Basis, random_modulus

MODULUS = random_modulus(rng=InsecureSeededRandom(7))


def reference_rank(rows):
    """Gaussian elimination over the rationals."""
    rows, found = [[Fraction(int(v)) for v in row] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        lead = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if lead is None:
            continue
        rows[found], rows[lead] = rows[lead], rows[found]
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] / rows[found][column]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rank_is_the_rank_over_the_rationals(data):
    k, dim = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    entries = st.sampled_from([0, 0, 0, 1, -1, 2, 5, 32767, -32768, 2**62, -(2**63)])
    rows = np.array(data.draw(st.lists(entries, min_size=k * dim, max_size=k * dim)), np.int64)
    rows = rows.reshape(k, dim)
    basis, added = Basis.empty(dim, modulus=MODULUS).extend(rows)
    assert added == basis.rank == reference_rank(rows.tolist())


def test_products_are_exact_at_the_largest_residues():
    rng = np.random.default_rng(0)
    for terms in (1, 70, 2048, 2049):
        a = rng.integers(0, MODULUS, (3, terms), dtype=np.uint64)
        b = rng.integers(0, MODULUS, (terms, 2), dtype=np.uint64)
        a[0], b[:, 0] = MODULUS - 1, MODULUS - 1
        want = (a.astype(object) @ b.astype(object)) % MODULUS
        assert (rank._product(a, b, MODULUS).astype(object) == want).all()


def test_equal_spans_are_one_state_whatever_the_order():
    rng = np.random.default_rng(1)
    rows = rng.integers(-1000, 1000, (90, 120))
    mixed = rng.integers(-5, 6, (90, 90)) @ rows  # invertible with overwhelming probability
    empty = Basis.empty(120, modulus=MODULUS)
    one, _ = empty.extend(rows)
    two, _ = empty.extend(mixed[:31])
    two, _ = two.extend(mixed[31:])
    assert one.rank == 90
    assert one == two
    assert hash(one) == hash(two)
    assert one.extend(rows[::-1] * 3) == (one, 0)
    other, added = one.extend(np.eye(120, dtype=np.int64)[:1])
    assert added == 1
    assert other != one


def test_the_form_is_reduced():
    rows = np.random.default_rng(2).integers(-3, 4, (70, 80))
    rows[:, ::3] = 0
    basis, _ = Basis.empty(80, modulus=MODULUS).extend(rows)
    assert (np.diff(basis.pivots) > 0).all()
    np.testing.assert_array_equal(basis.rows[:, basis.pivots], np.eye(basis.rank))


def test_a_full_basis_is_the_identity_and_stays():
    basis, _ = Basis.empty(30, modulus=MODULUS).extend(
        np.random.default_rng(3).integers(-9, 10, (100, 30))
    )
    np.testing.assert_array_equal(basis.rows, np.eye(30))
    assert basis.extend(np.ones((5, 30), np.int64)) == (basis, 0)


def test_work_stops_at_the_cap_and_changes_nothing():
    rows = np.random.default_rng(4).integers(-9, 10, (200, 150))
    start, _ = Basis.empty(150, modulus=MODULUS).extend(rows[:10])
    same, added = start.extend(rows, cap=40)
    assert same is start
    assert added > 30
    within, added = start.extend(rows[:40], cap=40)
    assert (within.rank, added) == (40, 30)


def test_a_known_prime_could_be_gamed_and_a_secret_one_is_not():
    """Seven small rows whose span modulo 2^61 - 1, not over the rationals, holds an eighth.

    The kernel of the seven is (1, 256, 256^2, ...); a row of base-256 digits of the prime meets
    it in the prime itself.
    """
    chain = np.eye(8, k=1, dtype=np.int64)[:7] - 256 * np.eye(8, dtype=np.int64)[:7]
    digits = np.frombuffer(MERSENNE_61.to_bytes(8, "little"), np.uint8).astype(np.int64)
    rows = np.vstack([chain, digits])
    assert reference_rank(rows.tolist()) == 8
    assert Basis.empty(8, modulus=MERSENNE_61).extend(rows)[1] == 7
    assert Basis.empty(8, modulus=MODULUS).extend(rows)[1] == 8


def test_secret_primes_differ_and_composites_are_refused():
    rng = InsecureSeededRandom(1)
    primes = {random_modulus(rng=rng) for _ in range(4)}
    assert len(primes) == 4
    assert all(2**60 < p < 2**61 for p in primes)
    for bad in (2**61 - 3, 2**61, 2**52 - 47, (2**30 + 3) * (2**30 + 7)):
        with pytest.raises(RangeError, match="prime"):
            Basis.empty(3, modulus=bad)


def test_wrong_rows_are_refused():
    with pytest.raises(ShapeError):
        Basis.empty(3, modulus=MODULUS).extend(np.zeros((1, 4), np.int64))
    with pytest.raises(ShapeError):
        Basis.empty(3, modulus=MODULUS).extend(np.zeros((1, 3), np.float64))
    with pytest.raises(RangeError, match="dimension"):
        Basis.empty(0, modulus=MODULUS)
