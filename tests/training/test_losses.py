"""Losses and class weights, against the same values written down in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cloister.data.feature_noise import GaussianNoise
from cloister.errors import InputError
from cloister.training.losses import LOSSES, TrainingObjective, balanced, loss_of
from cloister.training.models import mlp_sigmoid
from cloister.training.settings import Settings
from training.test_trainer import FROZEN, PAPER, TRUSTED, same, trainer, weights

SCORES = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -0.5], [1.0, 1.0, 1.0]])
TARGETS = torch.tensor([2, 0, 1])
LABELS = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
NUMBERS = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.1, -0.5], [1.0, 0.9, -1.0]])
WANTED = {"classes": TARGETS, "labels": LABELS, "numbers": NUMBERS}


def sigmoid(scores):
    return 1 / (1 + np.exp(-scores))


def test_squared_error_of_sigmoid_outputs_and_its_derivative():
    scores = SCORES.clone().requires_grad_()
    value = TrainingObjective("mse")(scores, TARGETS)
    outputs, wanted = 1 / (1 + np.exp(-SCORES.numpy())), np.eye(3)[TARGETS]
    np.testing.assert_allclose(value.item(), ((outputs - wanted) ** 2).sum(1).mean() / 2, rtol=1e-6)
    value.backward()
    # (P - Y) times the sigmoid's slope, over the batch.
    gradient = (outputs - wanted) * outputs * (1 - outputs) / 3
    np.testing.assert_allclose(scores.grad, gradient, rtol=1e-5)


def test_cross_entropy_is_the_default():
    value = TrainingObjective()(SCORES, TARGETS)
    torch.testing.assert_close(value, nn.functional.cross_entropy(SCORES, TARGETS))
    torch.testing.assert_close(TrainingObjective("cross-entropy")(SCORES, TARGETS), value)


def test_balanced_weights_are_those_of_the_counts():
    counts = torch.tensor([6.0, 3.0, 0.0, 1.0])
    np.testing.assert_allclose(balanced(counts), [10 / 24, 10 / 12, 0, 10 / 4], rtol=1e-6)
    weighted = TrainingObjective(class_weights="balanced")
    weighted.weigh(torch.tensor([0, 0, 1, 2]), classes=3)
    wanted = nn.functional.cross_entropy(
        SCORES, TARGETS, weight=torch.tensor([4 / 6, 4 / 3, 4 / 3])
    )
    torch.testing.assert_close(weighted(SCORES, TARGETS), wanted)
    # The order of the classes is secret: another order weighs each sample as before.
    order = torch.tensor([2, 0, 1])
    moved = TrainingObjective(class_weights="balanced")
    moved.weigh(order[torch.tensor([0, 0, 1, 2])], classes=3)
    permuted = torch.empty_like(SCORES)
    permuted[:, order] = SCORES
    torch.testing.assert_close(moved(permuted, order[TARGETS]), wanted)


@pytest.mark.parametrize(
    "weights", [lambda counts: counts[:2], lambda counts: -counts, lambda counts: counts / 0]
)
def test_weights_that_are_none(weights):
    objective = TrainingObjective(class_weights=weights)
    with pytest.raises(InputError, match="finite weights of at least 0"):
        objective.weigh(torch.tensor([0, 1]), classes=3)


@pytest.mark.parametrize(("loss", "message"), [
    (lambda scores, targets: scores, "one value per sample or their mean"),
    (lambda scores, targets: 3.0, "one value per sample or their mean, got float"),
    (lambda scores, targets: scores.nothing, None),
    (nn.BCELoss(), "loss: "),
])  # fmt: skip
def test_losses_that_do_not_fit(loss, message):
    made, _, _ = trainer(FROZEN, loss=loss)
    with pytest.raises(InputError if message else AttributeError, match=message or "nothing"):
        made.fit(1)


def test_a_mean_cannot_be_weighed():
    made, _, _ = trainer(FROZEN, loss=nn.CrossEntropyLoss(), class_weights="balanced")
    with pytest.raises(InputError, match="reduction='none'"):
        made.fit(1)


@pytest.mark.parametrize("settings", [PAPER, FROZEN])
def test_a_loss_of_ones_own_trains_as_the_same_loss_by_name(settings):
    named, _, _ = trainer(replace(settings, loss="mse"))

    def loss(scores, targets):
        wanted = nn.functional.one_hot(targets, 3).float()
        return (scores.sigmoid() - wanted).square().sum(1) / 2

    own, _, _ = trainer(settings, loss=loss)
    assert [one.loss for one in named.fit(2)] == [one.loss for one in own.fit(2)]
    assert same(weights(named), weights(own))


def test_the_papers_setting_learns():
    """Sigmoid units, sigmoid outputs, squared errors, every key that training asks for."""
    made, _, _ = trainer(replace(PAPER, loss="mse"), model=mlp_sigmoid((6, 5, 1), 3))
    history = made.fit(8)
    assert history[-1].test_accuracy > 0.9
    assert history[-1].loss < history[0].loss / 2


def test_squared_errors_with_noise():
    noisy = replace(TRUSTED, noise=GaussianNoise(0.5, "gradients"), loss="mse")
    made, _, _ = trainer(noisy, model=mlp_sigmoid((6, 5, 1), 3))
    found = made.fit(2)
    assert found[1].loss < found[0].loss


def test_weights_from_counts_do_not_go_with_noise():
    noise = GaussianNoise(1.0, "gradients")
    with pytest.raises(InputError, match="how often classes occur"):
        replace(TRUSTED, noise=noise, class_weights="balanced")
    with pytest.raises(InputError, match="how often classes occur"):
        trainer(replace(TRUSTED, noise=noise), class_weights="balanced")
    with pytest.raises(InputError, match="counts have no noise"):
        trainer(replace(TRUSTED, noise=noise), class_weights=lambda counts: 1 / counts)


def test_names_become_part_of_the_settings():
    made, _, _ = trainer(FROZEN, loss="mse", class_weights="balanced")
    assert (made.settings.loss, made.settings.class_weights) == ("mse", "balanced")


@pytest.mark.parametrize("named", [{"loss": "mse"}, {"optimizer": "adam"}, {"learning_rate": 0.1},
                                   {"class_weights": "balanced"}])  # fmt: skip
def test_what_is_decided_twice_is_refused(named):
    with pytest.raises(InputError, match="drop one of them"):
        trainer(
            replace(FROZEN, **named), loss=nn.CrossEntropyLoss(), class_weights=lambda c: c / c,
        )  # fmt: skip


def test_settings_that_are_none():
    with pytest.raises(InputError, match="cross-entropy, binary-cross-entropy, mse, l1"):
        Settings(loss="hinge")
    with pytest.raises(InputError, match="must be balanced"):
        Settings(class_weights="equal")


@pytest.mark.parametrize(("targets", "name", "wanted", "value"), [
    ("labels", None, LABELS, lambda s, y: -np.log(np.where(y == 1, sigmoid(s), 1 - sigmoid(s)))),
    ("labels", "mse", LABELS, lambda s, y: 1.5 * (sigmoid(s) - y) ** 2),
    ("numbers", None, NUMBERS, lambda s, y: (s - y) ** 2),
    ("numbers", "mse", NUMBERS, lambda s, y: (s - y) ** 2),
    ("numbers", "l1", NUMBERS, lambda s, y: np.abs(s - y)),
])  # fmt: skip
def test_losses_of_labels_and_numbers(targets, name, wanted, value):
    found = TrainingObjective(name, targets=targets)(SCORES, wanted)
    np.testing.assert_allclose(found, value(SCORES.numpy(), wanted.numpy()).mean(), rtol=1e-5)


@pytest.mark.parametrize("targets", ["labels", "numbers"])
def test_only_classes_have_weights(targets):
    with pytest.raises(InputError, match=f"class_weights: the data set has {targets} to learn"):
        TrainingObjective(targets=targets, class_weights="balanced")


def test_a_batch_of_samples_without_weight_adds_nothing():
    objective = TrainingObjective(class_weights=lambda counts: torch.tensor([0.0, 0.0, 1.0]))
    objective.weigh(torch.tensor([0, 1, 2]), classes=3)
    assert objective(SCORES[1:], TARGETS[1:]) == 0


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


VALUES = {
    ("classes", "cross-entropy"): lambda s, y: -np.log(softmax(s)[np.arange(3), y]),
    ("classes", "mse"): lambda s, y: ((sigmoid(s) - np.eye(3)[y]) ** 2).sum(axis=1) / 2,
    ("labels", "binary-cross-entropy"):
        lambda s, y: -np.log(np.where(y == 1, sigmoid(s), 1 - sigmoid(s))).mean(axis=1),
    ("labels", "mse"): lambda s, y: ((sigmoid(s) - y) ** 2).sum(axis=1) / 2,
    ("numbers", "mse"): lambda s, y: ((s - y) ** 2).mean(axis=1),
    ("numbers", "l1"): lambda s, y: np.abs(s - y).mean(axis=1),
}  # fmt: skip


@pytest.mark.parametrize(("targets", "name"), VALUES)
def test_values_of_samples(targets, name):
    wanted = WANTED[targets]
    found = loss_of(targets, name)(SCORES, wanted)
    value = VALUES[targets, name](SCORES.numpy().astype(float), wanted.numpy())
    np.testing.assert_allclose(found, value, rtol=1e-5)


def test_every_loss_is_compared():
    assert set(VALUES) == {(targets, name) for targets in LOSSES for name in LOSSES[targets]}


@pytest.mark.parametrize(("targets", "name"), [
    ("classes", "cross-entropy"), ("labels", "binary-cross-entropy"), ("numbers", "mse"),
])  # fmt: skip
def test_each_kind_has_a_default(targets, name):
    assert loss_of(targets, None) is LOSSES[targets][name]


def test_the_loss_of_another_kind_is_refused():
    with pytest.raises(InputError, match="loss l1: the data set has labels to learn; choose bin"):
        loss_of("labels", "l1")
