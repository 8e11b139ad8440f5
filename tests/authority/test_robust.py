"""What one client, one server or a passing fault may do to an authority: nothing to the others."""

import sqlite3
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority.conftest import ANY, add_part, join
from authority.test_authority import dense, mixed
from authority.test_disk import until_it_answers
from authority.test_service import served  # noqa: F401  (a fixture)
from cloister.authority import functions, ledger, states, unblinding
from cloister.authority.account import tabulate, tally
from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority
from cloister.authority.database import FILE, Database
from cloister.authority.enrolment import enrol
from cloister.authority.ledger import Ledger
from cloister.authority.local import LocalClient
from cloister.authority.records import DatasetRecord, Terms
from cloister.authority.registration import NewPart
from cloister.authority.requests import Forward, Gradient, Labels
from cloister.authority.states import State
from cloister.authority.words import BLOCK, LABEL_BIT, Words
from cloister.base.rng import SystemRandom
from cloister.cli.main import main
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo, PartInfo
from cloister.errors import BudgetError, EncryptionError, FunctionError, InputError
from cloister.ring.bounds import (
    MAX_DIM,
    MAX_PARTS,
    MAX_PRODUCTS,
    MAX_REQUEST_SAMPLES,
    MAX_SAMPLES,
)
from cloister.ring.linear import Geometry, LinearMap
from cloister.wire.https.bodies import Body, encode

PATIENCE_S = 20
MEGAPIXELS = (1024, 1024, 3)


def described(name, shape=(4, 4, 2), budget=8):
    return DatasetInfo(name, shape, 3, Encoding(1.0, 0.0, 8), 0, budget)


def create(authority, name, shape=(4, 4, 2), *, samples=3, budget=8, terms=None, seed=50):
    """Make a data set with its first part, or ask for that again."""
    info, label_key = described(name, shape, budget), bytes(range(32))
    part, digest, key = f"{seed:032x}", f"{seed:064x}", seed.to_bytes(32, "big")
    new = NewPart(part, samples, digest, key, label_key, is_first=True)
    LocalClient(authority).register(Agreement(info, terms or Terms(**ANY)), new)


def register(authority, name, samples, *, seed=1):
    part, digest, key = f"{seed:032x}", f"{seed:064x}", seed.to_bytes(32, "big")
    return join(authority, name).register(part, samples, digest, key)


def reopened(kit):
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    return kit.authority


# ---- large samples


def test_pictures_of_megapixels_are_a_data_set_like_others(kit):
    create(kit.authority, "large", MEGAPIXELS, samples=2, budget=4)
    rows = np.random.default_rng(1).integers(-3, 4, (2, *MEGAPIXELS)).astype(np.int16)
    linear = LinearMap(Geometry(MEGAPIXELS[:2], 3, (1, 1), 2, MEGAPIXELS[:2]), rows)
    ids = np.arange(2, dtype=np.int64)
    key = kit.authority.ask(Forward("large", ids, linear), receiver="server")
    authority = reopened(kit)
    assert authority.spent("large").rank.tolist() == [2, 2]
    again = authority.ask(Forward("large", ids, linear), receiver="server")
    np.testing.assert_array_equal(again, key)
    assert authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server").any()


def test_larger_samples_are_refused_where_they_are_described():
    largest = DatasetInfo("set", (2048, 2048, 1), 3, Encoding(1.0, 0.0, 8), 0, 0)
    assert largest.dim == MAX_DIM
    with pytest.raises(InputError, match=r"4198400 elements, at most 4194304 .*resize .*2048"):
        DatasetInfo("set", (2050, 2048, 1), 3, Encoding(1.0, 0.0, 8), 0, 0)
    with pytest.raises(InputError, match="resize pictures to 1182 x 1182"):
        DatasetInfo("set", (4000, 3000, 3), 3, Encoding(1.0, 0.0, 8), 0, 0)


# ---- faults that pass


@pytest.mark.parametrize("fault", [OSError(24, "Too many open files"), MemoryError()])
def test_a_fault_while_a_data_set_is_made_leaves_nothing(kit, monkeypatch, fault):
    def fails(*_, **__):
        raise fault

    faults = (
        (Database, "reading"), (DatasetRecord, "with_parts"), (Ledger, "new_account"),
        (Database, "enqueue"),
    )  # fmt: skip
    for seed, (owner, name) in enumerate(faults, 1):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            try:
                create(kit.authority, f"made-{name}", seed=seed)
            except type(fault):
                assert f"made-{name}" not in kit.authority.datasets()
                assert kit.authority.find(f"made-{name}") is None
        for _ in range(2):
            create(kit.authority, f"made-{name}", seed=seed)
        assert kit.authority.describe(f"made-{name}").samples == 3
        assert kit.authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server").any()
    assert len(reopened(kit).datasets()) == 5


def test_a_fault_while_a_part_is_registered_leaves_nothing(kit, monkeypatch):
    def fails(*_, **__):
        raise MemoryError

    faults = ((DatasetRecord, "with_parts"), (np, "concatenate"), (Database, "enqueue"))
    for seed, (owner, name) in enumerate(faults, 1):
        before = kit.authority.describe("set").samples
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fails)
            try:
                register(kit.authority, "set", 3, seed=seed)
            except MemoryError:
                assert kit.authority.describe("set").samples == before
        assert register(kit.authority, "set", 3, seed=seed) == before
        assert register(kit.authority, "set", 3, seed=seed) == before
        ids = np.arange(before + 3, dtype=np.int64)
        assert kit.authority.ask(Forward("set", ids, mixed(2)), receiver="server").any()
    assert reopened(kit).describe("set").samples == 19


@pytest.mark.parametrize("fault", [sqlite3.OperationalError("disk I/O error"), MemoryError()])
def test_a_commit_that_fails_is_tried_again(kit, monkeypatch, fault):
    monkeypatch.setattr("cloister.authority.database.RETRY_S", 0.01)
    write, left = states.write_states, [3]

    def fails(*arguments):
        if left[0]:
            left[0] -= 1
            raise fault
        write(*arguments)

    monkeypatch.setattr(ledger, "write_states", fails)

    def ask(ids=kit.ids):
        return kit.authority.ask(Forward("set", ids, mixed(2)), receiver="server")

    with pytest.raises(EncryptionError, match="no key is issued"):
        ask()
    until_it_answers(ask)
    assert left == [0]
    until_it_answers(lambda: register(kit.authority, "set", 3))
    assert reopened(kit).spent("set").rank.tolist() == [2] * 10 + [0] * 3


def test_a_commit_that_cannot_succeed_is_not_tried_again(kit, monkeypatch):
    def wrong(*_):
        raise sqlite3.IntegrityError("not unique")

    monkeypatch.setattr(ledger, "write_states", wrong)
    for _ in range(2):
        with pytest.raises(EncryptionError, match="restart the authority"):
            kit.authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server")


# ---- data sets that fail


def damage(folder, statement):
    with sqlite3.connect(folder / FILE) as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


DAMAGES = pytest.mark.parametrize(
    "statement",
    [
        "UPDATE datasets SET info = CAST('{}' AS BLOB) WHERE name = 'bad'",
        "UPDATE datasets SET info = CAST(replace(CAST(info AS TEXT), '[4,4,2]', '[4096,4096,2]') "
        "AS BLOB) WHERE name = 'bad'",
        "UPDATE datasets SET info = CAST('7' AS BLOB) WHERE name = 'bad'",
        "UPDATE datasets SET extra = CAST('[1' AS BLOB) WHERE name = 'bad'",
        "UPDATE datasets SET extra = CAST('{\"x\":1}' AS BLOB) WHERE name = 'bad'",
        "UPDATE states SET parent = 9 WHERE dataset = 'bad'",
        "UPDATE journal SET words = x'01' WHERE dataset = 'bad'",
        "UPDATE journal SET ids = x'0102030405060708' WHERE dataset = 'bad'",
        "UPDATE parts SET samples = -1 WHERE dataset = 'bad'",
    ],
)


def damaged(kit, statement):
    """An authority with a data set "bad" beside "set", both with keys issued."""
    create(kit.authority, "bad", seed=1)
    kit.authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server")
    kit.authority.ask(Forward("bad", kit.ids[:1], mixed(2, seed=9)), receiver="server")
    kit.authority.close()
    damage(kit.folder, statement)


@DAMAGES
def test_a_damaged_data_set_stops_neither_the_others_nor_the_start(kit, statement, capsys):
    damaged(kit, statement)
    kit.authority = authority = Authority(kit.folder)
    assert list(authority.failed()) == ["bad"]
    assert authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server").any()
    for ask in (
        lambda: authority.describe("bad"),
        lambda: authority.summary("bad"),
        lambda: authority.ask(Forward("bad", kit.ids[:1], mixed(2)), receiver="server"),
        lambda: authority.find("bad"),
        lambda: create(authority, "bad", seed=1),
        lambda: create(authority, "bad", seed=2),
    ):
        with pytest.raises(EncryptionError, match=r"data set bad: could not be opened .*backup"):
            ask()
    # What is on record for it may not be used elsewhere.
    with pytest.raises(EncryptionError, match="replay"):
        register(authority, "set", 3)
    for command in ("budget", "list"):
        assert main(["authority", command, str(kit.folder)]) == 2
        captured = capsys.readouterr()
        assert "set" in captured.out
        assert "data set bad: cannot be read" in captured.err
        assert captured.err.count("\n") == 1


@DAMAGES
def test_a_damaged_data_set_can_be_deleted(kit, statement, capsys):
    """Its name is free again, what was registered for it stays refused."""
    damaged(kit, statement)
    assert main(["authority", "delete", str(kit.folder), "bad"]) == 2
    assert "confirm with --yes" in capsys.readouterr().err
    assert main(["authority", "delete", str(kit.folder), "bad", "--yes"]) == 0
    kit.authority = authority = Authority(kit.folder)
    assert authority.failed() == {}
    assert authority.find("bad") is None
    with pytest.raises(EncryptionError, match="replay of a part that was deleted"):
        create(authority, "bad", seed=1)
    create(authority, "bad", seed=2)
    assert authority.summary("bad").rank_max == 0
    assert authority.spent("set").rank.tolist() == [2] * 10


# ---- data sets do not wait for each other


def test_a_request_is_answered_while_another_data_set_is_charged(kit, served):  # noqa: F811
    authority = kit.authority
    create(authority, "other")
    p, _, _ = add_part(authority, "other", kit.x, kit.labels, seed=3)
    waiting = [served("server", retry_for_s=PATIENCE_S) for _ in range(40)]
    asking = served("server")
    with authority._ledger._accounts["set"].lock:
        askers = [
            threading.Thread(
                target=keys.ask,
                args=(Forward("set", kit.ids, mixed(2)), "server"),
                daemon=True,
            )
            for keys in waiting
        ]
        for asker in askers:
            asker.start()
        # New functions, gradients and parts: work for threads, more than there are.
        for seed in range(3):
            linear = mixed(2, seed=seed)
            assert asking.ask(Forward("other", kit.ids, linear), receiver="server").any()
        assert asking.ask(Labels("other", kit.ids), receiver="server").any()
        assert asking.summary("other").rank_max == 6
        client = enrol(served("client"), authority.find("other").agreement, rng=SystemRandom())
        assert client.register("a" * 32, 1, "b" * 64, bytes(32)) == 13
        assert any(asker.is_alive() for asker in askers)
    for asker in askers:
        asker.join(PATIENCE_S)
    assert authority.summary("set").rank_max == 2
    assert len(p) == 10


# ---- work that is refused before it is done


def padded(channels):
    """A function of few weights with a row for each of many positions, all different."""
    geometry = Geometry((28, 28), 1, (28, 28), channels, (28, 28), pad=(14, 14))
    weights = np.random.default_rng(0).integers(-9, 10, geometry.weight_shape).astype(np.int16)
    return LinearMap(geometry, weights)


@pytest.mark.parametrize(
    ("terms", "refusal"),
    [
        (Terms(), "1176000 values of 8 bits each: of rank, allowed are 16 of 784, and 128 bits"),
        (Terms(**ANY), "784 kinds of rows"),
    ],
)
def test_a_function_of_too_many_rows_is_refused_by_its_shape(kit, monkeypatch, terms, refusal):
    create(kit.authority, "picture", (28, 28, 1), budget=16, terms=terms)

    def works(*_):
        raise AssertionError("a row was looked at")

    for owner, name in ((functions.Cuts, "pieces"), (functions.Rows, "dense")):
        monkeypatch.setattr(owner, name, works)
    with pytest.raises((BudgetError, FunctionError), match=refusal):
        kit.authority.ask(Forward("picture", kit.ids[:1], padded(1500)), receiver="server")
    assert kit.authority.summary("picture").counts["refusals"] == 1


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        ({"value_bits": 8, "max_bits": 128}, "784 values of 8 bits each: of rank, allowed are 784"),
        ({}, "784 kinds of rows"),
    ],
)
def test_a_gradient_of_too_many_rows_is_refused_by_its_shape(kit, monkeypatch, limits, refusal):
    terms = Terms(**(ANY | limits))
    create(kit.authority, "picture", (28, 28, 1), samples=200, budget=784, terms=terms)

    def works(*_):
        raise AssertionError("a row was looked at")

    monkeypatch.setattr(functions.Cuts, "pieces", works)
    geometry, ids = padded(1).geometry, np.arange(200, dtype=np.int64)
    delta = np.random.default_rng(0).integers(-9, 10, (200, 28, 28, 1)).astype(np.int16)
    with pytest.raises((BudgetError, FunctionError), match=refusal):
        kit.authority.ask(Gradient("picture", ids, geometry, delta), receiver="server")
    assert kit.authority.summary("picture").counts["refusals"] == 1


@pytest.mark.parametrize("kind", ["forward", "gradient"])
def test_refused_requests_leave_nothing_behind(kits, kind):
    """One sample that may give no more, in the company of others that may."""
    kit = kits(budget=8, terms=Terms(**ANY))
    kit.authority.ask(Forward("set", kit.ids[:1], mixed(8)), receiver="server")
    account = kit.authority._ledger._accounts["set"]
    before = len(account.states.all), set(account.states._functions), account.states._kept_bytes
    geometry = Geometry((4, 4), 2, (3, 3), 1, kernel=(2, 2))
    generator = np.random.default_rng(3)
    for seed in range(1, 6):
        with pytest.raises(BudgetError, match="sample 0: this key"):
            if kind == "forward":
                kit.authority.ask(Forward("set", kit.ids, mixed(8, seed=seed)), receiver="server")
            else:
                # The sample that is refused is charged last.
                delta = generator.integers(-9, 10, (10, 3, 3, 1)).astype(np.int16)
                kit.authority.ask(
                    Gradient("set", kit.ids[::-1], geometry, delta), receiver="server"
                )
    states_kept = account.states
    assert (len(states_kept.all), set(states_kept._functions), states_kept._kept_bytes) == before
    assert not states_kept.fresh and not states_kept.fresh_functions
    # What was refused is charged as if it had never been asked for, and is found again.
    kit.authority.ask(Forward("set", kit.ids[1:], mixed(8, seed=1)), receiver="server")
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    assert kit.authority.spent("set").rank.tolist() == [8] * 10


def test_a_function_too_large_to_count_is_charged_by_its_size(kit, monkeypatch):
    monkeypatch.setattr(states, "MAX_ELIMINATION", 4 * 8 * 32)
    same = mixed(2).weights[[0, 1, 0, 1]]
    kit.authority.ask(
        Forward("set", kit.ids, LinearMap(mixed(4).geometry, same)), receiver="server"
    )
    assert kit.authority.spent("set").rank.tolist() == [2] * 10
    same = mixed(2, seed=1).weights[[0, 1, 0, 1, 0]]
    kit.authority.ask(
        Forward("set", kit.ids, LinearMap(mixed(5).geometry, same)), receiver="server"
    )
    assert kit.authority.spent("set").rank.tolist() == [7] * 10


def test_samples_and_products_of_one_request_are_bounded(kit):
    many = np.zeros(MAX_REQUEST_SAMPLES + 1, np.int64)
    linear = mixed(1)
    for receiver in ("server", "trusted"):
        with pytest.raises(FunctionError, match=f"at most {MAX_REQUEST_SAMPLES} are possible"):
            kit.authority.ask(Forward("set", many, linear), receiver=receiver)
        with pytest.raises(FunctionError, match="use smaller batches"):
            kit.authority.ask(Labels("set", many), receiver=receiver)
        channels = MAX_PRODUCTS // (32 * 1024) + 1
        geometry = Geometry((1, 1), 32, (1, 1), channels)
        wide = LinearMap(geometry, np.zeros(geometry.weight_shape, np.int16))
        with pytest.raises(FunctionError, match="too large for 1024 samples at once"):
            kit.authority.ask(Forward(
                "set", np.zeros(1024, np.int64), wide), receiver=receiver
            )  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 32, 100])
def test_a_key_is_the_same_in_pieces(kit, monkeypatch, at_once):
    geometry = Geometry((4, 4), 2, (3, 3), 5, kernel=(2, 2))
    delta = np.random.default_rng(2).integers(-9, 10, (10, 3, 3, 5)).astype(np.int16)

    def keys():
        return (
            kit.authority.ask(Forward("set", kit.ids, mixed(4)), receiver="server"),
            kit.authority.ask(Gradient("set", kit.ids, geometry, delta), receiver="trusted"),
        )

    whole = keys()
    monkeypatch.setattr(unblinding, "PADS_AT_ONCE", at_once)
    for found, wanted in zip(keys(), whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("at_once", [1, 70])
def test_rows_are_refused_in_whichever_piece_they_are(kit, monkeypatch, at_once):
    monkeypatch.setattr(functions, "WEIGHTS_AT_ONCE", at_once)
    good = np.random.default_rng(0).integers(-50, 51, (5, 32))
    kit.authority.ask(Forward("set", kit.ids, dense(good)), receiver="server")
    for place in range(5):
        rows = good.copy()
        rows[place] = np.eye(32)[3]
        with pytest.raises(FunctionError, match="single element"):
            kit.authority.ask(Forward("set", kit.ids, dense(rows)), receiver="server")
    geometry = Geometry((4, 4), 2, (4, 4), 2)
    good = np.random.default_rng(1).integers(1, 9, (7, 4, 4, 2)).astype(np.int16)

    def ask(delta):
        kit.authority.ask(Gradient("set", kit.ids[:7], geometry, delta), receiver="server")

    with pytest.raises(BudgetError, match="rank"):
        ask(good)
    for sample, channel in ((0, 0), (5, 1), (6, 1)):
        delta = good.copy()
        delta[sample, :, :, channel] = 0
        delta[sample, 0, 0, channel], delta[sample, 2, 2, channel] = 2000, 3
        with pytest.raises(FunctionError, match="packs"):
            ask(delta)
        delta[sample, 0, 0, channel] = 0
        with pytest.raises(FunctionError, match="single element"):
            ask(delta)


# ---- samples that are only claimed


def test_a_claimed_sample_takes_no_memory(kit):
    tracemalloc.start()
    try:
        create(kit.authority, "claimed", samples=MAX_SAMPLES)
        assert kit.authority.summary("claimed").samples == MAX_SAMPLES
        assert tracemalloc.get_traced_memory()[1] < MAX_SAMPLES // 64
    finally:
        tracemalloc.stop()
    with pytest.raises(InputError, match="samples"):
        register(kit.authority, "claimed", 1, seed=2)
    last = np.array([0, MAX_SAMPLES - 1], np.int64)
    kit.authority.ask(Forward("claimed", last, mixed(2)), receiver="server")
    for authority in (kit.authority, reopened(kit)):
        summary = authority.summary("claimed")
        assert (summary.rank_min, summary.rank_median, summary.rank_max) == (0, 0, 2)
        account = authority._ledger._accounts["claimed"]
        assert (account.words[last] & ~LABEL_BIT).tolist() == [1, 1]
        assert account.words[last // 2].tolist() == [1, 0]


def test_the_list_of_all_parts_fits_into_a_message(kit):
    part = PartInfo("a" * 32, MAX_SAMPLES, MAX_SAMPLES, "b" * 64)
    encode(Body({"parts": {f"{n:032x}": vars(part) for n in range(MAX_PARTS)}}))
    found = DatasetRecord(described("set"), Terms(), bytes(32))
    parts = [(PartInfo(f"{n:032x}", n, 1, f"{n:064x}"), bytes(32)) for n in range(MAX_PARTS + 1)]
    full = found.with_parts(*parts[:MAX_PARTS])
    with pytest.raises(InputError, match=f"up to {MAX_PARTS} parts"):
        full.with_parts(parts[MAX_PARTS])


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 4 * BLOCK - 1), min_size=1), st.integers(0, 3)),
        max_size=6,
    ),
    st.integers(0, 5),
)
def test_words_by_blocks_are_words(moves, folds_after):
    samples = 4 * BLOCK
    words, plain = Words(), np.zeros(samples, np.uint32)
    stored = np.zeros_like(plain)
    for number, (places, state) in enumerate(moves):
        ids = np.unique(np.array(places, np.int64))
        values = (np.uint32(state) | np.where(ids % 3 == 0, LABEL_BIT, 0)).astype(np.uint32)
        blocks = words.folded(ids, values)
        words[ids], plain[ids] = values, values
        if number >= folds_after:
            for block, content in blocks:
                stored[block * BLOCK : (block + 1) * BLOCK] = np.frombuffer(content, "<u4")
            words.unfolded.clear()
            np.testing.assert_array_equal(stored, plain)
    np.testing.assert_array_equal(words[np.arange(samples)], plain)
    table = [State(i, 0, b"", False, 5 * (3 - i), i, 7 * i, i) for i in range(4)]
    for count in (samples, samples + 3):
        spent = tabulate(words, count, table)
        figures = tally(words, count, table, {}, evaluations=0)
        assert figures.rank_median == np.median(spent.rank)
        assert (figures.rank_min, figures.rank_max) == (spent.rank.min(), spent.rank.max())
        assert figures.bits_max == spent.bits.max()
        assert figures.operand_max == spent.operand.max()
        assert figures.labels == spent.labels.sum()
