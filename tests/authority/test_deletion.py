"""A data set that was deleted: its keys are nowhere, and none of it comes back."""

import contextlib
import sqlite3

import numpy as np
import pytest

from authority.conftest import add_part, join, start
from authority.test_authority import DIM, dense, mixed
from cloister.authority import database, deletion, tokens
from cloister.authority.authority import Authority
from cloister.authority.deletion import Deleted, delete
from cloister.authority.local import LocalClient
from cloister.authority.registration import NewPart
from cloister.authority.requests import Forward, Labels
from cloister.base.rng import SystemRandom
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import (
    BudgetError,
    CloisterError,
    EncryptionError,
    InputError,
    UnknownDatasetError,
)

RNG = SystemRandom()
OTHER = DatasetInfo("other", (4, 4, 2), 3, Encoding(1.0, 0.0, 8), 0, 8)
KEY = bytes(range(100, 132))


@pytest.fixture
def two(kit):
    """An authority with data sets "set" and "other", of which keys were issued."""
    enrolment = start(kit.authority, OTHER)
    enrolment.register("a" * 32, 5, "b" * 64, KEY)
    add_part(kit.authority, "set", kit.x[:4] // 2, kit.labels[:4], seed=3)
    for name, seed in (("set", 1), ("set", 2), ("other", 3), ("other", 3)):
        kit.authority.ask(Forward(name, kit.ids[:3], mixed(3, seed=seed)), receiver="server")
    kit.authority.ask(Labels("other", kit.ids[:2]), receiver="server")
    return kit


def deleted(kit, name="other"):
    kit.authority.close()
    try:
        return delete(kit.folder, name)
    finally:
        kit.authority = Authority(kit.folder)


def stored(folder):
    return b"".join(path.read_bytes() for path in folder.glob(f"{database.FILE}*"))


def test_its_keys_and_its_rows_are_nowhere(two):
    label_key = two.authority.find("other").label_key
    weights = mixed(3, seed=3).weights.astype("<i2").tobytes()
    two.authority.close()
    for secret in (KEY, label_key, weights, b'"name":"other"'):
        assert secret in stored(two.folder)
    assert delete(two.folder, "other") == Deleted(samples=5, parts=1, tokens=0)
    for secret in (KEY, label_key, weights, b'"name":"other"'):
        assert secret not in stored(two.folder)
    two.authority = Authority(two.folder)
    assert two.authority.datasets() == ("set",)
    with contextlib.closing(sqlite3.connect(two.folder / database.FILE)) as connection:
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master")
            if not name.startswith("sqlite_")
        ]  # fmt: skip
        for table in tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if "dataset" in columns and table != "retired":
                query = f"SELECT count(*) FROM {table} WHERE dataset = 'other'"
                assert connection.execute(query).fetchone() == (0,), table


def test_other_data_sets_keep_everything(two):
    before = two.authority.spent("set")
    key = two.authority.ask(Forward("set", two.ids[:3], mixed(3, seed=2)), receiver="server")
    deleted(two)
    after = two.authority.spent("set")
    for name in ("rank", "bits", "operand", "labels"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    again = two.authority.ask(Forward("set", two.ids[:3], mixed(3, seed=2)), receiver="server")
    np.testing.assert_array_equal(again, key)
    with pytest.raises(BudgetError):
        two.authority.ask(Forward("set", two.ids[:3], mixed(3, seed=9)), receiver="server")


def test_a_name_is_free_again_under_other_keys(two):
    old = two.authority.find("other")
    ids = np.arange(5, dtype=np.int64)
    before = two.authority.ask(Forward("other", ids, dense(np.eye(DIM))), receiver="trusted")
    deleted(two)
    assert two.authority.find("other") is None
    with pytest.raises(UnknownDatasetError, match="not known"):
        two.authority.ask(Forward("other", ids, mixed(3, seed=3)), receiver="server")
    start(two.authority, OTHER).register("c" * 32, 5, "d" * 64, RNG.random_bytes(32))
    assert two.authority.find("other").label_key != old.label_key
    after = two.authority.ask(Forward("other", ids, dense(np.eye(DIM))), receiver="trusted")
    assert (before != after).mean() > 0.99
    assert two.authority.summary("other").rank_max == 0


@pytest.mark.parametrize("changed", [
    {}, {"part": "c" * 32, "pad_key": bytes(32)}, {"part": "c" * 32, "sha256": "d" * 64},
    {"sha256": "d" * 64, "pad_key": bytes(32)},
])  # fmt: skip
@pytest.mark.parametrize("to", ["other", "set"])
def test_its_parts_do_not_come_back_with_a_fresh_budget(two, changed, to):
    """Not by the same request, which a client may send again, nor under another name or key."""
    label_key = two.authority.find("other").label_key
    deleted(two)
    fields = {"part": "a" * 32, "sha256": "b" * 64, "pad_key": KEY} | changed
    if to == "set":
        register = join(two.authority, "set").register
    else:
        agreed = start(two.authority, OTHER).agreement

        def register(part, samples, sha256, key):
            new = NewPart(part, samples, sha256, key, label_key, is_first=True)
            return LocalClient(two.authority).register(agreed, new)

    for _ in range(2):
        with pytest.raises(EncryptionError, match="replay of a part that was deleted"):
            register(fields["part"], 5, fields["sha256"], fields["pad_key"])
        two.authority.close()
        two.authority = Authority(two.folder)
    assert two.authority.find("other") is None


def test_its_tokens_open_nothing_that_is_named_like_it(two):
    path = two.folder / database.FILE
    bound = tokens.issue(path, "server", name="", dataset="other", rng=RNG)
    free = tokens.issue(path, "server", name="", rng=RNG)
    elsewhere = tokens.issue(path, "server", name="", dataset="set", rng=RNG)
    assert deleted(two).tokens == 1
    with pytest.raises(InputError, match="token"):
        tokens.identify(two.authority.database, bound)
    for kept in (free, elsewhere):
        assert tokens.identify(two.authority.database, kept).role == "server"


def test_an_authority_that_serves_is_left_alone(two):
    with pytest.raises(InputError, match="in use by another process"):
        delete(two.folder, "other")
    assert two.authority.datasets() == ("other", "set")
    with pytest.raises(UnknownDatasetError, match="not known"):
        deleted(two, "third")


@pytest.mark.parametrize("statement", ["DELETE FROM parts", "DELETE FROM functionals", "VACUUM"])
def test_a_deletion_that_fails_is_whole_or_absent_and_can_be_finished(two, monkeypatch, statement):
    real = database.connect

    class Failing:
        """A connection that breaks at one statement."""

        def __init__(self, path):
            self._real = real(path)

        def execute(self, sql, *more):
            if sql.startswith(statement):
                raise sqlite3.OperationalError("disk I/O error")
            return self._real.execute(sql, *more)

        def __getattr__(self, name):
            return getattr(self._real, name)

    two.authority.close()
    with monkeypatch.context() as patch:
        patch.setattr(deletion.database, "connect", Failing)
        with pytest.raises(CloisterError, match="disk I/O error"):
            delete(two.folder, "other")
    with Authority(two.folder) as authority:
        gone = authority.find("other") is None
        assert gone == (statement == "VACUUM")
        assert gone or authority.spent("other").rank.max() == 3
    found = delete(two.folder, "other")
    assert found == (Deleted(0, 0, 0) if gone else Deleted(5, 1, 0))
    assert KEY not in stored(two.folder)
    two.authority = Authority(two.folder)
