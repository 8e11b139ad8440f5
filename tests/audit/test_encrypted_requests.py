"""Attacks on what a ciphertext host and the authority are asked, in real runs of the trainer."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

pytest.importorskip("torch")

import torch
from torch import nn

from audit import leaks
from cloister.audit.training.attacks import ATTACKS, run_attacks
from cloister.audit.training.differences import from_output_gradients, from_weights, updates
from cloister.audit.training.evidence import collect
from cloister.audit.training.judge import judge, overall
from cloister.audit.training.prior import uninformed
from cloister.audit.training.training_page import conclusion
from cloister.audit.training.truth import Truth
from cloister.authority.request_log import ReleaseLog, asked, read_releases
from cloister.authority.requests import Forward
from cloister.base.rng import InsecureSeededRandom
from cloister.data.encoding import Encoding
from cloister.data.feature_noise import GaussianNoise
from cloister.errors import InputError
from cloister.ring.linear import LinearMap
from cloister.training.ciphertexts import LocalCiphertextServer, RecordingServer
from cloister.training.settings import Settings
from cloister.training.trainer import Trainer
from training.doubles import MemoryAuthority, MemoryDataset

SHAPE, HIDDEN = (8, 8, 1), 64
ENCODING = Encoding.for_range(0, 1, bits=8)
PRIOR = uninformed(SHAPE, low=-127, high=127)


class Log:
    """A recorder in memory."""

    def __init__(self):
        self.kept = []

    def append(self, release):
        self.kept.append(release)


class Liar(LocalCiphertextServer):
    """Answers all samples of a batch but its first with outputs far below zero.

    Their ReLUs are dead, so that the batch's gradient is one sample's.
    """

    def ask(self, request):
        found = super().ask(request)
        if request.kind == "forward":
            found[1:] -= np.uint32(1 << 26)
        return found


def sgd(momentum):
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=momentum)


def requests(
    *, batch, steps=6, momentum=0.0, optimizer=None, host=LocalCiphertextServer, **settings
):
    """What host and authority were asked in a run on digits, and the truth."""
    digits = load_digits()
    x, y = digits.images[:200, :, :, None] / 16, digits.target[:200]
    dataset = MemoryDataset(x, y, encoding=ENCODING)
    seen, asked_for = Log(), Log()
    torch.manual_seed(0)
    made = Trainer(
        nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)),
        dataset, keys=MemoryAuthority(dataset, mode="budgeted"), rng=InsecureSeededRandom(0),
        server=RecordingServer(host(dataset), seen), request_log=asked_for,
        optimizer=optimizer or sgd(momentum),
        settings=Settings(unblind_to="trusted", batch=batch, **settings),
    )  # fmt: skip
    made.prepare()
    order = np.random.default_rng(0).permutation(made._train_ids)
    for step in range(steps + 1):
        made.step(order[step * batch : (step + 1) * batch])
    truth = Truth(np.arange(200), ENCODING.encode(x).reshape(200, -1).astype(float), y)
    return seen.kept, asked_for.kept, truth


def judged(log, truth=None):
    _, findings = run_attacks(log, PRIOR)
    assert [finding.attack for finding in findings] == list(ATTACKS)
    found = [judge(finding, truth, PRIOR) for finding in findings]
    return {one.finding.attack: one for one in found}, overall(found)


WEIGHTS, GRADIENTS = "weight differences", "output gradients"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_host_reads_batches_of_one_from_the_weights(momentum):
    host, _, truth = requests(batch=1, momentum=momentum)
    found, verdict = judged(host, truth)
    one = found[WEIGHTS]
    assert one.verdict == verdict == "recovered"
    assert one.score.value > 60
    assert one.score.guess < 15
    assert one.score.exact == 1.0
    assert one.score.samples == len(one.finding.ids) == 6
    assert judged(host)[1] == "recovered", "no truth is needed for that"
    assert found[GRADIENTS].verdict == "nothing to attack", "a host is asked for none"


def test_units_that_one_sample_alone_made_active_show_it_in_any_batch():
    host, _, truth = requests(batch=24)
    one = judged(host, truth)[0][WEIGHTS]
    assert one.verdict == "recovered"
    assert one.score.value > 40
    assert not one.finding.determined
    four = judged(requests(batch=4)[0], truth)[0][WEIGHTS]
    assert four.verdict == "approximated"


@pytest.mark.parametrize("batch", [2, 24])
def test_a_host_that_lies_chooses_the_sample_it_reads(batch):
    """Its answers are not checked: the others' units are off, and any batch is a batch of one."""
    host, _, truth = requests(batch=batch, host=Liar)
    one = judged(host, truth)[0][WEIGHTS]
    assert one.verdict == "recovered"
    assert one.score.value > 50
    assert one.score.samples == 6


@pytest.mark.parametrize("batch", [1, 4, 24])
def test_the_authority_solves_for_whole_batches(batch):
    """Without one ciphertext, and without lying: it is sent output gradients with every key."""
    _, authority, truth = requests(batch=batch, momentum=0.9)
    found, verdict = judged(authority, truth)
    one = found[GRADIENTS]
    assert one.verdict == verdict == "recovered"
    assert one.score.value > 30
    assert one.score.samples == 6 * batch
    assert judged(authority)[1] == "recovered"


def test_offloaded_gradients_give_a_host_the_authoritys_view():
    host, authority, truth = requests(batch=4, offload_gradients=True)
    assert [r.kind for r in host] == [r.kind for r in authority]
    assert judged(host, truth)[0][GRADIENTS].verdict == "recovered"


def test_of_a_frozen_first_layer_nothing_that_is_asked_depends_on_a_sample():
    for log in requests(batch=4, first_layer="frozen")[:2]:
        assert {request.kind for request in log} == {"forward request"}
        found, verdict = judged(log, None)
        assert verdict == "nothing to attack"
        assert {one.verdict for one in found.values()} == {"nothing to attack"}
        assert "one function for all samples" in found[WEIGHTS].finding.note


def test_a_log_of_one_trained_function_is_not_said_to_tell_nothing():
    """As of an evaluation: its weights follow from the samples, which such a log does not show."""
    log = requests(batch=4)[0][-1:]
    found, verdict = judged(log, None)
    assert verdict == "nothing to attack"
    evidence = collect(log)
    for said in (found[WEIGHTS].finding.note, conclusion(list(found.values()), evidence)):
        assert "public" in said


@pytest.mark.parametrize("host", [LocalCiphertextServer, Liar])
def test_noise_leaves_nothing_that_agrees(host):
    log, authority, truth = requests(batch=1, host=host, noise=GaussianNoise(2.0, "gradients"))
    assert judged(log, truth)[0][WEIGHTS].verdict == "not recovered"
    assert judged(authority, truth)[0][GRADIENTS].verdict == "not attempted"


def test_another_optimiser_is_not_taken_for_sgd():
    """Adam's first step moves all weights by the same amount; it is no sample."""
    adam = lambda parameters: torch.optim.Adam(parameters, lr=1e-3)  # noqa: E731
    host, authority, truth = requests(batch=1, optimizer=adam)
    found, _ = judged(authority, truth)
    assert found[WEIGHTS].verdict == "not recovered"
    assert found[GRADIENTS].verdict == "not attempted"
    assert "not SGD" in found[GRADIENTS].finding.note
    found, verdict = judged(host, truth)
    assert not found[WEIGHTS].finding.determined
    # The attack assumes what is not so, and that it fails says nothing.
    assert verdict == "not recovered"
    said = conclusion(list(found.values()), collect(host))
    assert "under another optimiser, such as Adam" in said
    found, verdict = judged(requests(batch=1)[0], truth)
    assert verdict == "recovered"
    assert "Adam" not in conclusion(list(found.values()), collect(host))


def test_a_log_that_no_attack_can_use_is_not_called_safe():
    """A convolution's weights change, and no attack here reads them."""
    rng = np.random.default_rng(0)
    geometry = leaks.dense((4, 4, 1), 3)
    conv = type(geometry)((8, 8), 1, (8, 8), 2, (3, 3), pad=(1, 1))
    log = [
        asked(Forward("set", np.arange(2), LinearMap(
            conv, rng.integers(-9, 9, conv.weight_shape).astype(np.int16))))
        for _ in range(2)
    ]  # fmt: skip
    found, verdict = judged(log)
    assert verdict == found[WEIGHTS].verdict == "not attempted"
    assert "dense first layers only" in found[WEIGHTS].finding.note


def test_the_truth_in_another_order_is_refused():
    host, _, truth = requests(batch=1)
    shuffled = Truth(truth.ids[::-1].copy(), truth.x)
    with pytest.raises(InputError, match="--order"):
        judged(host, shuffled)


def test_scales_that_change_between_requests_are_followed():
    weights = np.array([[100, -200], [300, 50]], np.int16)
    geometry = leaks.dense((1, 2, 1), 2)
    ids = np.arange(1)
    log = [
        asked(Forward("set", ids, LinearMap(geometry, integers.reshape(geometry.weight_shape))))
        for integers in (weights, 2 * weights + 2, 2 * weights + 2, 4 * weights + 12)
    ]
    first, second = updates(log)
    np.testing.assert_array_equal(first.change, np.ones((2, 2)))
    np.testing.assert_array_equal(second.change, np.full((2, 2), 2.0))
    assert from_output_gradients([first, second]) == []
    assert from_weights([]) == []


def test_what_is_logged_is_read_again(tmp_path):
    host, authority, _ = requests(batch=2, steps=2)
    for name, log in (("host", host), ("authority", authority)):
        with ReleaseLog(tmp_path / name) as file:
            for request in log:
                file.append(request)
        read = list(read_releases(tmp_path / name))
        assert [r.kind for r in read] == [r.kind for r in log]
        for one, other in zip(read, log, strict=True):
            np.testing.assert_array_equal(one.functional, other.functional)
            assert one.values.size == 0
