"""The default terms: values of few bits, of one function for the whole data set."""

import math

import numpy as np
import pytest

from authority.conftest import ANY, add_part
from authority.test_authority import DIM, dense, flat
from cloister.authority import noise
from cloister.authority.authority import Authority
from cloister.authority.functions import Rows
from cloister.authority.records import Terms
from cloister.authority.requests import Forward, Gradient
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import BudgetError, FunctionError, InputError
from cloister.ring import pads
from cloister.ring.linear import Geometry


@pytest.fixture
def budgeted(kits):
    """300 samples under the terms that an owner gets who decides nothing."""
    return kits(samples=300, terms=Terms())


def values(kit, linear, ids=None, *, receiver="server"):
    ids = kit.ids if ids is None else ids
    key = kit.authority.ask(Forward("set", ids, linear), receiver=receiver)
    found = pads.unblind(pads.forward(linear, flat(kit.p[ids])), key)
    return found.reshape(len(ids), -1)


def exact(kit, linear):
    rows = linear.weights.reshape(linear.geometry.out_channels, -1).astype(np.int64)
    return kit.x.reshape(len(kit.x), -1).astype(np.int64) @ rows.T


def signs(count, *, seed=0):
    return dense(np.random.default_rng(seed).choice([-1, 1], (count, DIM)))


def test_the_server_s_values_are_off_by_uniform_noise(budgeted):
    linear = signs(8)
    shift = noise.shift(budgeted.authority.describe("set"), Rows(linear), 8)
    # 32 signs on [-127, 127]: a range of 8128, in 255 steps of 32 or fewer.
    assert shift == 5
    error = values(budgeted, linear) - exact(budgeted, linear)
    assert (error.min(), error.max()) == (-16, 15)
    counts = np.bincount(error.ravel() + 16, minlength=32)
    # Chi-square with 31 degrees of freedom: beyond 75 once in 10^5.
    assert ((counts - 75) ** 2 / 75).sum() < 75
    correlation = np.corrcoef(error.T) - np.eye(8)
    assert np.abs(correlation).max() < 5 / math.sqrt(300)


def test_a_trusted_runtime_s_values_are_exact(budgeted):
    linear = signs(8)
    np.testing.assert_array_equal(
        values(budgeted, linear, receiver="trusted"), exact(budgeted, linear)
    )


def test_asking_again_averages_nothing_out(budgeted):
    linear = signs(8)
    first = values(budgeted, linear)
    budgeted.authority.close()
    budgeted.authority = Authority(budgeted.folder)
    np.testing.assert_array_equal(values(budgeted, linear), first)
    np.testing.assert_array_equal(values(budgeted, linear, budgeted.ids[::-1])[::-1], first)
    assert budgeted.authority.summary("set").bits_max == 8 * 8


def test_equal_samples_in_two_parts_have_other_noise(budgeted):
    linear = signs(8)
    p, _, first = add_part(budgeted.authority, "set", budgeted.x, budgeted.labels, seed=9)
    found = values(budgeted, linear)
    ids = np.arange(first, first + 300, dtype=np.int64)
    key = budgeted.authority.ask(Forward("set", ids, linear), receiver="server")
    other = pads.unblind(pads.forward(linear, flat(p)), key).reshape(300, -1)
    assert (found != other).mean() > 0.9


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: -rows,
        lambda rows: rows[:-1],
        lambda rows: np.random.default_rng(9).choice([-1, 1], rows.shape),
    ],
    ids=["permuted", "negated", "fewer", "others"],
)
def test_one_function_for_the_whole_data_set(budgeted, change):
    """Also for samples that nothing was asked about yet, and after a restart."""
    linear = signs(6)
    values(budgeted, linear, budgeted.ids[:10])
    other = dense(change(linear.weights.reshape(6, -1)))
    for _ in range(2):
        with pytest.raises(BudgetError, match="one function only"):
            values(budgeted, other, budgeted.ids[200:])
        budgeted.authority.close()
        budgeted.authority = Authority(budgeted.folder)
    values(budgeted, linear, budgeted.ids[200:])
    values(budgeted, other, receiver="trusted")
    summary = budgeted.authority.summary("set")
    assert (summary.rank_max, summary.bits_max, summary.bits_allowed) == (6, 48, 64)
    assert summary.counts["refusals"] >= 1


def test_a_refused_function_is_not_the_chosen_one(budgeted):
    with pytest.raises(BudgetError, match="rank"):
        values(budgeted, signs(9))
    with pytest.raises(FunctionError):
        values(budgeted, dense(np.eye(DIM)[:1]))
    values(budgeted, signs(8))


def test_gradients_go_to_a_trusted_runtime_only(budgeted):
    geometry = Geometry((4, 4), 2, (3, 3), 1, kernel=(2, 2))
    delta = np.random.default_rng(1).integers(-9, 10, (2, 3, 3, 1)).astype(np.int16)
    request = Gradient("set", budgeted.ids[:2], geometry, delta)
    with pytest.raises(BudgetError, match="no gradients"):
        budgeted.authority.ask(request, receiver="server")
    budgeted.authority.ask(request, receiver="trusted")


def test_with_many_functions_each_is_charged_for_all_its_values(kits):
    """Otherwise multiples of one row, each with its own noise, would average it away."""
    kit = kits(terms=Terms(one_function=False))
    linear = signs(2)
    rows = linear.weights.reshape(2, -1)
    values(kit, linear)
    for times in (2, 3):
        values(kit, dense(times * rows))
    values(kit, linear)
    values(kit, dense(3 * rows))
    summary = kit.authority.summary("set")
    assert (summary.rank_max, summary.bits_max) == (2, 3 * 2 * 8)
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    values(kit, dense(2 * rows))
    values(kit, dense(4 * rows))
    with pytest.raises(BudgetError, match="bits given away from 64 to 80, allowed are 64"):
        values(kit, dense(5 * rows))


def test_full_rank_of_noisy_values_is_not_everything(kits):
    """Else the owner of coarse values who allows full rank would have them averaged for nothing."""
    terms = Terms(one_function=False, value_bits=4, max_bits=4 * DIM + 4 * 32)
    kit = kits(budget=DIM, terms=terms)
    rows = np.random.default_rng(3).choice([-1, 1], (DIM, DIM))
    values(kit, dense(rows))
    assert kit.authority.summary("set").bits_max == 4 * DIM
    values(kit, dense(2 * rows))
    for _ in range(2):
        with pytest.raises(BudgetError, match="bits"):
            values(kit, dense(3 * rows))
        geometry = Geometry((4, 4), 2, (3, 3), 1, kernel=(2, 2))
        delta = np.full((1, 3, 3, 1), 3, np.int16)
        with pytest.raises(BudgetError, match="rank"):
            kit.authority.ask(Gradient("set", kit.ids[:1], geometry, delta), receiver="server")
        kit.authority.close()
        kit.authority = Authority(kit.folder)
    assert kit.authority.summary("set").bits_max == 8 * DIM


PATCH = Geometry((4, 4), 2, (3, 3), 2, kernel=(2, 2))
"""Gradients of it have 16 values of a sample."""


@pytest.fixture
def many(kits):
    """300 samples of which the server may have many functions, each of eight bits under noise."""
    return kits(samples=300, budget=DIM, terms=Terms(one_function=False, max_bits=2**20))


def deltas(count, *, seed=1, size=9):
    return np.random.default_rng(seed).integers(-size, size + 1, (count, 3, 3, 2)).astype(np.int16)


def gradient(kit, ids, delta, *, receiver="server"):
    """What the server, or a trusted runtime, has of a batch's gradient."""
    key = kit.authority.ask(Gradient("set", ids, PATCH, delta), receiver=receiver)
    return pads.unblind(pads.gradient(PATCH, delta, kit.p[ids]), key)


def gradient_noise(kit, ids, delta):
    exact_one = gradient(kit, ids, delta, receiver="trusted")
    return gradient(kit, ids, delta) - exact_one


def test_gradients_have_noise_like_values(many):
    """A sample's part of a gradient tells value_bits a value, as its forward values would."""
    errors = []
    for sample in range(300):
        delta = deltas(1, seed=sample)
        norm = int(np.abs(delta.astype(int)).reshape(9, 2).sum(axis=0).max())
        s = int(np.ceil(np.log2(2 * 127 * norm / 255)))
        error = gradient_noise(many, many.ids[sample : sample + 1], delta)
        assert np.abs(error).max() <= 2 ** (s - 1)
        errors.append(error.ravel() / 2**s)
    found = np.concatenate(errors)
    # Uniform on [-1/2, 1/2): 4,800 of them.
    assert np.abs(found).max() > 0.48
    assert abs(found.std() - 1 / math.sqrt(12)) < 0.02
    assert abs(found.mean()) < 0.02
    assert many.authority.summary("set").bits_max == 16 * 8


def test_asking_for_gradients_again_averages_nothing_out(many):
    delta = deltas(3)
    first = gradient(many, many.ids[:3], delta)
    many.authority.close()
    many.authority = Authority(many.folder)
    np.testing.assert_array_equal(gradient(many, many.ids[:3], delta), first)
    order = [2, 0, 1]
    np.testing.assert_array_equal(gradient(many, many.ids[order], delta[order]), first)
    assert many.authority.summary("set").bits_max == 16 * 8


def test_company_averages_nothing_out_of_a_gradient(many):
    """Known companions can be subtracted: a sample's noise must be its own, not the request's."""
    delta = deltas(40)
    alone = [gradient_noise(many, many.ids[i : i + 1], delta[i : i + 1]) for i in range(40)]
    assert all(noise.any() for noise in alone)
    for other in range(1, 40):
        pair = [0, other]
        together = gradient_noise(many, many.ids[pair], delta[pair])
        np.testing.assert_array_equal(together, alone[0] + alone[other])
    np.testing.assert_array_equal(gradient_noise(many, many.ids[:40], delta), sum(alone))
    assert set(many.authority.spent("set").bits[:40].tolist()) == {16 * 8}


def test_multiples_of_a_gradient_are_charged_anew(kits):
    """Each has its own noise."""
    kit = kits(budget=DIM, terms=Terms(one_function=False, max_bits=3 * 16 * 8))
    delta, ids = deltas(2), np.arange(2)
    for times in (1, 2):
        gradient(kit, ids, times * delta)
    assert kit.authority.summary("set").bits_max == 2 * 16 * 8
    with pytest.raises(BudgetError, match="rank"):
        gradient(kit, ids, 3 * delta)


def test_small_gradients_are_exact_and_charged_as_such(kits):
    """Nine weights of one on 2-bit elements: 19 values, which eight bits hold."""
    kit = kits(bits=2, budget=DIM, terms=Terms(one_function=False, value_bits=8, max_bits=2**20))
    assert not gradient_noise(kit, kit.ids[:1], np.ones((1, 3, 3, 2), np.int16)).any()
    assert kit.authority.summary("set").bits_max == 16 * 5


def test_gradients_too_large_for_their_noise_are_refused(kits):
    """The sum alone would fit, with the noise of all its samples it could wrap."""
    terms = Terms(one_function=False, value_bits=1, max_bits=2**30)
    kit = kits(samples=80, budget=DIM, terms=terms)
    delta = np.full((80, 3, 3, 2), 15000, np.int16)
    delta[:, ::2] += 7
    with pytest.raises(FunctionError, match="too large for noise"):
        gradient(kit, kit.ids, delta)
    gradient(kit, kit.ids, delta, receiver="trusted")
    assert kit.authority.spent("set").bits.max() == 0


def test_both_orders_of_two_functions_lead_to_one_state(kits):
    kit = kits(terms=Terms(one_function=False))
    first, second = signs(2, seed=1), signs(2, seed=2)
    for ids, order in ((kit.ids[:5], (first, second)), (kit.ids[5:], (second, first))):
        for linear in order:
            values(kit, linear, ids)
    account = kit.authority._ledger._accounts["set"]
    assert len(np.unique(account.words[kit.ids])) == 1


@pytest.mark.parametrize("bits", range(1, 33))
def test_the_shift_leaves_the_bits_that_are_stated(bits):
    """log2(R / 2^s + 1) <= bits, and no smaller s would do."""
    info = DatasetInfo("set", (1, 1, DIM), 3, Encoding(1.0, 0.0, 8), 0, 8)
    for size in (0, 1, 3, 100, 30000):
        linear = dense(np.full((2, DIM), size))
        s = noise.shift(info, Rows(linear), bits)
        spread = 2 * 127 * DIM * size
        assert spread + 2**s <= 2 ** (bits + s)
        assert s == 0 or spread + 2 ** (s - 1) > 2 ** (bits + s - 1)
        assert bits < 32 or s == 0


def test_weights_too_large_for_their_noise_are_refused(kits):
    """|A x| alone would fit, with its noise it could wrap."""
    kit = kits(shape=(1, 1, 520), terms=Terms())
    rows = np.full((2, 520), 32500)
    rows[0, ::2] *= -1
    with pytest.raises(FunctionError, match="too large for noise"):
        kit.authority.ask(Forward("set", kit.ids, dense(rows)), receiver="server")
    kit.authority.ask(Forward("set", kit.ids, dense(rows)), receiver="trusted")


@pytest.mark.parametrize("terms", [{"value_bits": 0}, {"value_bits": 33}, {"value_bits": True},
                                   {"max_bits": -1}, {"max_bits": 2**48 + 1}, {"max_bits": 10**400},
                                   {"one_function": 1}])  # fmt: skip
def test_terms_that_mean_nothing(kits, terms):
    with pytest.raises(InputError):
        kits(terms=Terms(**(ANY | terms)))
