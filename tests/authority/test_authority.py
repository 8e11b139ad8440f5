import threading
from dataclasses import replace

import numpy as np
import pytest

from authority.conftest import ANY, add_part, join, start
from cloister.authority.authority import Authority
from cloister.authority.records import Terms
from cloister.authority.registration import NewPart, Registration
from cloister.authority.requests import Forward, Gradient, Labels
from cloister.base.rng import SystemRandom
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import (
    BudgetError,
    EncryptionError,
    FunctionError,
    InputError,
    ShapeError,
    UnknownDatasetError,
)
from cloister.ring import pads
from cloister.ring.bounds import check_size
from cloister.ring.linear import Geometry, LinearMap

DIM = 32


def dense(rows):
    rows = np.asarray(rows, np.int16)
    return LinearMap(
        Geometry((1, 1), rows.shape[1], (1, 1), rows.shape[0]),
        rows.reshape(len(rows), 1, 1, -1),
    )


def mixed(count, *, seed=0, dim=DIM, size=50):
    return dense(np.random.default_rng(seed).integers(-size, size + 1, (count, dim)))


def flat(values):
    return values.reshape(len(values), 1, 1, -1)


def test_keys_unblind_exactly_what_they_name(kit):
    linear = mixed(4)
    ids = np.array([7, 2, 2], np.int64)
    key = kit.authority.ask(Forward("set", ids, linear), receiver="server")
    values = pads.unblind(pads.forward(linear, flat(kit.p[ids])), key)
    expected = kit.x[ids].reshape(3, -1).astype(np.int64) @ linear.weights.reshape(4, -1).T
    np.testing.assert_array_equal(values.reshape(3, 4), expected)


def test_gradients_and_labels_unblind(kit):
    geometry = Geometry((4, 4), 2, (3, 3), 5, kernel=(2, 2))
    generator = np.random.default_rng(2)
    delta = generator.integers(-99, 100, (10, 3, 3, 5)).astype(np.int16)
    key = kit.authority.ask(Gradient("set", kit.ids, geometry, delta), receiver="trusted")
    values = pads.unblind(pads.gradient(geometry, delta, kit.p), key)
    expected = np.zeros((5, 2, 2, 2), np.int64)
    for i, j in np.ndindex(2, 2):
        window = kit.x[:, i : i + 3, j : j + 3, :].astype(np.int64)
        expected[:, i, j, :] = np.einsum("nhwo,nhwc->oc", delta.astype(np.int64), window)
    np.testing.assert_array_equal(values, expected)
    labels = kit.authority.ask(Labels("set", kit.ids), receiver="server")
    np.testing.assert_array_equal(pads.unblind(kit.y, labels).argmax(axis=1), kit.labels)
    assert kit.authority.summary("set").labels_released == 10


def test_budget_is_spent_once_and_refused_beyond(kit):
    first, second = mixed(5, seed=1), mixed(4, seed=2)
    for _ in range(3):
        kit.authority.ask(Forward("set", kit.ids, first), receiver="server")
    assert kit.authority.summary("set").rank_max == 5
    with pytest.raises(BudgetError, match=r"from 5 to at least 9 of 32, allowed are 8"):
        kit.authority.ask(Forward("set", kit.ids[:1], second), receiver="server")
    kit.authority.ask(Forward("set", kit.ids[:1], mixed(3, seed=3)), receiver="server")
    summary = kit.authority.summary("set")
    assert (summary.rank_min, summary.rank_max) == (5, 8)
    assert summary.counts["refusals"] == 1
    # Combinations of what was given away are free.
    same_span = dense(2 * first.weights.reshape(5, -1)[::-1])
    kit.authority.ask(Forward("set", kit.ids, same_span), receiver="server")
    assert kit.authority.summary("set").rank_max == 8


def test_a_refused_batch_charges_nobody(kit):
    kit.authority.ask(Forward("set", kit.ids[:1], mixed(8, seed=1)), receiver="server")
    with pytest.raises(BudgetError, match="sample 0"):
        kit.authority.ask(Forward("set", kit.ids, mixed(1, seed=2)), receiver="server")
    assert kit.authority.spent("set").rank.tolist() == [8] + [0] * 9


def test_trusted_releases_are_counted_and_not_charged(kit):
    kit.authority.ask(Forward("set", kit.ids, mixed(30)), receiver="trusted")
    summary = kit.authority.summary("set")
    assert summary.rank_max == 0
    assert summary.counts["trusted"] == 1


def test_the_ledger_survives_a_restart(kit):
    kit.authority.ask(Forward("set", kit.ids, mixed(5, seed=1)), receiver="server")
    kit.authority.ask(Forward("set", kit.ids[3:], mixed(2, seed=2)), receiver="server")
    kit.authority.ask(Labels("set", kit.ids[:4]), receiver="server")
    before = kit.authority.spent("set")
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    after = kit.authority.spent("set")
    for name in ("rank", "bits", "operand", "labels"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    kit.authority.ask(Forward("set", kit.ids, mixed(5, seed=1)), receiver="server")
    with pytest.raises(BudgetError):
        kit.authority.ask(Forward("set", kit.ids[3:], mixed(2, seed=9)), receiver="server")
    np.testing.assert_array_equal(kit.authority.spent("set").rank, after.rank)


def test_the_journal_is_folded_and_read_back(kit, monkeypatch):
    monkeypatch.setattr("cloister.authority.ledger.JOURNAL_ROWS", 3)
    generator = np.random.default_rng(8)
    for step in range(25):
        ids = generator.choice(kit.ids, 3, replace=False)
        kit.authority.ask(Forward("set", ids, mixed(1, seed=step)), receiver="server")
        if kit.authority.summary("set").rank_max >= 8:
            break
    before = kit.authority.spent("set").rank
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    np.testing.assert_array_equal(kit.authority.spent("set").rank, before)


def test_a_dense_gradient_gives_the_whole_sample_away(kits):
    """Element by element, also where the budget has room for all of them."""
    kit = kits(budget=DIM)
    geometry = Geometry((1, 1), DIM, (1, 1), 16)
    delta = np.random.default_rng(1).integers(-50, 51, (10, 1, 1, 16)).astype(np.int16)
    with pytest.raises(FunctionError, match="single element"):
        kit.authority.ask(Gradient("set", kit.ids, geometry, delta), receiver="server")
    delta[1:] = 0
    with pytest.raises(FunctionError, match="single element"):
        kit.authority.ask(Gradient("set", kit.ids, geometry, delta), receiver="server")
    assert kit.authority.spent("set").rank.max() == 0


def test_convolution_gradients_are_charged_by_kernel_and_repeats_are_free(kits):
    kit = kits(shape=(6, 6, 1), budget=18)
    geometry = Geometry((6, 6), 1, (4, 4), 2, kernel=(3, 3))
    delta = np.random.default_rng(1).integers(-50, 51, (10, 4, 4, 2)).astype(np.int16)
    for _ in range(2):
        kit.authority.ask(Gradient("set", kit.ids, geometry, delta), receiver="server")
        assert kit.authority.spent("set").rank.tolist() == [18] * 10
    with pytest.raises(BudgetError):
        kit.authority.ask(Gradient("set", kit.ids, geometry, delta[::-1]), receiver="server")
    with pytest.raises(BudgetError):
        kit.authority.ask(Forward("set", kit.ids, mixed(1, dim=36)), receiver="server")


@pytest.mark.parametrize(
    "rows",
    [
        np.eye(DIM)[:1] * 7,
        np.r_[[30000, 100], np.zeros(DIM - 2)][None],
        np.r_[[20000, 30000], np.zeros(DIM - 2)][None],
        # A dense row that is two rows: multiples of 20000 above a remainder below it.
        np.r_[np.full(3, 20000), np.full(29, 1)][None],
    ],
)  # fmt: skip
def test_functions_that_read_single_values_are_refused(kit, rows):
    with pytest.raises(FunctionError):
        kit.authority.ask(Forward("set", kit.ids, dense(rows)), receiver="server")
    assert kit.authority.summary("set").counts["refusals"] == 1


def test_packed_gradients_are_refused(kits):
    kit = kits(shape=(6, 6, 1), budget=36)
    geometry = Geometry((6, 6), 1, (4, 4), 1, kernel=(3, 3))
    delta = np.zeros((10, 4, 4, 1), np.int16)
    delta[:, 0, 0], delta[:, 2, 2] = 2000, 3
    with pytest.raises(FunctionError, match="packs"):
        kit.authority.ask(Gradient("set", kit.ids, geometry, delta), receiver="server")


ELEMENT = np.zeros((6, 6))
ELEMENT[3, 2] = 7
PADDED = Geometry((6, 6), 1, (6, 6), 1, kernel=(3, 3), pad=(1, 1))


@pytest.mark.parametrize(("geometry", "delta"), [
    # dW[0] is the sum of delta[p] x[p]: the element itself.
    (Geometry((6, 6), 1, (6, 6), 1), ELEMENT),
    (Geometry((6, 6), 1, (2, 2), 1, kernel=(5, 5)), ELEMENT[3:5, 2:4]),
    (Geometry((6, 6), 1, (3, 3), 1, kernel=(2, 2), stride=(2, 2)), ELEMENT[3:, 2:5]),
    (Geometry((6, 6), 1, (1, 1), 1, kernel=(6, 6)), [[1]]),
    # Two positions, of which the kernel's corners see one: the padding has the other.
    (PADDED, np.outer([1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]) + ELEMENT),
    (PADDED, np.outer([1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0])),
], ids=["position", "kernel", "stride", "dense", "corner", "edge"])  # fmt: skip
def test_gradients_that_read_single_elements_are_refused(kits, geometry, delta):
    """Of one sample of a batch, whatever the others are asked: they may be known."""
    kit = kits(shape=(6, 6, 1), budget=36)
    mixing = np.random.default_rng(3).integers(-9, 10, (3, *geometry.out_shape))
    mixing[1] = np.reshape(delta, geometry.out_shape)
    for ids, batch in ((kit.ids[1:2], mixing[1:2]), (kit.ids[:3], mixing)):
        with pytest.raises(FunctionError, match="single element"):
            kit.authority.ask(
                Gradient("set", ids, geometry, batch.astype(np.int16)), receiver="server"
            )
    summary = kit.authority.summary("set")
    assert (summary.rank_max, summary.counts["refusals"]) == (0, 2)


FILLED = np.random.default_rng(7).integers(-9, 10, (6, 6))


@pytest.mark.parametrize("row", [
    ELEMENT, -300 * ELEMENT, 2000 * ELEMENT / 7 + np.eye(6) * 3, np.eye(6) * 20000, FILLED,
    3000 * FILLED, np.zeros((6, 6)),
], ids=["unit", "wide unit", "packed", "short", "filled", "wide", "nothing"])  # fmt: skip
@pytest.mark.parametrize("terms", [ANY, {"one_function": False}], ids=["exact", "noisy"])
def test_a_functional_is_judged_and_charged_alike_by_every_kind_of_request(kits, row, terms):
    """As a function's only row, and as what a gradient of a 1x1 convolution says of a sample."""
    kit = kits(shape=(6, 6, 1), budget=36, terms=Terms(**terms))
    row = np.rint(row).astype(np.int16)
    as_row = LinearMap(Geometry((6, 6), 1, (1, 1), 1, kernel=(6, 6)), row.reshape(1, 6, 6, 1))
    position, delta = Geometry((6, 6), 1, (6, 6), 1), row.reshape(1, 6, 6, 1)
    asks = (
        lambda ids: kit.authority.ask(Forward("set", ids, as_row), receiver="server"),
        lambda ids: kit.authority.ask(Gradient("set", ids, position, delta), receiver="server"),
    )
    found = []
    for sample, ask in enumerate(asks):
        try:
            ask(kit.ids[sample : sample + 1])
            refusal = None
        except FunctionError as error:
            refusal = str(error)
        spent = kit.authority.spent("set")
        found.append((refusal, spent.bits[sample], spent.operand[sample], spent.rank[sample]))
    assert found[0] == found[1]


def test_wrong_dimensions_sizes_and_ids(kit):
    def ask(dataset, ids, linear):
        return kit.authority.ask(Forward(dataset, ids, linear), receiver="server")

    with pytest.raises(FunctionError, match="32 elements, the function takes 31"):
        ask("set", kit.ids, mixed(2, dim=31))
    for bad in (-1, 10, 2**62):
        with pytest.raises(EncryptionError, match=f"no sample {bad}"):
            ask("set", np.array([0, bad], np.int64), mixed(2))
    with pytest.raises(ShapeError):
        ask("set", kit.ids.astype(np.int32), mixed(2))
    with pytest.raises(UnknownDatasetError, match="not known"):
        ask("other", kit.ids, mixed(2))
    geometry = Geometry((1, 1), DIM, (1, 1), 1)
    twice = np.array([1, 1], np.int64)
    with pytest.raises(FunctionError, match="twice"):
        kit.authority.ask(
            Gradient("set", twice, geometry, np.ones((2, 1, 1, 1), np.int16)), receiver="server"
        )


def test_functions_whose_answers_could_wrap_are_refused_for_everyone(kits):
    kit = kits(shape=(24, 24, 1), mode="paper")
    for receiver in ("server", "trusted"):
        with pytest.raises(FunctionError, match="coarser"):
            kit.authority.ask(
                Forward("set", kit.ids, dense(np.full((1, 576), 32767))), receiver=receiver
            )
        with pytest.raises(FunctionError, match="coarser"):
            geometry = Geometry((24, 24), 1, (24, 24), 1)
            delta = np.full((10, 24, 24, 1), 32767, np.int16)
            kit.authority.ask(Gradient("set", kit.ids, geometry, delta), receiver=receiver)


@pytest.mark.parametrize("size", [2**17, 2**31, 2**62])
@pytest.mark.parametrize("field", ["stride", "dilation", "upsample", "pad", "kernel", "out_size"])
def test_geometries_that_reach_far_never_come_to_a_kernel(kit, field, size):
    fields = {"in_size": (4, 4), "in_channels": 2, "out_size": (2, 2), "out_channels": 1}
    info = kit.authority.describe("set")
    with pytest.raises((FunctionError, ShapeError), match=r"geometry|windows span"):
        check_size(info, Geometry(**(fields | {"kernel": (2, 2)} | {field: (size, 1)})), 1)


def test_an_unknown_receiver_gets_nothing(kit):
    for receiver in ("Server", "", None):
        with pytest.raises(InputError, match="receiver"):
            kit.authority.ask(Forward("set", kit.ids, mixed(1)), receiver=receiver)
        with pytest.raises(InputError, match="receiver"):
            kit.authority.ask(Labels("set", kit.ids), receiver=receiver)
    assert kit.authority.summary("set").counts["requests"] == 0


def test_the_books_keep_what_was_asked_not_the_caller_s_array(kit, monkeypatch):
    monkeypatch.setattr("cloister.authority.states.BASES_KEPT_BYTES", 0)
    linear = mixed(8)
    kit.authority.ask(Forward("set", kit.ids[:1], linear), receiver="server")
    kit.authority.ask(Forward("set", kit.ids[1:2], mixed(1, seed=1)), receiver="server")
    linear.weights[...] = mixed(8, seed=2).weights
    with pytest.raises(BudgetError):
        kit.authority.ask(Forward("set", kit.ids[:1], linear), receiver="server")
    kit.authority.ask(Forward("set", kit.ids[:1], mixed(8)), receiver="server")


def test_paper_mode_counts_and_never_refuses(kits):
    kit = kits(mode="paper")
    for seed in range(4):
        kit.authority.ask(Forward("set", kit.ids, mixed(12, seed=seed)), receiver="server")
        kit.authority.ask(Forward("set", kit.ids, dense(np.eye(DIM)[:1])), receiver="server")
    summary = kit.authority.summary("set")
    assert (summary.rank_min, summary.rank_max) == (DIM, DIM)
    assert summary.counts["refusals"] == 0
    assert summary.counts["forward"] == 8


def test_paper_mode_needs_the_word_of_every_client(kit):
    """The mode of a data set is one value: whoever does not name `paper` gets none of it."""
    info = DatasetInfo("paper", (2, 2, 1), 3, Encoding(1.0, 0.0, 8), 0, 1, "paper")
    start(kit.authority, info).register("a" * 32, 1, "b" * 64, bytes(32))
    with pytest.raises(InputError, match=r"gives away more than was accepted: mode \(1 instead of"):
        start(kit.authority, replace(info, mode="budgeted"))
    assert kit.authority.describe("paper").samples == 1


def test_bits_can_be_limited_and_labels_withheld(kits):
    kit = kits(terms=Terms(labels_to_server=False, **(ANY | {"max_bits": 60})))
    kit.authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server")
    with pytest.raises(BudgetError, match="bits"):
        kit.authority.ask(Forward("set", kit.ids, mixed(4, seed=4)), receiver="server")
    with pytest.raises(FunctionError, match="trusted"):
        kit.authority.ask(Labels("set", kit.ids), receiver="server")
    assert kit.authority.ask(Labels("set", kit.ids), receiver="trusted").shape == (10, 3)


def test_parts_share_one_numbering(kit):
    more = kit.x[:4] // 2
    p, _, first = add_part(kit.authority, "set", more, kit.labels[:4], seed=2)
    assert first == 10
    assert kit.authority.describe("set").samples == 14
    linear = mixed(3)
    ids = np.array([12, 1, 13], np.int64)
    key = kit.authority.ask(Forward("set", ids, linear), receiver="server")
    both = np.concatenate([kit.p, p])[ids]
    values = pads.unblind(pads.forward(linear, flat(both)), key)
    plain = np.concatenate([kit.x, more])[ids].reshape(3, -1).astype(np.int64)
    np.testing.assert_array_equal(values.reshape(3, 3), plain @ linear.weights.reshape(3, -1).T)
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    again = kit.authority.ask(Forward("set", ids, linear), receiver="server")
    np.testing.assert_array_equal(again, key)


def test_replayed_parts_and_keys(kit):
    key, part, digest = bytes(range(1, 33)), "a" * 32, "b" * 64
    register = join(kit.authority, "set").register
    assert register(part, 3, digest, key) == 10
    assert register(part, 3, digest, key) == 10
    for again in (
        (part, 4, digest, key),
        ("c" * 32, 3, digest, key),
        ("c" * 32, 3, digest, bytes(32)),
        ("c" * 32, 3, "d" * 64, key),
    ):
        with pytest.raises(EncryptionError, match="replay"):
            register(*again)
    other = start(kit.authority, replace(kit.authority.describe("set"), name="other", samples=0))
    with pytest.raises(EncryptionError, match="replay"):
        other.register(part, 3, digest, key)
    assert kit.authority.datasets() == ("set",)


@pytest.mark.parametrize("field", ["dataset", "part", "sha256", "agreement"])
def test_sealed_keys_are_of_one_part_under_one_agreement(kit, field):
    """A registration taken from another part, or made of terms that were others, opens nothing."""
    known = kit.authority.find("set")
    new = NewPart("a" * 32, 3, "b" * 64, bytes(32), known.label_key, is_first=False)
    offered = Registration.of(new, known.agreement, to=kit.authority.identity.public)
    other = replace(offered, **{field: "c" * len(getattr(offered, field))})
    with pytest.raises(EncryptionError, match="sealed"):
        kit.authority.register(other)
    assert kit.authority.register(offered) == len(kit.x)


def test_one_process_at_a_time_and_no_overwriting(kit):
    with pytest.raises(InputError, match="in use"):
        Authority(kit.folder)
    with pytest.raises(InputError, match="not empty"):
        Authority.create(kit.folder, rng=SystemRandom())


def test_a_ledger_that_cannot_be_written_issues_nothing(kit, monkeypatch):
    def full(*_):
        raise OSError("disk is full")

    monkeypatch.setattr("cloister.authority.ledger.write_states", full)
    for _ in range(2):
        with pytest.raises(EncryptionError, match="no key is issued"):
            kit.authority.ask(Forward("set", kit.ids, mixed(2)), receiver="server")


def test_samples_with_the_same_history_share_one_state(kits):
    """However many samples and orders: what was released decides."""
    kit = kits(samples=300)
    ids = kit.ids
    for begin in range(0, 300, 50):
        for seed in (1, 2) if begin % 100 else (2, 1):
            kit.authority.ask(
                Forward("set", ids[begin : begin + 50], mixed(3, seed=seed)), receiver="server"
            )
    account = kit.authority._ledger._accounts["set"]
    # Nothing, each of the two alone, and both.
    assert len(account.states.all) == 4
    assert len(np.unique(account.words[ids])) == 1
    assert set(kit.authority.spent("set").rank.tolist()) == {6}


def test_parts_may_be_registered_while_keys_are_issued(kit):
    stop, faults = threading.Event(), []

    def ask():
        while not stop.is_set():
            ids = np.arange(kit.authority.describe("set").samples, dtype=np.int64)
            try:
                kit.authority.ask(Forward("set", ids, mixed(2)), receiver="server")
            except Exception as error:  # noqa: BLE001
                faults.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for seed in range(10, 25):
        add_part(kit.authority, "set", kit.x, kit.labels, seed=seed)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert kit.authority.describe("set").samples == 160
