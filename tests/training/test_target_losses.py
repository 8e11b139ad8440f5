"""Losses of each kind of targets, against the same values written down in NumPy."""

import numpy as np
import pytest
import torch

from cloister.errors import InputError
from cloister.training.losses import LOSSES, loss_of

SCORES = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -0.5], [1.0, 1.0, 1.0]])
CLASSES = torch.tensor([2, 0, 1])
LABELS = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
NUMBERS = torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.1, -0.5], [1.0, 0.9, -1.0]])
WANTED = {"classes": CLASSES, "labels": LABELS, "numbers": NUMBERS}


def sigmoid(scores):
    return 1 / (1 + np.exp(-scores))


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
