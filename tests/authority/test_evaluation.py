"""Sums over labels: exact or with noise, counted, and what a server could read from them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from authority.conftest import ANY, add_part, join
from authority.test_service import served  # noqa: F401  (a fixture)
from cloister.authority import label_sums
from cloister.authority.answer_keys import answer_keys
from cloister.authority.authority import Authority
from cloister.authority.label_sums import ANSWER_BITS, LEAST_SAMPLES
from cloister.authority.records import Terms
from cloister.authority.requests import Evaluation, Labels
from cloister.base import sealing
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.errors import BudgetError, FunctionError, InputError, ShapeError
from cloister.ring import pads

CLASSES = 3
INFO = DatasetInfo("set", (4, 4, 2), CLASSES, Encoding(1.0, 0.0, 8), 0, 8)
MANY = 100


@pytest.fixture
def secretive(kits):
    """Labels go to a trusted runtime; a server gets sums over them."""

    def make(evaluations=3, samples=MANY):
        terms = Terms(labels_to_server=False, evaluations=evaluations, **ANY)
        return kits(samples=samples, terms=terms)

    return make


def one_hot(numbers):
    return np.eye(CLASSES, dtype=np.int16)[numbers]


def asked(kit, weights, *, ids=None, receiver="server", authority=None):
    ids = kit.ids[: len(weights)] if ids is None else ids
    request = Evaluation("set", ids, weights)
    term = (authority or kit.authority).ask(request, receiver)
    return int(pads.unblind(request.image(kit.y[ids]), term)[0])


def truth(kit, weights, ids=None):
    ids = kit.ids[: len(weights)] if ids is None else ids
    return int((weights.astype(np.int64) * one_hot(kit.labels[ids])).sum())


def test_right_answers_are_counted_without_a_label(secretive):
    kit = secretive()
    guessed = np.random.default_rng(1).integers(0, CLASSES, MANY)
    right = int((guessed == kit.labels).sum())
    assert asked(kit, one_hot(guessed)) == right
    summary = kit.authority.summary("set")
    assert (summary.evaluations, summary.evaluations_allowed) == (1, 3)
    assert summary.labels_released == summary.rank_max == summary.bits_max == 0
    assert summary.counts["evaluation"] == 1


def test_a_repeat_is_free_and_the_same_and_beyond_the_number_it_is_refused(secretive):
    kit = secretive(evaluations=2)
    generator = np.random.default_rng(2)
    weights = [generator.integers(0, 30_000, (MANY, CLASSES)).astype(np.int16) for _ in range(3)]
    answers = [asked(kit, one) for one in (weights[0], weights[1], weights[0], weights[1])]
    assert answers[:2] == answers[2:]
    with pytest.raises(BudgetError, match="of the 2 sums over labels that its owner allows"):
        asked(kit, weights[2])
    assert asked(kit, weights[2], receiver="trusted") == truth(kit, weights[2])
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    assert [asked(kit, one) for one in weights[:2]] == answers[:2]
    with pytest.raises(BudgetError):
        asked(kit, weights[2])
    summary = kit.authority.summary("set")
    assert (summary.evaluations, summary.counts["refusals"]) == (2, 2)


def test_no_sum_is_given_that_the_owner_did_not_allow(secretive):
    kit = secretive(evaluations=0)
    with pytest.raises(BudgetError, match="--evaluations"):
        asked(kit, one_hot(kit.labels))
    with pytest.raises(FunctionError, match="trusted runtime only"):
        kit.authority.ask(Labels("set", kit.ids), "server")


def test_a_server_that_may_have_labels_gets_exact_sums_of_any(kit):
    for seed in range(5):
        weights = np.random.default_rng(seed).integers(-9999, 9999, (10, CLASSES)).astype(np.int16)
        assert asked(kit, weights) == truth(kit, weights)
    assert asked(kit, one_hot(kit.labels[:1])) == 1
    assert kit.authority.summary("set").evaluations_allowed is None


def test_exact_sums_count_as_labels_given(kit):
    """A server reads a label by a sum of one, or of two by a difference; the ledger says so."""
    kit.authority.ask(Evaluation("set", kit.ids[2:5], one_hot(kit.labels[2:5])), "trusted")
    assert kit.authority.summary("set").labels_released == 0
    asked(kit, one_hot(kit.labels[2:5]), ids=kit.ids[2:5])
    asked(kit, one_hot(kit.labels[3:5]), ids=kit.ids[3:5])
    kit.authority.close()
    kit.authority = Authority(kit.folder)
    assert np.flatnonzero(kit.authority.spent("set").labels).tolist() == [2, 3, 4]
    assert kit.authority.summary("set").labels_released == 3


def test_over_https(kit, served):  # noqa: F811
    for role, receiver in (("server", "server"), ("trusted", "trusted")):
        found = asked(kit, one_hot(kit.labels), receiver=receiver, authority=served(role))
        assert found == len(kit.labels)
    with pytest.raises(FunctionError, match="may not ask as the trusted runtime"):
        asked(kit, one_hot(kit.labels), receiver="trusted", authority=served("server"))
    with pytest.raises(FunctionError, match="role client may not ask for evaluation"):
        asked(kit, one_hot(kit.labels), authority=served("client"))


def test_a_sum_tells_no_more_than_its_bits(secretive):
    """The noise is uniform, independent of the labels, and wide enough for any weights."""
    kit = secretive(evaluations=400)
    generator = np.random.default_rng(3)
    errors = []
    for _ in range(300):
        weights = generator.integers(0, 20_000, (MANY, CLASSES)).astype(np.int16)
        request = Evaluation("set", kit.ids, weights)
        s, spread = label_sums.shift(INFO, request), int(label_sums.spreads(INFO, request).sum())
        assert math.log2(spread / 2**s + 1) <= ANSWER_BITS < math.log2(spread / 2 ** (s - 1) + 1)
        errors.append((asked(kit, weights) - truth(kit, weights)) / 2**s)
    errors = np.array(errors)
    assert -0.5 <= errors.min() < -0.4 and 0.4 < errors.max() < 0.5
    assert abs(errors.mean()) < 0.1
    assert abs(errors.std() - 1 / math.sqrt(12)) < 0.05


def test_labels_packed_into_one_sum_are_not_read(secretive):
    """A greedy server numbers the labels of a few samples by powers: the noise covers the lowest.

    Without it, one answer of 31 bits would read more than ANSWER_BITS of labels.
    """
    kit = secretive(evaluations=50)
    packed = 20
    weights = np.zeros((MANY, CLASSES), np.int16)
    weights[packed:] = [0, 0, 3**9]  # these make the rule for few samples hold
    weights[:9] = np.arange(CLASSES)[None] * 3 ** np.arange(9)[:, None]
    request = Evaluation("set", kit.ids, weights)
    assert label_sums.shift(INFO, request) >= 1
    found = asked(kit, weights) - truth(kit, weights)
    # What is left of the lowest digits is noise of their size.
    assert abs(found) <= 2 ** (label_sums.shift(INFO, request) - 1)
    assert 2 ** label_sums.shift(INFO, request) > 3**5


@pytest.mark.parametrize("named", [1, LEAST_SAMPLES - 1])
def test_a_sum_of_few_samples_is_refused(secretive, named):
    kit = secretive()
    with pytest.raises(FunctionError, match="one in 20"):
        asked(kit, one_hot(kit.labels[:named]))
    single = np.zeros((MANY, CLASSES), np.int16)
    single[:named] = one_hot(kit.labels[:named])
    with pytest.raises(FunctionError, match="one in 20"):
        asked(kit, single)
    assert kit.authority.summary("set").evaluations == 0


def test_two_sums_can_be_compared_and_tell_at_most_their_bits(secretive):
    """Stated in docs/protocols/authority.md: the rule for few samples does not prevent it."""
    kit = secretive(evaluations=2)
    weights = np.ones((MANY, CLASSES), np.int16)
    other = weights.copy()
    other[0] = [1, 0, 0]
    assert 1 - (asked(kit, weights) - asked(kit, other)) == (kit.labels[0] == 0)


def test_what_is_no_evaluation_is_refused(secretive, kit):
    hidden = secretive()
    ids = kit.ids
    with pytest.raises(ShapeError, match="weights must be int16"):
        Evaluation("set", ids, np.zeros((3, CLASSES), np.int16))
    with pytest.raises(ShapeError, match="weights must be int16"):
        Evaluation("set", ids, np.zeros((len(ids), CLASSES), np.int64))
    with pytest.raises(FunctionError, match="labels have 3 elements, the weights 2"):
        kit.authority.ask(Evaluation("set", ids, np.zeros((len(ids), 2), np.int16)), "server")
    twice = Evaluation("set", np.zeros(2, np.int64), np.zeros((2, CLASSES), np.int16))
    with pytest.raises(FunctionError, match="names a sample twice"):
        kit.authority.ask(twice, "server")
    with pytest.raises(InputError, match="receiver"):
        hidden.authority.ask(Evaluation("set", ids, one_hot(kit.labels)), "client")


def test_weights_that_could_wrap_are_refused(secretive):
    many = 1 << 16
    kit = secretive(samples=many)
    some = np.random.default_rng(4).integers(-9, 9, (many, CLASSES)).astype(np.int16)
    found = asked(kit, some, receiver="trusted")
    assert found == truth(kit, some)
    weights = np.full((many, CLASSES), 32767, np.int16)
    weights[:, 0] = -32768
    with pytest.raises(FunctionError, match="too large for 65536 samples"):
        asked(kit, weights)


def test_noise_takes_the_keys_of_all_parts(secretive):
    """A client of one part knows its own key, and no more of the noise."""
    kit = secretive(evaluations=9)
    generator = np.random.default_rng(7)
    x = generator.integers(-9, 9, (30, 4, 4, 2)).astype(np.int16)
    _, y, first = add_part(kit.authority, "set", x, generator.integers(0, 3, 30), seed=8)
    assert first == MANY
    kit.y = np.concatenate([kit.y, y])
    ids = np.arange(MANY + 30, dtype=np.int64)
    weights = generator.integers(0, 20_000, (len(ids), CLASSES)).astype(np.int16)
    request = Evaluation("set", ids, weights)
    record = kit.authority._datasets["set"]
    both = label_sums.sum_noise(INFO, request, b"".join(record.keys))
    assert both != label_sums.sum_noise(INFO, request, record.keys[1])
    assert asked(kit, weights, ids=ids) == asked(kit, weights, ids=ids)


def test_clients_share_the_answer_key_and_servers_get_its_public_half(kit, served):  # noqa: F811
    public = served("server").answer_key("set")
    assert public == served("client").answer_key("set") == kit.authority.answer_key("set")
    sealed = sealing.seal(public, b"answers", info=b"a")
    keys = answer_keys(kit.authority.find("set").label_key)
    assert keys.open_sealed(sealed, info=b"a") == b"answers"


def test_unlabelled_samples_have_no_label_to_give(kit):
    """Zeros are blinded as labels are; whoever asks for them gets zeros."""
    zeros = np.zeros((10, CLASSES), np.int32)
    x = np.zeros((10, 4, 4, 2), np.int16)
    key, local = bytes(range(32)), np.arange(10, dtype=np.int64)
    blinded = pads.blind(key, zeros, local, domain=pads.LABEL_DOMAIN)
    first = join(kit.authority, "set").register("e" * 32, len(x), "f" * 64, key)
    ids = local + first
    term = kit.authority.ask(Labels("set", ids), "server")
    assert not pads.unblind(blinded, term).any()
    kit.y = np.concatenate([kit.y, blinded])
    assert asked(kit, np.ones((10, CLASSES), np.int16), ids=ids) == 0


def test_sums_over_labels_and_numbers():
    """Each of several labels is there or not; of numbers there are no sums."""
    weights = np.array([[1, -2, 3], [0, 0, 0]], np.int16)
    request = Evaluation("set", np.arange(2), weights)
    for targets, wanted in (("classes", 5), ("labels", 6)):
        found = label_sums.spreads(replace(INFO, targets=targets), request)
        assert found.tolist() == [wanted, 0]
    with pytest.raises(FunctionError, match="its targets are numbers"):
        label_sums.check(replace(INFO, targets="numbers"), request)
