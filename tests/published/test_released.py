"""A master key counts what it gives away: an adversary who asks for as many functions as there are
coordinates opens every ciphertext in the paper's mode, and is refused in any other."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import BudgetError, EncryptionError, InputError
from cloister.published import ddh, lwe, lwe_keys, modular
from cloister.published.keyfile import KeyFile
from cloister.ring.rank import Basis

RNG = InsecureSeededRandom(21)
DIM = 4
BOUNDS = {"x_bound": 100, "y_bound": 9}
# Rows whose matrix has determinant one: it can be inverted modulo anything.
ROWS = np.array([[1, 2, 3, 4], [0, 1, -5, 2], [2, 4, 7, 6], [-1, -2, -3, -3]])
INVERSE = np.rint(np.linalg.inv(ROWS)).astype(np.int64)
X = np.array([[7, -100, 0, 42], [1, 2, 3, 4]])
BACK_ENDS = pytest.mark.parametrize("scheme", [ddh, lwe], ids=["ddh", "lwe"])
MASTERS = {ddh: ddh.MasterKey, lwe: lwe.Master}


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
        return lwe.FunctionKey(eye, modular.centre(solved, bits), public.parameters)
    order, group = public.group.order, public.group
    scalars = np.concatenate([key.scalars for key in keys])
    solved = []
    for which in range(public.secrets):
        values = np.array(
            [int.from_bytes(row.tobytes(), "little") for row in scalars[:, which]], object
        )
        solved.append([(row.astype(object) @ values) % order for row in INVERSE])
    made = np.stack([group.encode_scalars(column) for column in solved], axis=1)
    return ddh.FunctionKey(public, eye, made)


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


# ---- across restarts


@BACK_ENDS
def test_a_restart_forgets_nothing(scheme, tmp_path):
    path = tmp_path / "master.key"
    with KeyFile(path, new=True) as file:
        keys = setup(scheme, keep=file.keep)
        first = scheme.keygen(keys.master, ROWS[:2])
        assert path.stat().st_mode & 0o777 == 0o600
    with KeyFile(path) as file:
        master = MASTERS[scheme].from_bytes(file.read(), keep=file.keep)
        assert (master.released.rank, master.released.budget) == (2, DIM - 1)
        again = scheme.keygen(master, ROWS[:2])
        with pytest.raises(BudgetError, match="from 2 to at least 4 of 4, allowed are 3"):
            scheme.keygen(master, ROWS)
        scheme.keygen(master, ROWS[2:3])
    with KeyFile(path) as file:
        master = MASTERS[scheme].from_bytes(file.read(), keep=file.keep)
        with pytest.raises(BudgetError, match="from 3 to at least 4"):
            scheme.keygen(master, ROWS[3:])
    encrypted = scheme.encrypt(keys.encryption, X, rng=RNG)
    for key in (first, again):
        found = scheme.decrypt(keys.public, key, encrypted)
        np.testing.assert_array_equal(found, X @ ROWS[:2].T)


@BACK_ENDS
def test_a_count_that_cannot_be_kept_makes_no_key(scheme):
    kept, replaced = [], []

    def full(data, /, *, replaces):
        replaced.append(replaces)
        if kept:
            raise EncryptionError("master.key: cannot be written (No space left on device)")
        kept.append(data)

    keys = setup(scheme, keep=full)
    fresh = kept[0]
    with pytest.raises(EncryptionError, match="No space left"):
        scheme.keygen(keys.master, ROWS[:1])
    assert keys.master.released.rank == 0
    kept.clear()
    scheme.keygen(keys.master, ROWS[:1])
    # What the span holds already costs no write.
    scheme.keygen(keys.master, 2 * ROWS[:1])
    # A growth that failed is no state to go on from.
    assert replaced == [None, fresh, fresh]
    assert MASTERS[scheme].from_bytes(kept[0], keep=None).released.rank == 1


SCRIPT = """
import os, sys
import numpy as np
from cloister.base.rng import SystemRandom
from cloister.published import ddh, lwe
from cloister.published.keyfile import KeyFile
from published.test_released import DIM, MASTERS, ROWS
scheme = {"ddh": ddh, "lwe": lwe}[sys.argv[1]]
at, calls, real = int(sys.argv[3]), 0, os.fsync
def dies(descriptor):
    global calls
    calls += 1
    if calls > at:
        os.kill(os.getpid(), 9)
    real(descriptor)
with KeyFile(sys.argv[2]) as file:
    master = MASTERS[scheme].from_bytes(file.read(), keep=file.keep)
    os.fsync = dies
    for number, row in enumerate(ROWS):
        scheme.keygen(master, row[None])
        print(number, flush=True)
"""


@BACK_ENDS
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_kill_9_at_any_sync_leaves_no_more_than_is_on_record(scheme, at, tmp_path):
    path, name = tmp_path / "master.key", scheme.__name__.rpartition(".")[2]
    with KeyFile(path, new=True) as file:
        setup(scheme, keep=file.keep)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-P", "-c", textwrap.dedent(SCRIPT), name, str(path), str(at)]
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == -signal.SIGKILL
    held = ran.stdout.split()
    with KeyFile(path) as file:
        master = MASTERS[scheme].from_bytes(file.read(), keep=file.keep)
        rank = master.released.rank
        # Each key takes two syncs, of the file and of its folder. A key that was not answered may
        # be on record; one that was answered is.
        assert len(held) == at // 2
        assert len(held) <= rank <= len(held) + 1
        for row in ROWS[: len(held)]:
            scheme.keygen(master, row[None])
        assert master.released.rank == rank
        with pytest.raises(BudgetError):
            scheme.keygen(master, ROWS)


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


def test_one_process_holds_a_master_key_and_reads_it_once(tmp_path):
    path = tmp_path / "master.key"
    with pytest.raises(InputError, match="no such master key"):
        KeyFile(path)
    with KeyFile(path, new=True) as file:
        setup(lwe, keep=file.keep)
        with pytest.raises(InputError, match="held by another"):
            KeyFile(path)
        with pytest.raises(EncryptionError, match="in use"):
            file.read()
    with pytest.raises(EncryptionError, match="let go of"):
        file.keep(b"x", replaces=None)
    with pytest.raises(InputError, match="exists already"):
        KeyFile(path, new=True)
    with KeyFile(path) as file:
        file.read()
        with pytest.raises(EncryptionError, match="in use"):
            file.read()
    path.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        KeyFile(path)
    with pytest.raises(InputError, match=r"master\.key\.lock: cannot be written"):
        KeyFile(tmp_path / "none" / "master.key")


def test_a_key_file_that_cannot_be_replaced_is_named(tmp_path):
    path = tmp_path / "master.key"
    with KeyFile(path, new=True) as file:
        keys = setup(ddh, keep=file.keep)
        path.rename(tmp_path / "aside")
        path.mkdir()
        with pytest.raises(
            EncryptionError, match=r"master\.key: cannot be written.*no key is made"
        ):
            ddh.keygen(keys.master, ROWS[:1])
        path.rmdir()
        (tmp_path / "aside").rename(path)
        ddh.keygen(keys.master, ROWS[:1])


# ---- bytes


def masters():
    made = []
    for scheme in (ddh, lwe):
        keys = setup(scheme)
        scheme.keygen(keys.master, ROWS[:2])
        made.append((MASTERS[scheme], keys.master))
    return made


@pytest.mark.parametrize(("kind", "master"), masters(), ids=["ddh", "lwe"])
def test_stored_masters_come_back_whole_or_not_at_all(kind, master):
    data = master.to_bytes()
    again = kind.from_bytes(data, keep=None)
    assert again.to_bytes() == data
    assert again.released.basis == master.released.basis
    for cut in (*range(0, len(data), 37), len(data) - 1):
        with pytest.raises(EncryptionError):
            kind.from_bytes(data[:cut], keep=None)
    with pytest.raises(EncryptionError):
        kind.from_bytes(data + b"\0", keep=None)
    for other, _ in masters():
        if other is not kind:
            with pytest.raises(EncryptionError):
                other.from_bytes(data, keep=None)


@pytest.mark.parametrize(("kind", "master"), masters(), ids=["ddh", "lwe"])
def test_a_count_of_another_key_or_above_its_budget_is_refused(kind, master):
    """Neither the count nor the budget of a stored master can be taken from elsewhere."""
    data = master.to_bytes()
    state = master.released.basis.to_bytes()
    modulus = master.released.basis.modulus
    wider, _ = Basis.empty(DIM + 1, modulus=modulus).extend(np.eye(2, DIM + 1, dtype=np.int64))
    full, _ = Basis.empty(DIM, modulus=modulus).extend(np.eye(DIM, dtype=np.int64))
    for changed in (
        data.replace(state, wider.to_bytes()),
        data.replace(state, full.to_bytes()),
        data.replace(state, state[:16] + bytes(8) + state[24:]),
        # The budget stands right before the rank, in the header.
        data.replace((3).to_bytes(8, "little") + (2).to_bytes(8, "little"),
                     (1).to_bytes(8, "little") + (2).to_bytes(8, "little"), 1),
        data.replace((3).to_bytes(8, "little") + (2).to_bytes(8, "little"),
                     (9).to_bytes(8, "little") + (2).to_bytes(8, "little"), 1),
    ):  # fmt: skip
        assert changed != data
        with pytest.raises(EncryptionError):
            kind.from_bytes(changed, keep=None)


def test_parameters_without_a_stored_form_are_refused():
    own = lwe.Parameters("own", 1664, 44, 3.2, 18, 105, 136)
    keys = lwe.setup(DIM, **BOUNDS, rng=RNG, parameters=own)
    with pytest.raises(InputError, match="'own' have no stored form"):
        keys.master.to_bytes()


def test_a_stored_lwe_master_has_bounds_that_cannot_wrap():
    data = bytearray(setup(lwe).master.to_bytes())
    at = lwe_keys._MASTER.size - 32 - 4 * 8
    data[at : at + 8] = (2**40).to_bytes(8, "little")
    with pytest.raises(EncryptionError, match="fewer bits"):
        lwe.Master.from_bytes(bytes(data), keep=None)
