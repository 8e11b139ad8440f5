"""Controls of the battery: where every attack must succeed, and where every attack must fail.

A broken attack, or messages that leak, make a control raise; that is tested too.
"""

from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import torch

import nets
from audit.input.digit_views import (
    attacked_by,
    digits,
    knowledge_of,
    summary_of,
    trained_layer,
)
from cloister.audit.input.attack_battery import BATTERY
from cloister.audit.input.attack_knowledge import AttackKnowledge, PixelMap
from cloister.audit.input.image_generator import ImageGenerator
from cloister.audit.input.image_score import mean_interval
from cloister.audit.input.input_optimisation import InputSearch
from cloister.audit.input.linear_estimate import LinearEstimate
from cloister.audit.input.split_images import SplitImages
from cloister.audit.input.split_view import SplitView
from cloister.audit.input.split_views import blinded_view, input_view
from cloister.base.rng import InsecureSeededRandom
from cloister.data.preprocessing import Channels
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_points
from cloister.plan import policies
from cloister.plan.split_report import CANDIDATES, binomial_tail

IDENTIFIED = 0.95
FALSE_ALARM = 1e-6
"""How often messages that tell nothing fail a control, over all pads. The pads are seeded here."""
TRAINED = ("gan", "decoder")


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cost these small products more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def require_success(scores):
    """At the input every attack identifies at least 95 % of 1-in-50."""
    rate = scores.identified.mean()
    assert rate >= IDENTIFIED, f"identifies {rate:.1%} at the input"


def require_chance(scores):
    """Hits in a blinded transcript are not more than a guess has.

    Each image is sought among candidates of its own, so the hits of a guess are independent, and
    over all images 1 in 50 is expected. The chance of that many is at most the binomial one
    (Hoeffding, 1956).
    """
    hits = int(scores.identified.sum())
    chance = binomial_tail(hits, len(scores.identified), 1 / CANDIDATES)
    assert chance >= FALSE_ALARM, f"identifies {hits} in blinded messages, p = {chance:.1e}"


@cache
def small_net():
    net = nets.Net(3)
    x = net.op("Relu", net.conv(net.input("image", 1, 8, 8), 1, 4, pads=[1, 1, 1, 1]))
    x = net.op("Relu", net.conv(x, 4, 4, pads=[1, 1, 1, 1]))
    return prepare(from_model(net.model(net.gemm(net.op("Flatten", x), 256, 5)), name="small"))


@cache
def images():
    public, attacked = digits()
    return SplitImages("digits", attacked, public, PixelMap((1, 8, 8)), Channels.GRAY, 0)


def ranges():
    return policies.measure_ranges("slalom", small_net(), calibration=images().public)


@cache
def at_the_input():
    viewed = input_view(small_net(), images(), ranges=ranges(), rng=InsecureSeededRandom(1))
    return viewed.knowledge, viewed.attacked


@cache
def blinded():
    viewed = blinded_view(
        small_net(), images(), shallowest=split_points(small_net())[0], ranges=ranges(),
        rng=InsecureSeededRandom(2),
    )  # fmt: skip
    return viewed.knowledge, viewed.attacked


def scores_of(attack, control):
    knowledge, view = control()
    return attacked_by(attack, knowledge, images().attacked, view)


# ---- the controls


@pytest.mark.parametrize("name", BATTERY)
def test_every_attack_finds_inputs_that_cross_as_they_are(name):
    require_success(scores_of(BATTERY[name], at_the_input))


@pytest.mark.parametrize("name", BATTERY)
def test_every_attack_is_at_chance_in_blinded_messages(name):
    scores = scores_of(BATTERY[name], blinded)
    require_chance(scores)
    knowledge, _ = blinded()
    assert summary_of(scores, knowledge, images().attacked).explained.low < 0.02


@pytest.mark.parametrize("name", TRAINED)
def test_trained_attacks_beat_the_floor_at_a_trained_layer(name):
    public, attacked = digits()
    before = trained_layer()
    knowledge, view = knowledge_of(before, public), before.view(attacked)
    floor = attacked_by(BATTERY["ridge"], knowledge, attacked, view)
    found = attacked_by(BATTERY[name], knowledge, attacked, view, effort=0.25)
    assert mean_interval(found.ssim - floor.ssim).low > 0.02
    assert mean_interval(floor.mse - found.mse).low > 0


def test_optimisation_finds_what_a_nonlinear_layer_keeps():
    public, attacked = digits()
    before = trained_layer(width=96)
    knowledge, view = knowledge_of(before, public), before.view(attacked)
    floor = attacked_by(BATTERY["ridge"], knowledge, attacked, view)
    found = attacked_by(BATTERY["optimise"], knowledge, attacked, view, effort=0.4)
    assert mean_interval(floor.mse - found.mse).low > 0


# ---- the controls notice what is broken


def constant_images(network, values, estimate):
    return torch.full_like(estimate, 0.5)


@pytest.mark.parametrize("name", TRAINED)
def test_a_generator_that_draws_a_constant_fails_the_success_control(name, monkeypatch):
    monkeypatch.setattr(ImageGenerator, "forward", constant_images)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    with pytest.raises(AssertionError, match="at the input"):
        require_success(scores_of(BATTERY[name], at_the_input))


def test_a_search_that_does_not_look_fails_the_success_control(monkeypatch):
    def guess(search, view):
        knowledge, _ = at_the_input()
        return np.repeat(knowledge.blind_guess[None], view.count, axis=0)

    monkeypatch.setattr(InputSearch, "reconstruct", guess)
    with pytest.raises(AssertionError, match="at the input"):
        require_success(scores_of(BATTERY["optimise"], at_the_input))


def test_a_linear_map_of_shuffled_images_fails_the_success_control(monkeypatch):
    original = LinearEstimate.__init__

    def shuffled(estimate, view, public):
        original(estimate, view, public.roll(1, 0))

    monkeypatch.setattr(LinearEstimate, "__init__", shuffled)
    knowledge, view = at_the_input()
    fresh = AttackKnowledge(knowledge.images, knowledge.view, knowledge.before)
    with pytest.raises(AssertionError, match="at the input"):
        require_success(attacked_by(BATTERY["ridge"], fresh, images().attacked, view))


@pytest.mark.parametrize("name", BATTERY)
def test_one_pad_for_all_messages_fails_the_blinded_control(name):
    public, attacked = digits()
    # An attacker that optimises knows the model, and no pad: it needs one word for all places.
    shape = (1, 1, 1, 1) if name == "optimise" else (1, 1, 8, 8)
    pad = np.random.default_rng(7).random(shape)
    before = at_the_input()[0].before

    def padded(pixels):
        # Inputs are small beside a pad, as activations of 14 bits are beside 32.
        return SplitView(((((pixels * 2.0**-6 + pad) % 1) - 0.5).astype(np.float32),))

    knowledge = AttackKnowledge(public, padded(public), before)
    with pytest.raises(AssertionError, match="in blinded messages"):
        require_chance(attacked_by(BATTERY[name], knowledge, attacked, padded(attacked)))


def test_the_blinded_control_is_passed_by_guesses():
    rng = np.random.default_rng(3)
    public, attacked = digits()
    knowledge, _ = blinded()

    class Guess:
        name = "guess"

        def fit(self, knowledge, *, seed, effort):
            return self

        def reconstruct(self, view):
            return public[rng.integers(len(public), size=view.count)]

    require_chance(attacked_by(Guess(), knowledge, attacked, blinded()[1]))
