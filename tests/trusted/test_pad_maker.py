"""Terms of many pad sets: one array for each, every node one product, bit for bit the same."""

import numpy as np
import pytest

import nets
from cloister.base.rng import SystemRandom
from cloister.ring import reference
from cloister.ring.pads import expand
from cloister.trusted.pads.maker import InlinePads, PadMaker
from cloister.trusted.pads.pad_layout import ALIGNED_WORDS, PadLayout
from trusted.test_session import plan_of

KEY = bytes(range(32))


@pytest.mark.parametrize("net", nets.ALL)
def test_a_layout_has_every_hidden_node_once(net):
    plan = plan_of(nets.ALL[net]())
    layout = PadLayout.of(plan)
    assert list(layout.shapes) == sorted(plan.hidden_nodes)
    terms = np.zeros((2, layout.words), np.uint32)
    for index, view in layout.views(terms).items():
        assert view.shape == (2, *plan.linear_nodes[index].linear.geometry.out_shape)
        assert layout.offsets[index] % ALIGNED_WORDS == 0
        assert not view.any()
        view += np.uint32(1)
    assert terms.sum() == sum(view.size for view in layout.views(terms).values())
    for view in layout.views(terms[1]).values():
        assert np.shares_memory(view, terms)
        assert np.all(view == 1)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("net", nets.ALL)
def test_rows_are_what_each_alone_would_be(net, threads):
    plan = plan_of(nets.ALL[net]())
    maker, first = PadMaker(plan, threads=threads), 2**16 * 3 + 5
    rows = np.zeros((4, maker.layout.words), np.uint32)
    maker.make(KEY, first, into=rows)
    for i, row in enumerate(rows):
        alone = np.zeros((1, maker.layout.words), np.uint32)
        PadMaker(plan).make(KEY, first + i, into=alone)
        np.testing.assert_array_equal(row, alone[0])
        for index, terms in maker.layout.views(row).items():
            linear = plan.linear_nodes[index].linear
            ids = np.array([first + i], np.int64)
            pad = expand(KEY, ids, linear.geometry.in_shape, domain=index)
            np.testing.assert_array_equal(terms, reference.linear_map(linear, pad)[0])


def test_inline_pads_share_one_key_and_count_up():
    plan = plan_of(nets.chain())
    pads = InlinePads(plan, rng=SystemRandom())
    taken = [*pads.take(2), *pads.take(1)]
    assert [pad.pad_id for pad in taken] == [0, 1, 2]
    assert len({pad.key for pad in taken}) == 1
    assert all(pad.mask_key is None for pad in taken)
    row = np.zeros((1, PadLayout.of(plan).words), np.uint32)
    PadMaker(plan).make(taken[2].key, 2, into=row)
    np.testing.assert_array_equal(taken[2].terms, row[0])


def test_a_plan_knows_whether_wrong_pads_are_refused():
    model = nets.chain()
    found = {policy: plan_of(model, policy).pads_checked for policy in ("slalom", "blinded")}
    assert found == {"slalom": True, "blinded": False}
