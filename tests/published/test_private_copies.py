"""What is checked and counted is what is used: no subclass, and nothing that changes meanwhile."""

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import BudgetError, RangeError
from cloister.published import ddh, gaussian, lwe, mask, modular
from cloister.published.ddh.parameters import group_named
from cloister.ring.rank import MERSENNE_61, Basis

RNG = InsecureSeededRandom(29)
EYE = np.eye(4, dtype=np.int64)
BACK_ENDS = pytest.mark.parametrize("scheme", [ddh, lwe], ids=["ddh", "lwe"])


def setup(scheme, **more):
    return scheme.setup(4, x_bound=9, y_bound=9, rng=RNG, **more)


def masked(values, first=0):
    """All rows but the first ones behind a mask."""
    hidden = np.ones(values.shape, bool)
    hidden[:first] = False
    return np.ma.masked_array(values, mask=hidden)


class Restless(np.ndarray):
    """Shows small numbers to whoever asks for its largest and smallest."""

    def max(self, *args, **options):
        return np.int64(0)

    min = max

    def copy(self, order="C"):
        return self


@BACK_ENDS
@pytest.mark.parametrize("first", [0, 1])
def test_masked_functions_are_counted(scheme, first):
    keys = setup(scheme, budget=1)
    with pytest.raises(BudgetError, match="from 0 to at least"):
        scheme.keygen(keys.master, masked(EYE, first))
    assert keys.master.released.rank == 0
    key = scheme.keygen(keys.master, masked(EYE[:1]))
    assert (type(key.y), keys.master.released.rank) == (np.ndarray, 1)
    x = np.array([[1, -2, 3, -4]])
    found = scheme.decrypt(keys.public, key, scheme.encrypt(keys.encryption, x, rng=RNG))
    np.testing.assert_array_equal(found, [[1]])


@BACK_ENDS
@pytest.mark.parametrize("hide", [masked, lambda values: values.view(Restless)])
def test_every_entry_meets_its_bound(scheme, hide):
    keys = setup(scheme)
    plain = np.array([[1, 2], [3, 4]])
    commitments = scheme.encrypt_elements(keys.encryption, plain, rng=RNG).commitments
    for call in (
        lambda: scheme.keygen(keys.master, hide(10 * EYE)),
        lambda: scheme.encrypt(keys.encryption, hide(10 * EYE), rng=RNG),
        lambda: scheme.encrypt_elements(keys.encryption, hide(10 * plain), rng=RNG),
        lambda: scheme.keygen_elements(keys.master, "*", hide(10 * plain), commitments=commitments),
    ):
        with pytest.raises(RangeError):
            call()
    assert keys.master.released.rank == 0


@BACK_ENDS
def test_a_key_keeps_no_array_of_its_caller(scheme):
    keys = setup(scheme)
    y = EYE[:1].view(Restless)
    key = scheme.keygen(keys.master, y)
    assert not np.shares_memory(key.y, y)
    x = np.array([[1, 2]])
    encrypted = scheme.encrypt_elements(keys.encryption, x, rng=RNG)
    operand = np.array([[3, 3]]).view(Restless)
    made = scheme.keygen_elements(keys.master, "+", operand, commitments=encrypted.commitments)
    assert not np.shares_memory(made.y, operand)
    operand[...] = 5
    np.testing.assert_array_equal(scheme.decrypt_elements(keys.public, made, encrypted), x + 3)


def test_a_zero_behind_a_mask_does_not_divide():
    keys = setup(ddh)
    encrypted = ddh.encrypt_elements(keys.encryption, EYE, rng=RNG)
    with pytest.raises(RangeError, match="division by zero"):
        ddh.keygen_elements(keys.master, "/", masked(EYE), commitments=encrypted.commitments)


def test_a_basis_counts_what_is_behind_a_mask():
    empty = Basis.empty(4, modulus=MERSENNE_61)
    assert empty.extend(masked(EYE))[0] == empty.extend(EYE)[0]
    assert empty.extend(masked(EYE), cap=2)[1] > 2


def test_samples_behind_a_mask_are_encrypted_with_noise():
    """Without it A Z^T is in the open, and Z the solution of a linear system."""
    keys = setup(lwe)
    x = np.zeros((64, 4), np.int64)
    encrypted = lwe.encrypt(keys.encryption, masked(x), rng=RNG)
    assert type(encrypted.values) is np.ndarray
    noise = encrypted.values - modular.product(encrypted.a, keys.encryption.z)
    assert np.count_nonzero(noise) > x.size // 2
    assert np.abs(noise).max() <= gaussian.TAIL * keys.public.parameters.sigma + 1


class TwoSeeds:
    """Commitments that name another ciphertext each time they are asked."""

    shape = (2, 2)

    def __init__(self, *seeds):
        self._seeds = iter(seeds)

    @property
    def seed(self):
        return next(self._seeds)


def test_the_pads_of_a_ciphertext_have_one_noise():
    keys = setup(lwe)
    x = np.array([[1, 2], [3, 4]])
    encrypted = lwe.encrypt_elements(keys.encryption, x, rng=RNG)
    honest = lwe.keygen_elements(keys.master, "/", x, commitments=encrypted.commitments)
    seed = encrypted.commitments.seed
    changing = TwoSeeds(seed, bytes(32), bytes(32))
    key = lwe.keygen_elements(keys.master, "/", x, commitments=changing)
    np.testing.assert_array_equal(key.term, honest.term)
    assert key.commitments == encrypted.commitments


def test_commitments_that_change_after_the_check_are_not_used(monkeypatch):
    keys, x = setup(ddh), np.array([[1, 2]])
    encrypted = ddh.encrypt_elements(keys.encryption, x, rng=RNG)
    honest = ddh.keygen_elements(keys.master, "/", x, commitments=encrypted.commitments)
    given = np.array(encrypted.commitments)
    group = type(group_named("curve25519"))
    real = group.check_elements

    def check(self, elements, **options):
        real(self, elements, **options)
        given[...] = keys.public.group.generator

    monkeypatch.setattr(group, "check_elements", check)
    key = ddh.keygen_elements(keys.master, "/", x, commitments=given)
    np.testing.assert_array_equal(key.elements, honest.elements)


def test_a_mask_back_end_blinds_and_binds_plain_arrays():
    keys = mask.setup(4, x_bound=9, y_bound=9, rng=RNG)
    twice = np.ma.masked_array(np.array([5, 5]), mask=[False, True])
    with pytest.raises(RangeError, match="repeated"):
        mask.blind(keys.encryption.key, np.ones((2, 4), np.int64), twice, domain=0)
    with pytest.raises(RangeError):
        mask.encrypt(keys.encryption, masked(99 * EYE), rng=RNG)
    with pytest.raises(RangeError):
        mask.keygen(keys.master, masked(99 * EYE), ciphertexts_ids=np.arange(2))
    ids = np.arange(2)
    key = mask.keygen(keys.master, EYE, ciphertexts_ids=ids)
    ids += 1
    assert key.ids.tolist() == [0, 1]
