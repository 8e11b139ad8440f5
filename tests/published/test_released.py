"""A master key counts what it gives away: an adversary who asks for as many functions as there are
coordinates opens every ciphertext in the paper's mode, and is refused in any other."""

import os
import threading

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import BudgetError, EncryptionError, InputError
from cloister.published import ddh, lwe, modular

RNG = InsecureSeededRandom(21)
DIM = 4
BOUNDS = {"x_bound": 100, "y_bound": 9}
# Rows whose matrix has determinant one: it can be inverted modulo anything.
ROWS = np.array([[1, 2, 3, 4], [0, 1, -5, 2], [2, 4, 7, 6], [-1, -2, -3, -3]])
INVERSE = np.rint(np.linalg.inv(ROWS)).astype(np.int64)
X = np.array([[7, -100, 0, 42], [1, 2, 3, 4]])
BACK_ENDS = pytest.mark.parametrize("scheme", [ddh, lwe], ids=["ddh", "lwe"])


def setup(scheme, **more):
    return scheme.setup(DIM, **BOUNDS, rng=RNG, **more)


def unit_keys(scheme, public, keys):
    """Keys of the unit vectors, solved from keys of ROWS without the master key."""
    np.testing.assert_array_equal(INVERSE @ ROWS, np.eye(DIM))
    eye = np.eye(DIM, dtype=np.int64)
    if scheme is lwe:
        bits = public.parameters.q_bits
        yz = np.concatenate([key.yz for key in keys]).astype(object)
        solved = ((INVERSE.astype(object) @ yz) % 2**bits).astype(np.int64)
        return lwe.LweFunctionKey(eye, modular.centre(solved, bits), public.parameters)
    order, group = public.group.order, public.group
    scalars = np.concatenate([key.scalars for key in keys])
    solved = []
    for which in range(public.secrets):
        values = np.array(
            [int.from_bytes(row.tobytes(), "little") for row in scalars[:, which]], object
        )
        solved.append([(row.astype(object) @ values) % order for row in INVERSE])
    made = np.stack([group.encode_scalars(column) for column in solved], axis=1)
    return ddh.DdhFunctionKey(public, eye, made)


def adversary(scheme, keys):
    """Asks for DIM independent functions, one by one; reads ciphertexts that he has no key for."""
    held = [scheme.keygen(keys.master, row[None]) for row in ROWS]
    solved = unit_keys(scheme, keys.public, held)
    return scheme.decrypt(keys.public, solved, scheme.encrypt(keys.encryption, X, rng=RNG))


@BACK_ENDS
def test_in_the_papers_mode_the_adversary_reads_every_ciphertext(scheme):
    np.testing.assert_array_equal(adversary(scheme, setup(scheme, allow_unbounded_leakage=True)), X)


def test_the_adaptive_variant_falls_the_same_way():
    keys = setup(ddh, variant="adaptive", allow_unbounded_leakage=True)
    np.testing.assert_array_equal(adversary(ddh, keys), X)


@BACK_ENDS
@pytest.mark.parametrize("budget", [None, 3, 2, 0])
def test_otherwise_the_adversary_is_refused(scheme, budget):
    keys = setup(scheme, budget=budget)
    limit = DIM - 1 if budget is None else budget
    with pytest.raises(
        BudgetError, match=f"from {limit} to at least {limit + 1} of 4, allowed are"
    ):
        adversary(scheme, keys)
    assert keys.master.released.rank == limit
    # Nor at once, nor in other words; and a refusal counts nothing.
    for rows in (ROWS, ROWS[::-1] * 1, np.eye(DIM, dtype=np.int64)):
        with pytest.raises(BudgetError, match=f"{scheme.__name__.rpartition('.')[2]}: "):
            scheme.keygen(keys.master, rows)
    assert keys.master.released.rank == limit
    if limit:  # Repeats, multiples and sums are free.
        held = ROWS[:limit]
        again = np.concatenate([held, -2 * held[:1], held.sum(axis=0, keepdims=True)])
        again = again[np.abs(again).max(axis=1) <= 9]
        key = scheme.keygen(keys.master, again)
        found = scheme.decrypt(keys.public, key, scheme.encrypt(keys.encryption, X, rng=RNG))
        np.testing.assert_array_equal(found, X @ again.T)
        assert keys.master.released.rank == limit


@BACK_ENDS
def test_threads_share_one_budget(scheme):
    keys = setup(scheme)
    made, refused = [], []

    def ask(row):
        try:
            made.append(scheme.keygen(keys.master, row[None]))
        except BudgetError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask, args=(row,)) for row in ROWS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused), keys.master.released.rank) == (DIM - 1, 1, DIM - 1)


@BACK_ENDS
def test_what_is_charged_is_what_the_key_is_for(scheme):
    keys, y = setup(scheme), ROWS[:1].copy()
    key = scheme.keygen(keys.master, y)
    y[...] = ROWS[1]
    assert (key.y == ROWS[:1]).all()


@BACK_ENDS
@pytest.mark.parametrize("budget", [-1, DIM, DIM + 1])
def test_budgets_that_are_none(scheme, budget):
    with pytest.raises(InputError, match="allow_unbounded_leakage=True"):
        setup(scheme, budget=budget)


@BACK_ENDS
def test_a_budget_and_none_contradict(scheme):
    with pytest.raises(InputError, match="drop one"):
        setup(scheme, budget=2, allow_unbounded_leakage=True)


@BACK_ENDS
def test_a_fork_makes_no_keys(scheme):
    keys = setup(scheme)
    child = os.fork()
    if child == 0:
        try:
            scheme.keygen(keys.master, ROWS[:1])
        except EncryptionError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
