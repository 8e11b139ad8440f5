"""The native walk over shared memory does what the runtime does step by step."""

import numpy as np
import pytest

import cloister._native as native
import nets
from byzantine.test_session import mixed_plan
from cloister.base.rng import SystemRandom
from cloister.errors import PadReusedError
from cloister.trusted.pads.maker import InlinePads, PadUse
from cloister.trusted.session import Session
from cloister.wire.shm.shm_link import start_local_worker
from trusted.links import DirectLink
from trusted.test_session import POLICIES, plan_of

pytestmark = pytest.mark.skipif(native.isa() == "portable", reason="no AES instructions")


@pytest.fixture(scope="module")
def worker():
    link = start_local_worker()
    yield link
    link.close()


def by_steps(plan, feeds, **options):
    with Session(plan, workers=[DirectLink()], on_clip="ignore", **options) as session:
        return session.run(feeds)


def shapes(result):
    return [(e.direction, e.target_id, e.dtype, e.shape) for e in result.transcript.entries]


def rows(result):
    return [
        (
            row.name, row.protection, row.bytes_to_worker, row.bytes_from_worker,
            row.soundness_bits, row.clipped, row.quantised, row.clipped_share,
        )
        for row in result.report.layers
    ]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("net", nets.ALL)
def test_outputs_report_and_transcript_are_those_of_the_runtime(worker, net, policy):
    model = nets.ALL[net]()
    plan = plan_of(model, policy)
    session = Session(plan, workers=[worker], on_clip="ignore")
    # Not closed, because that would close the worker; twice, because the memory is used again.
    for count, factor in ((1, 1), (3, 10), (3, 1), (1, 10)):
        feeds = nets.samples(model, count, seed=count)
        feeds = {name: np.float32(factor) * value for name, value in feeds.items()}
        expected, result = by_steps(plan, feeds), session.run(feeds)
        for name, value in expected.outputs.items():
            np.testing.assert_array_equal(result.outputs[name], value)
        assert shapes(result) == shapes(expected)
        assert rows(result) == rows(expected)
        assert result.report.inputs_beyond == expected.report.inputs_beyond
        assert factor == 1 or result.report.inputs_beyond == tuple(range(count))
    assert session._runtime._walks._walks[worker].keys() == {1, 3}
    assert result.report.trusted_ms > 0
    session._runtime.forget(worker)


def test_batch_sizes_take_turns_in_memory(worker):
    model = nets.residual()
    plan = plan_of(model)
    session = Session(plan, workers=[worker], threads=2)
    for count in (1, 2, 3, 4, 1, 2):
        feeds = nets.samples(model, count)
        for name, value in by_steps(plan, feeds).outputs.items():
            np.testing.assert_array_equal(session.run(feeds).outputs[name], value)
    assert len(session._runtime._walks._walks[worker]) == 2
    session._runtime.forget(worker)


def test_outputs_are_not_the_walks_own_memory(worker):
    model = nets.transposed()
    session = Session(plan_of(model), workers=[worker])
    first = session.run(nets.samples(model, 1, seed=1)).outputs
    copies = {name: value.copy() for name, value in first.items()}
    session.run(nets.samples(model, 1, seed=2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, copies[name])


def test_recorded_payloads_and_mixed_plans(worker):
    plan = mixed_plan()
    feeds = nets.samples(nets.chain(), 2)
    expected = by_steps(plan, feeds)
    for record in (False, True):
        session = Session(plan, workers=[worker], record_payloads=record)
        result = session.run(feeds)
        for name, value in expected.outputs.items():
            np.testing.assert_array_equal(result.outputs[name], value)
        assert all((e.payload is not None) == record for e in result.transcript.entries)


def test_all_pads_are_claimed_once():
    plan = plan_of(nets.chain())
    source = InlinePads(plan, rng=SystemRandom())
    pads = PadUse(source, 2)
    ids, unblinding = pads.claim_all([0, 1])
    assert len(ids) == 2
    assert [len(arrays) for arrays in unblinding] == [2, 2]
    for again in (pads.nonces, pads.unblinding):
        with pytest.raises(PadReusedError):
            again(0)
    with pytest.raises(PadReusedError):
        pads.claim_all([2, 1])


def test_a_step_out_of_order_sends_nothing():
    walker = native.Walker(nodes=1, batch=1, threads=1)
    step = walker.add_exchange(0, bytes(16), bytes(16), 4, None, None)
    for begun in (False, True):
        if begun:
            walker.begin(None, (), (), ())
        with pytest.raises(RuntimeError, match="not there"):
            walker.run(step, step + 1, 1, -1, 1.0, 64)
