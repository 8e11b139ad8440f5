"""Pads made by workers: the same pads, no worker sees them, no lie gets into a store."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloister.base._native as native
import nets
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.errors import (
    InputError,
    RangeError,
    VerificationError,
    WorkerTimeout,
    WorkerUnavailable,
)
from cloister.ring import reference
from cloister.ring.freivalds import P52
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.pad_block import BLOCK_ROWS_MAX
from cloister.trusted.pads.factory import DEFAULT_BLOCK_ROWS_MAX, Rate, WorkerMaker, fill
from cloister.trusted.pads.maker import PadMaker
from cloister.trusted.pads.masked_terms import remove_mask
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.shares import DigitWidths
from cloister.trusted.pads.store import PadStore
from cloister.trusted.pads.stored_plan import open_or_create
from cloister.trusted.session import Session
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.worker.byzantine import ByzantineEngine, Lie
from cloister.worker.engine import Engine
from instruction_sets import forced
from trusted.links import DirectLink, DyingLink
from trusted.test_session import plan_of
from trusted.test_transcript_is_uniform import ALARM, DEVIATIONS, p_value

KEY = bytes(range(32))
LIES = (Lie.FLIP_ONE, Lie.SWAP_CHANNELS, Lie.SHIFT_31, Lie.SCALE, Lie.ZERO_TILE, Lie.GARBAGE)


@pytest.fixture(scope="module")
def plan():
    return plan_of(nets.chain())


@pytest.fixture
def store(plan, tmp_path):
    return open_or_create(plan, tmp_path / "pads", key_file=tmp_path / "key", rng=SystemRandom())


def links(count=2):
    return [DirectLink(f"w{i}") for i in range(count)]


def maker_of(plan, workers, seed=None):
    """A maker whose workers are elsewhere, each on a machine of its own."""
    for i, worker in enumerate(workers):
        worker.address = f"203.0.113.{i}:7000"
    rng = SystemRandom() if seed is None else InsecureSeededRandom(seed)
    return WorkerMaker(plan, workers, rng=rng, timeout_s=5.0)


def rows_of(maker, count=1):
    return np.zeros((count, maker.layout.words), np.uint32)


def make(maker, pad_id):
    maker.make(KEY, pad_id, into=rows_of(maker))


def liar(lie, *, after=0):
    told = ByzantineEngine(Engine(), lie, after=after)
    return InProcessLink(told.handle, name="liar", encode=told.encode)


def shares_of(plan, link):
    """The words of Z_2^32 a worker can recompute from the digits it saw, by node."""
    found: dict[int, list[np.ndarray]] = {}
    for target, limbs in link.seen:
        digits = DigitWidths.of(plan.linear_nodes[target].linear)
        words = np.zeros(limbs[0].size, np.uint32)
        for limb, shift in zip(limbs, shifts_of(digits.widths), strict=True):
            words += limb.ravel().astype(np.int32).view(np.uint32) << np.uint32(shift)
        found.setdefault(target, []).append(words)
    return {target: np.concatenate(parts) for target, parts in found.items()}


# ---- digits


def linear_with(largest, channels=40):
    """A dense map whose largest row of weights sums to `largest` in magnitude."""
    weights = np.zeros((2, 1, 1, channels), np.int16)
    for i in range(channels):
        weights[1, 0, 0, i] = -min(largest, 2**15)
        largest -= min(largest, 2**15)
    assert largest == 0
    return LinearMap(Geometry((1, 1), channels, (1, 1), 2), weights)


@pytest.mark.parametrize(
    ("largest", "widths"),
    [
        (0, (16, 16)),
        (2**16 - 1, (16, 16)),
        (2**16, (11, 11, 10)),
        (2**20, (11, 11, 10)),
        (2**20 + 2**19, (11, 11, 10)),
    ],
)
def test_widths_follow_from_the_weights(largest, widths):
    digits = DigitWidths.of(linear_with(largest, channels=64))
    assert digits.widths == widths
    assert max(1 << (w - 1) for w in digits.widths) * largest < 2**31


@pytest.mark.parametrize("exponent", range(31))
def test_digits_never_wrap_and_cover_the_word(exponent):
    rows = max(1, 2 ** (exponent - 15))
    weights = np.full((1, 1, 1, rows), -min(2**exponent, 2**15), np.int16)
    digits = DigitWidths.of(LinearMap(Geometry((1, 1), rows, (1, 1), 1), weights))
    assert sum(digits.widths) == 32
    assert min(digits.widths) >= 1
    assert max(digits.widths) <= 16
    assert 2**exponent << (max(digits.widths) - 1) < 2**31


def test_weights_beyond_every_digit_are_refused():
    weights = np.full((1, 1, 1, 2**16), -(2**15), np.int16)
    with pytest.raises(RangeError, match="weight-bits"):
        DigitWidths.of(LinearMap(Geometry((1, 1), 2**16, (1, 1), 1), weights))


def shifts_of(widths):
    """The power of two that each digit stands for."""
    return [sum(widths[:k]) for k in range(len(widths))]


def split(share, t, widths, isa):
    limbs = np.full((len(widths), len(share)), 77, np.int16)
    sums = np.full(len(widths), 77, np.uint64)
    with forced(isa):
        native.split_share(share, t, widths, limbs, sums)
    return limbs, sums


@settings(max_examples=40, deadline=None)
@given(
    words=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    widths=st.sampled_from([(16, 16), (11, 11, 10), (8,) * 4, (7, 7, 7, 7, 4), (1,) * 32]),
    seed=st.integers(0, 100),
    isa=st.sampled_from(native.available_isas()),
)
def test_split_keeps_the_word_and_sums_the_digits(words, widths, seed, isa):
    digits = DigitWidths(widths)
    edges = [0, 2**31 - 1, 2**31, 2**32 - 1, 0x7FF, 0x800, 0x8000, 0x7FFF]
    share = np.array(words + edges, np.uint32)
    t = np.random.default_rng(seed).integers(0, P52, len(share), dtype=np.uint64)
    limbs, sums = split(share, t, widths, isa)
    total = np.zeros(len(share), np.int64)
    for k, (width, shift) in enumerate(zip(digits.widths, shifts_of(digits.widths), strict=True)):
        assert limbs[k].min() >= -(1 << (width - 1))
        assert limbs[k].max() < 1 << (width - 1)
        total += limbs[k].astype(np.int64) << shift
        assert int(sums[k]) == sum(int(a) * int(b) for a, b in zip(t, limbs[k], strict=True)) % P52
    np.testing.assert_array_equal(total % 2**32, share.astype(np.int64))


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("digit", [0x8000, 0x7FFF])
def test_sums_of_the_largest_digits_do_not_overflow(digit, isa):
    count = 3 * 2048 + 7  # more than one tile
    share = np.full(count, digit << 16 | digit, np.uint32)
    t = np.full(count, P52 - 1, np.uint64)
    limbs, sums = split(share, t, (16, 16), isa)
    for limb, found in zip(limbs, sums.tolist(), strict=True):
        assert found == int(limb.sum(dtype=np.int64)) * (P52 - 1) % P52


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 5, 7), (9, 7, 64), (1, 1, 4099), (40, 60, 1), (2, 2, 1025)]
)
@pytest.mark.parametrize("word", [None, 2**31, 2**31 - 1, 2**32 - 1])
def test_answers_are_added_and_summed_as_signed_words(shape, word, isa):
    rng = np.random.default_rng(5)
    digits = DigitWidths((11, 11, 10))
    size = (3, *shape)
    answers = rng.integers(0, 2**32, size, dtype=np.uint32)
    if word is not None:
        answers[:] = word
    a, b = (rng.integers(0, P52, n, dtype=np.uint64) for n in (shape[0] * shape[1], shape[2]))
    b[:2] = P52 - 1
    before = rng.integers(0, 2**32, shape, dtype=np.uint32)
    out, sums = before.copy(), np.full(3, 77, np.uint64)
    with forced(isa):
        native.add_answers(answers, a, b, digits.widths, out, sums)
    wanted = before.copy()
    for k, shift in enumerate(shifts_of(digits.widths)):
        wanted += answers[k] << np.uint32(shift)
        assert int(sums[k]) == reference.answer_sum(a, b, answers[k].view(np.int32))
    np.testing.assert_array_equal(out, wanted)


def test_shares_that_do_not_fit_are_refused():
    share, t, sums = np.zeros(4, np.uint32), np.zeros(4, np.uint64), np.zeros(2, np.uint64)
    limbs = np.zeros((2, 4), np.int16)
    for widths in ((16, 15), (17, 15), (16, 16, 0), (0, 16, 16), (32,), (-1, 16, 16, 1)):
        with pytest.raises(ValueError, match=r"widths|fit"):
            native.split_share(
                share, t, widths, np.zeros((len(widths), 4), np.int16),
                np.zeros(len(widths), np.uint64),
            )  # fmt: skip
    with pytest.raises(ValueError, match="fit"):
        native.split_share(share, t[1:], (16, 16), limbs, sums)
    with pytest.raises(ValueError, match="fit"):
        native.split_share(share, t, (16, 16), limbs[:1], sums)
    a, b = np.zeros(2, np.uint64), np.zeros(2, np.uint64)
    for answers, out in ((np.zeros(8, np.uint32), share[1:]), (np.zeros(7, np.uint32), share)):
        with pytest.raises(ValueError, match="fit"):
            native.add_answers(answers, a, b, (16, 16), out, sums)


# ---- the same pads


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("net", nets.ALL)
def test_pads_of_workers_are_the_runtimes_own(net, workers):
    plan = plan_of(nets.ALL[net]())
    ours, theirs = PadMaker(plan), maker_of(plan, links(workers))
    wanted, found = rows_of(ours, 2), rows_of(theirs, 2)
    for pad_id in (0, 5):
        ours.make(KEY, pad_id, into=wanted)
        theirs.make(KEY, pad_id, into=found)
        np.testing.assert_array_equal(found, wanted)


def test_a_plan_without_checks_has_its_pads_checked(plan):
    blinded = plan_of(nets.chain(), "blinded")
    workers = [DirectLink("a"), liar(Lie.FLIP_ONE)]
    with pytest.raises(VerificationError):
        make(maker_of(blinded, workers), 0)


# ---- what a worker sees


def test_every_view_is_uniform_and_tells_nothing_of_the_pad():
    plan = plan_of(nets.residual())
    views = []
    for seed in range(2):
        workers = links(3)
        maker = maker_of(plan, workers, seed)
        for pad_id in range(60):
            make(maker, pad_id)
        views.append([shares_of(plan, worker) for worker in workers])
    for target in plan.hidden_nodes:
        # The same pads both times, so what depends on them would repeat.
        pads = sum(view[target] for view in views[0])
        np.testing.assert_array_equal(pads, sum(view[target] for view in views[1]))
        seen = [view[target] for run in views for view in run]
        assert all(view.dtype == np.uint32 and view.size >= 500 for view in seen)
        for view in seen:
            assert p_value(view) > ALARM
            assert p_value(pads - view) > ALARM
        for i, one in enumerate(seen):
            for other in [*seen[:i], pads]:
                assert np.mean(one == other) < 1e-2
                bound = DEVIATIONS / math.sqrt(one.size)
                assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < bound


def test_a_worker_gets_one_share_of_a_pad(plan):
    workers = links()
    maker = maker_of(plan, workers)
    make(maker, 0)
    for worker in workers:
        assert [target for target, _ in worker.seen] == list(plan.hidden_nodes)
    for again in (0, -1):
        with pytest.raises(InputError, match="reserve another"):
            make(maker, again)
    assert [len(worker.seen) for worker in workers] == [len(plan.hidden_nodes)] * 2


@pytest.mark.parametrize("count", [0, 1])
def test_one_worker_is_refused(plan, count):
    with pytest.raises(InputError, match="alone would see the whole pads"):
        maker_of(plan, links(count))


def test_a_worker_given_twice_is_refused(plan):
    with pytest.raises(InputError, match="two shares"):
        maker_of(plan, [DirectLink("w"), DirectLink("w")])


LOCAL = ("localhost", "127.0.0.2", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "127.1")
SAME = [("127.0.0.1:7000", f"{host}:{port}") for host in LOCAL for port in (7000, 7001)]
SAME += [(None, None), (None, "127.0.0.1:7000"), ("127.0.0.1:7000", "127.0.0.1:7001"),
         ("203.0.113.1:7000", "[::ffff:203.0.113.1]:7001")]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), SAME)
def test_two_workers_of_one_machine_are_refused(plan, first, second):
    """Its owner would see both shares; also where a third worker is elsewhere."""
    workers = [DirectLink("a", address=first), DirectLink("b", address=second)]
    elsewhere = DirectLink("c", address="203.0.113.9:7000")
    for links in (workers, [workers[0], elsewhere, workers[1]]):
        with pytest.raises(InputError, match=r"one party.*two shares of every pad"):
            WorkerMaker(plan, links, rng=SystemRandom())
        made = WorkerMaker(plan, links, rng=SystemRandom(), insecure_one_party=True)
        assert made.parties == 1


def test_links_over_the_network_are_told_apart_by_where_they_lead(plan):
    links = [RpcLink("127.0.0.1:7000"), RpcLink("localhost:7000")]
    with pytest.raises(InputError, match="one party"):
        WorkerMaker(plan, links, rng=SystemRandom())
    links = [RpcLink("127.0.0.1:7000"), RpcLink("nowhere.invalid.:7000")]
    with pytest.raises(InputError, match="does not resolve"):
        WorkerMaker(plan, links, rng=SystemRandom(), insecure_one_party=True)


def test_pads_of_one_party_say_so(plan, store):
    maker = WorkerMaker(plan, links(), rng=SystemRandom(), insecure_one_party=True)
    fill(store, maker, count=1)
    assert store.kind == "store, made by workers of one party, who can compute every pad"
    # Later pads of others do not make the first better.
    fill(store, maker_of(plan, links(3)), count=2)
    assert "one party" in store.kind


def test_a_worker_that_was_dropped_counts_no_more(plan, store):
    maker = maker_of(plan, [DirectLink("a"), DirectLink("b"), liar(Lie.FLIP_ONE)])
    assert maker.parties == 3
    with pytest.raises(VerificationError):
        fill(store, maker, count=1)
    fill(store, maker, count=1)
    assert store.kind == "store, made by 2 workers"


# ---- lies


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("after", [0, 2, 4])
@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_refused_and_nothing_is_stored(plan, store, lie, place, after):
    """Three blinded nodes: the lie falls into the first pad's first or last, or the second pad."""
    workers = [DirectLink("honest"), DirectLink("spare")]
    workers.insert(place, liar(lie, after=after))
    maker = maker_of(plan, workers)
    with pytest.raises(VerificationError, match="liar") as refusal:
        fill(store, maker, count=3, block_rows=1)
    assert "quarantined" in str(refusal.value)
    assert maker.workers == ("honest", "spare")
    assert store.status().ready == after // len(plan.hidden_nodes)
    # The others go on, under a new id; no worker is ever asked about the failed pad again.
    assert fill(store, maker, count=3, block_rows=1) == 3 - after // len(plan.hidden_nodes)
    blocks = [1, 2, 3] if after < 3 else [0, 2, 3]
    assert [pad.pad_id for pad in store.take(3)] == [block * BLOCK_ROWS_MAX for block in blocks]


def test_a_lie_about_one_digit_is_refused(plan):
    for digit in range(2):

        def twisted(_target, answer, digit=digit):
            answer[digit, -1, -1, -1] ^= np.uint32(1)
            return answer

        with pytest.raises(VerificationError):
            make(maker_of(plan, [DirectLink("a"), DirectLink("b", lie=twisted)]), 0)


def test_digits_that_cancel_in_the_sum_are_refused(plan):
    """2^w more in the low digit, 1 less in the next: the pad is right, the answer is not."""
    shift = shifts_of(DigitWidths.of(plan.linear_nodes[0].linear).widths)[1]

    def cancel(_target, answer):
        answer[0] += np.uint32(1 << shift)
        answer[1] -= np.uint32(1)
        return answer

    with pytest.raises(VerificationError):
        make(maker_of(plan, [DirectLink("a"), DirectLink("b", lie=cancel)]), 0)


def test_coefficients_are_redrawn_after_a_lie(plan):
    maker = maker_of(plan, [DirectLink("a"), DirectLink("b"), liar(Lie.FLIP_ONE)])
    maker.prepare()
    before = [node.vectors for node in maker._nodes]
    copies = [vectors.b.copy() for vectors in before]
    with pytest.raises(VerificationError):
        make(maker, 0)
    assert not any(vectors.b.any() or vectors.rows.any() for vectors in before)
    make(maker, 1)
    for node, old in zip(maker._nodes, copies, strict=True):
        assert not np.array_equal(node.vectors.b, old)


def test_two_are_needed_after_a_lie_too(plan, store):
    maker = maker_of(plan, [DirectLink("a"), liar(Lie.FLIP_ONE)])
    with pytest.raises(VerificationError):
        fill(store, maker, count=1)
    with pytest.raises(WorkerUnavailable, match="1 workers are left"):
        fill(store, maker, count=1)
    assert store.status().ready == 0


@pytest.mark.parametrize(
    ("worker", "error"),
    [
        (lambda: DyingLink("gone", fatal=2), WorkerUnavailable),
        (lambda: liar(Lie.HANG, after=1), WorkerTimeout),
    ],
)
def test_a_worker_that_stops_is_dropped(plan, store, worker, error):
    maker = maker_of(plan, [DirectLink("a"), worker(), DirectLink("b")])
    with pytest.raises(error):
        fill(store, maker, count=2)
    assert maker.workers == ("a", "b")
    assert store.status().ready == 0
    assert fill(store, maker, count=2) == 2


# ---- filling


class Interrupted(BaseException):
    """Stands for a process that ends between any two messages."""


def test_filling_goes_on_after_an_interruption(plan, store, tmp_path):
    left = 5

    def stop(_target, answer):
        nonlocal left
        left -= 1
        if not left:
            raise Interrupted
        return answer

    with pytest.raises(Interrupted):
        workers = [DirectLink("a"), DirectLink("b", lie=stop)]
        fill(store, maker_of(plan, workers), count=4, block_rows=1)
    again = PadStore.open(tmp_path / "pads", plan_digest=plan.digest, key_file=tmp_path / "key")
    assert again.status().ready == 1
    assert fill(again, maker_of(plan, links()), count=4, block_rows=2) == 3
    ours = PadMaker(plan)
    pads = again.take(4)
    places = [divmod(pad.pad_id, BLOCK_ROWS_MAX) for pad in pads]
    assert places == [(0, 0), (2, 0), (2, 1), (3, 0)]
    for pad in pads:
        row = rows_of(ours)
        ours.make(pad.key, pad.pad_id, into=row)
        remove_mask(pad, ours.layout)
        np.testing.assert_array_equal(pad.terms, row[0])


def test_a_session_with_such_pads_computes_the_same(plan, store):
    feeds = nets.samples(nets.chain(), 3)
    with Session(plan, workers=[DirectLink()]) as session:
        expected = session.run(feeds).outputs
    fill(store, maker_of(plan, links()), count=3)
    with Session(plan, workers=[DirectLink()], pads=store) as session:
        result = session.run(feeds)
    assert result.report.pads_from == "store, made by 2 workers"
    for name, value in expected.items():
        np.testing.assert_array_equal(result.outputs[name], value)


def test_filling_stops_between_two_blocks_and_overwrites_its_memory(plan, store):
    stop = threading.Event()
    kept = []

    class Watched(PadMaker):
        def make(self, key, first_id, *, into):
            super().make(key, first_id, into=into)
            assert into.any()
            kept.append(into)

    made = fill(
        store, Watched(plan), count=9, stop=stop, block_rows=2,
        progress=lambda done, total: stop.set() if (done, total) == (4, 9) else None,
    )  # fmt: skip
    assert made == 4
    assert store.status().ready == 4
    assert not kept[-1].any()


def test_rates():
    assert Rate().pause_s(2.0, made=1) == 0.0
    assert Rate(share=0.25).pause_s(2.0, made=1) == pytest.approx(6.0)
    assert Rate(per_hour=1800).pause_s(0.5, made=1) == pytest.approx(1.5)
    assert Rate(per_hour=1800).pause_s(0.5, made=4) == pytest.approx(7.5)
    assert Rate(per_hour=3600).pause_s(5.0, made=1) == 0.0
    assert Rate(share=0.5, per_hour=3600).pause_s(3.0, made=1) == pytest.approx(3.0)
    for wrong in ({"share": 0}, {"share": 1.5}, {"per_hour": 0}, {"per_hour": math.inf}):
        with pytest.raises(InputError, match="rate"):
            Rate(**wrong)


def test_a_rate_makes_filling_wait(plan, store, monkeypatch):
    pauses = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, s=None: pauses.append(s))
    fill(store, PadMaker(plan), count=6, block_rows=2, rate=Rate(per_hour=36))
    assert len(pauses) == 2
    assert all(190 < pause <= 200 for pause in pauses)


def test_blocks_are_as_large_as_their_terms_allow(plan, store):
    assert store.layout.block_rows(most=DEFAULT_BLOCK_ROWS_MAX) == 1024
    for nodes, rows in ((1, 64), (16, 4), (65, 1)):
        layout = PadLayout.of_shapes(dict.fromkeys(range(nodes), (1 << 20,)))
        assert layout.block_rows(most=DEFAULT_BLOCK_ROWS_MAX) == rows
    fill(store, PadMaker(plan), count=7, block_rows=3)
    places = [divmod(pad.pad_id, BLOCK_ROWS_MAX) for pad in store.take(7)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


@pytest.mark.parametrize(("count", "kind"), [(2, "store, made by 2 workers"), (0, "store")])
def test_the_store_remembers_who_made_its_pads(plan, store, count, kind):
    maker = maker_of(plan, links(count)) if count else PadMaker(plan)
    fill(store, maker, count=1)
    assert store.kind == kind
    with Session(plan, workers=[DirectLink()], pads=store) as session:
        assert session.run(nets.samples(nets.chain(), 1)).report.pads_from == kind
