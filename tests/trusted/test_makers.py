"""Sessions whose pads are made by makers: the same results, and what each party is sent."""

import os
from contextlib import closing

import numpy as np
import pytest

import nets
from cloister.base.rng import SystemRandom
from cloister.base.tls_identity import TlsIdentity
from cloister.errors import (
    InputError,
    MakerError,
    PadReusedError,
    PadStoreError,
    PlanError,
    VerificationError,
)
from cloister.plan.claims import Extent, Role, Verb
from cloister.ring.pad_block import BlockKeys
from cloister.ring.pads import expand
from cloister.trusted.pads import pad_layout
from cloister.trusted.pads.factory import fill, open_maker
from cloister.trusted.pads.maker import InlinePads, PadMaker
from cloister.trusted.pads.makers import MakerAddress, MakerPads, Makers, StoreMakers
from cloister.trusted.pads.masked_terms import remove_mask
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import KnownTo
from cloister.trusted.pads.store import PadStore
from cloister.trusted.pads.stored_plan import open_or_create
from cloister.trusted.session import Session
from cloister.wire.messages import Answer, LoadLinear, MakePads
from cloister.wire.shm.shm_link import connect_local_worker, start_local_worker
from cloister.worker.serve import start_server
from trusted.links import DirectLink
from trusted.makers import MakerLink, session, worker
from trusted.test_session import plan_of
from trusted.test_transcript_is_uniform import p_value


@pytest.fixture(scope="module")
def plan():
    return plan_of(nets.chain())


@pytest.fixture(scope="module")
def feeds():
    return nets.samples(nets.chain(), 5)


def outputs_of(plan, feeds):
    with Session(plan, workers=[DirectLink()]) as inline:
        return inline.run(feeds).outputs


def same(got, wanted):
    return all(np.array_equal(got[name], value) for name, value in wanted.items())


# ---- the same results


@pytest.mark.parametrize("net", nets.ALL)
def test_results_are_those_of_pads_made_here(net):
    model = nets.ALL[net]()
    plan, feeds = plan_of(model), nets.samples(model, 5)
    with session(plan, MakerLink(), batch=2) as made:
        result = made.run(feeds)
    assert same(result.outputs, outputs_of(plan, feeds))
    report = result.report
    assert (report.pads_from, report.pads_used, report.offline_ms) == ("maker", 5, 0)
    assert (report.makers, report.makers_lost) == (("maker",), ())


def test_terms_over_shared_memory_stay_where_the_maker_wrote_them(plan, feeds):
    with closing(start_local_worker()) as maker, session(plan, maker, batch=2) as made:
        for _ in range(3):
            assert same(made.run(feeds).outputs, outputs_of(plan, feeds))
        # Blocks are given back: the memory does not grow with the requests.
        assert maker._arena.reserved_bytes <= 256 << 20
        source = made._plans.own.pads
        taken = source.take(2)
        memory = [np.frombuffer(one.memory, np.uint8) for one in maker._arena._segments.values()]
        assert all(any(np.shares_memory(pad.terms, one) for one in memory) for pad in taken)
        before = maker._arena.reserved_bytes
        source.recycle(taken)
        assert not any(pad.terms.size for pad in taken)
        again = source.take(2)
        assert maker._arena.reserved_bytes == before
        source.recycle(again)


def test_makers_are_reached_by_tls_at_their_address(plan, feeds, tmp_path):
    identity = TlsIdentity.open_or_create(tmp_path / "maker")
    server = start_server("127.0.0.1:0", identity=identity)
    address = MakerAddress(server.address, tmp_path / "maker" / "certificate.pem")
    with session(plan, address) as made:
        result = made.run(feeds)
    server.close()
    assert same(result.outputs, outputs_of(plan, feeds))
    assert result.report.makers == (server.address,)


def test_several_lanes_share_makers(plan):
    feeds = nets.samples(nets.chain(), 24)
    maker, other = MakerLink("a"), MakerLink("b", host=2)
    workers = [worker("u"), DirectLink("v", address="203.0.113.10:7000")]
    with session(plan, maker, other, workers=workers, batch=2, lanes=2, on_clip="ignore") as made:
        result = made.run(feeds)
    with Session(plan, workers=[DirectLink()], on_clip="ignore") as inline:
        assert same(result.outputs, inline.run(feeds).outputs)
    ids = [m.first_id + row for one in (maker, other) for m in one.blocks for row in range(m.rows)]
    assert sorted(ids) == list(range(24))


def test_a_request_is_made_in_blocks_of_bounded_size(plan, feeds, monkeypatch):
    words = PadLayout.of(plan).words
    monkeypatch.setattr(pad_layout, "_BLOCK_BYTES", 2 * 4 * words)
    maker = MakerLink()
    with session(plan, maker, batch=5) as made:
        assert same(made.run(feeds).outputs, outputs_of(plan, feeds))
    assert [block.rows for block in maker.blocks] == [2, 2, 1]


def test_terms_are_those_that_the_trusted_side_would_make(plan):
    layout = PadLayout.of(plan)
    source = MakerPads(plan, Makers([MakerLink()], timeout_s=5.0), rng=SystemRandom())
    for pad in source.take(3):
        wanted = np.zeros((1, layout.words), np.uint32)
        PadMaker(plan).make(pad.key, pad.pad_id, into=wanted)
        assert not np.array_equal(pad.terms, wanted[0])
        remove_mask(pad, layout)
        np.testing.assert_array_equal(pad.terms, wanted[0])


def test_a_fork_makes_none(plan, monkeypatch):
    source = MakerPads(plan, Makers([MakerLink()], timeout_s=5.0), rng=SystemRandom())
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(PadReusedError, match="another process"):
        source.take(1)


# ---- what each party is sent


def test_a_maker_is_sent_weights_and_seeds_and_nothing_else(plan, feeds):
    """Whatever the inputs are, all but seeds is the same; and no seed comes twice."""
    seen, seeds = [], []
    for values in (feeds, {name: np.zeros_like(one) for name, one in feeds.items()}):
        maker = MakerLink()
        with session(plan, maker, batch=2, on_clip="ignore") as made:
            made.run(values)
        assert {type(message) for message in maker.seen} == {LoadLinear, MakePads}
        loads = [one for one in maker.seen if isinstance(one, LoadLinear)]
        assert [one.target_id for one in loads] == list(plan.hidden_nodes)
        for one in loads:
            weights = plan.linear_nodes[one.target_id].linear.weights
            np.testing.assert_array_equal(one.linear.weights, weights)
        seeds += [block.seed for block in maker.blocks]
        seen.append([(m.request_id, m.first_id, m.rows, m.targets) for m in maker.blocks])
    assert seen[0] == seen[1]
    assert len(set(seeds)) == len(seeds) == 6


@pytest.mark.parametrize("value", [None, 0.5])
def test_a_worker_sees_uniform_words_that_the_seeds_alone_open(value):
    """Chi-square of what it is sent; with the seeds of the maker, the same words are small."""
    plan = plan_of(nets.residual())
    inputs = nets.samples(nets.residual(), 120)
    if value is not None:
        inputs = {name: np.full_like(one, value) for name, one in inputs.items()}
    maker, watched = MakerLink(), worker()
    with session(plan, maker, workers=[watched], on_clip="ignore") as made:
        made.run(inputs)
    for target in plan.hidden_nodes:
        messages = [message for index, message in watched.seen if index == target]
        payload = np.concatenate([message.ravel() for message in messages])
        assert payload.dtype == np.uint32
        assert payload.size >= 1000
        assert p_value(payload) > 1e-9
        for block, message in zip(maker.blocks, messages, strict=True):
            ids = np.arange(block.first_id, block.first_id + block.rows, dtype=np.int64)
            key = BlockKeys.of(block.seed).pad_key
            opened = message - expand(key, ids, message.shape[1:], domain=target)
            assert np.abs(opened.view(np.int32)).max() < 2**14


def test_terms_on_their_way_are_uniform(plan):
    """What is stored, or read by a listener without the seed: also where A r is zero."""
    maker = MakerLink()
    source = MakerPads(plan, Makers([maker], timeout_s=5.0), rng=SystemRandom())
    layout = PadLayout.of(plan)
    rows = np.stack([pad.terms for pad in source.take(60)])
    for terms in layout.views(rows).values():
        assert p_value(np.ascontiguousarray(terms)) > 1e-9


# ---- one party, no encryption, and plans that would not notice

HERE = ("127.0.0.1:7000", "localhost:7001", "[::1]:7000", "0.0.0.0:7000")


@pytest.mark.parametrize("address", [*HERE, None])
@pytest.mark.parametrize("default_worker", [True, False])
def test_a_maker_on_a_machine_of_a_worker_is_refused(plan, feeds, address, default_worker):
    """The default worker is a process of this machine."""
    maker, elsewhere = MakerLink("a"), MakerLink("b", host=2)
    maker.address = address
    workers = None if default_worker else [DirectLink("far", address="203.0.113.1:1"), DirectLink()]
    for makers in ([maker], [elsewhere, maker]):
        with pytest.raises(InputError, match=r"one party \(this machine\).*read every input"):
            Session(plan, workers=workers, makers=makers)
    with Session(plan, workers=workers, makers=[maker], insecure_one_party=True) as made:
        report = made.run(feeds).report
        claims = made.claims()
    assert report.pads_from == "maker, of one party with a worker, which can read every input"
    assert claims.worst(Role.WORKER) is Extent.EVERYTHING
    assert claims.worst(Role.MAKER) is Extent.EVERYTHING


def test_other_machines_of_one_address_are_refused(plan):
    maker = MakerLink()
    maker.address = "[::ffff:203.0.113.9]:1"
    with pytest.raises(InputError, match=r"one party \(203\.0\.113\.9\)"):
        session(plan, maker)
    maker.address = "nowhere.invalid.:7000"
    with pytest.raises(InputError, match="does not resolve"):
        session(plan, maker)


def test_makers_may_be_of_one_party(plan, feeds):
    with session(plan, MakerLink("a"), MakerLink("b")) as made:
        assert same(made.run(feeds).outputs, outputs_of(plan, feeds))


def test_a_maker_without_encryption_is_refused(plan, feeds):
    for maker in ("198.51.100.1:7000", MakerAddress("198.51.100.1:7000")):
        with pytest.raises(InputError, match=r"without encryption.*--tls.*--insecure-plaintext"):
            session(plan, maker)
    server = start_server("127.0.0.1:0")
    with session(plan, server.address, insecure_plaintext=True) as made:
        assert same(made.run(feeds).outputs, outputs_of(plan, feeds))
        assert made.claims().worst(Role.NETWORK) is Extent.EVERYTHING
    server.close()


@pytest.mark.parametrize("policy", ["blinded", "verified"])
def test_a_plan_that_would_not_notice_a_lie_is_refused(policy):
    plan = plan_of(nets.chain(), policy)
    words = "two workers make the pads" if policy == "blinded" else "blinds nothing"
    with pytest.raises(PlanError, match=words):
        session(plan, MakerLink())


def test_misuse_is_refused(plan):
    pads = InlinePads(plan, rng=SystemRandom())
    with pytest.raises(PlanError, match="two sources"):
        session(plan, MakerLink(), pads=pads)
    with pytest.raises(InputError, match="given twice"):
        session(plan, MakerLink(), MakerLink())
    with pytest.raises(InputError, match="makers= is empty"):
        session(plan)
    with pytest.raises(InputError, match="takes a list"):
        Session(plan, workers=[worker()], makers="198.51.100.1:7000")
    (one,) = connect_local_worker(1)
    with closing(one), pytest.raises(InputError, match="one party"):
        Session(plan, workers=[one], makers=[one])


# ---- claims


def test_claims_name_both_parties_and_what_each_rests_on(plan):
    with session(plan, MakerLink()) as made:
        claims = made.claims()
    assert "pads by makers" in claims.subject
    (inputs,) = (s for s in claims.of(Role.MAKER, Verb.LEARNS) if s.about == "inputs")
    assert inputs.extent is Extent.NOTHING
    assert "no worker of the session" in inputs.assumes
    (pads,) = (s for s in claims.of(Role.MAKER, Verb.LEARNS) if s.about == "pads")
    assert pads.extent is Extent.EVERYTHING
    assert claims.worst(Role.MAKER, Verb.CAN) is Extent.BOUNDED
    blinded = [s for s in claims.of(Role.WORKER, Verb.LEARNS) if s.about.startswith("blinded")]
    assert blinded
    assert all("no maker of these pads is of its party" in one.assumes for one in blinded)
    assert claims.worst(Role.NETWORK) is not Extent.EVERYTHING
    assert claims.soundness_bits == plan.claims().soundness_bits
    assert type(claims).from_dict(claims.to_dict()) == claims


def test_a_session_without_makers_has_the_claims_of_its_plan(plan):
    with Session(plan, workers=[DirectLink()]) as plain:
        assert plain.claims() == plan.claims()


# ---- stores that makers fill


@pytest.fixture
def store(plan, tmp_path):
    return PadStore.create(
        tmp_path / "pads",
        plan_digest=plan.digest,
        layout=PadLayout.of(plan),
        sealed=not plan.pads_checked,
        key_file=tmp_path / "key",
        rng=SystemRandom(),
    )


def filled(plan, store, *links, count=5, block_rows=2):
    makers = StoreMakers(plan, Makers(links, timeout_s=5.0))
    return fill(store, makers, count=count, block_rows=block_rows)


def test_a_store_that_a_maker_filled_serves_sessions(plan, store, feeds, tmp_path):
    maker = MakerLink()
    assert filled(plan, store, maker) == 5
    assert [(block.rows, block.first_id) for block in maker.blocks] == [
        (2, 0), (2, 2**16), (1, 2 * 2**16),
    ]  # fmt: skip
    assert {type(message) for message in maker.seen} == {LoadLinear, MakePads}
    again = PadStore.open(tmp_path / "pads", plan_digest=plan.digest, key_file=tmp_path / "key")
    assert again.kind == "store, made by makers"
    assert again.known_to == (KnownTo("198.51.100.1:7000", True),)
    with Session(plan, workers=[worker()], pads=again) as stored:
        result = stored.run(feeds)
        claims = stored.claims()
    assert same(result.outputs, outputs_of(plan, feeds))
    assert claims.worst(Role.MAKER) is Extent.EVERYTHING
    (inputs,) = (s for s in claims.of(Role.MAKER, Verb.LEARNS) if s.about == "inputs")
    assert inputs.extent is Extent.NOTHING


def test_a_store_remembers_who_knows_its_pads(plan, store, feeds):
    """Also when later blocks are made here, and where nothing came of a maker's block."""
    here = MakerLink("here", twist=lambda message, answer: None)
    here.address = "127.0.0.1:7000"
    assert filled(plan, store, here, MakerLink("far"), count=2) == 2
    fill(store, PadMaker(plan), count=5)
    assert [known.address for known in store.known_to] == [here.address, "198.51.100.1:7000"]
    with pytest.raises(InputError, match="one party"):
        Session(plan, pads=store)
    workers = [DirectLink()]
    with Session(plan, workers=workers, pads=store, insecure_one_party=True) as stored:
        report = stored.run(feeds).report
    assert report.pads_from.endswith("of one party with a worker, which can read every input")


def test_pads_of_a_maker_that_came_after_the_session_are_refused(plan, store, feeds, tmp_path):
    """The session has compared no worker with it."""
    filled(plan, store, MakerLink(), count=1)
    same_party = MakerLink("late")
    same_party.address = "203.0.113.9:7001"
    other = PadStore.open(tmp_path / "pads", plan_digest=plan.digest, key_file=tmp_path / "key")
    with Session(plan, workers=[worker()], pads=store) as stored:
        filled(plan, other, same_party, count=3)
        with pytest.raises(PadStoreError, match=r"maker 203\.0\.113\.9:7001 made pads since"):
            stored.run(feeds)
    with pytest.raises(InputError, match="one party"):
        Session(plan, workers=[worker()], pads=store)


def test_wrong_terms_of_a_store_are_refused_when_they_are_used(plan, store, feeds):
    def wrong(message, answer):
        terms = answer.tensors[0].copy()
        terms[:, message.offsets[0]] ^= np.uint32(1)
        return Answer(message.request_id, (terms,))

    filled(plan, store, MakerLink(twist=wrong))
    with (
        Session(plan, workers=[worker()], pads=store) as stored,
        pytest.raises(VerificationError, match=r"or the pads of the store are.*cannot be told"),
    ):
        stored.run(feeds)


def test_a_maker_that_breaks_the_protocol_stores_nothing(plan, store):
    def none(message, answer):
        return Answer(message.request_id, ())

    with pytest.raises(MakerError, match="maker maker"):
        filled(plan, store, MakerLink(twist=none))
    assert store.status().ready == 0


def test_a_store_of_a_plan_that_does_not_check_takes_none(tmp_path):
    plan = plan_of(nets.chain(), "blinded")
    store = open_or_create(plan, tmp_path / "pads", key_file=tmp_path / "key", rng=SystemRandom())
    with pytest.raises(PlanError, match="two workers"), open_maker(plan, makers=[MakerLink()]):
        pass
    with pytest.raises(PadStoreError, match="takes no masked terms"):
        filled(plan, store, MakerLink())
    assert store.status().ready == 0
