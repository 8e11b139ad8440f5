"""Figures of a run, against the same written down in NumPy."""

import numpy as np
import pytest
import torch

from cloister.training.metrics import added, batch_sums, measured


def in_batches(targets, scores, wanted, size=3):
    sums = []
    for i in range(0, len(scores), size):
        sums = added(sums, batch_sums(targets, scores[i : i + size], wanted[i : i + size]))
    return measured(targets, sums, wanted)


@pytest.fixture
def scores():
    return torch.from_numpy(np.random.default_rng(1).normal(size=(10, 4))).float()


def test_accuracy_of_classes(scores):
    wanted = torch.arange(10) % 4
    found = in_batches("classes", scores, wanted)
    assert found.accuracy == float((scores.argmax(1) == wanted).double().mean())
    assert found.fit is None


def test_accuracy_of_labels_is_the_mean_of_each_labels(scores):
    wanted = (torch.arange(40).reshape(10, 4) % 3 == 0).float()
    found = in_batches("labels", scores, wanted)
    each = ((scores > 0) == (wanted > 0)).double().mean(0)
    assert found.accuracy == pytest.approx(float(each.mean()), rel=1e-12)


def test_fit_of_numbers(scores):
    wanted = torch.sin(torch.arange(40.0).reshape(10, 4))
    found = in_batches("numbers", scores, wanted)
    s, y = scores.double().numpy(), wanted.double().numpy()
    np.testing.assert_allclose(found.fit.rmse, np.sqrt(((s - y) ** 2).mean(axis=0)))
    r2 = 1 - ((s - y) ** 2).sum(axis=0) / ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    np.testing.assert_allclose(found.fit.r2, r2)
    assert found.fit.mean_r2 == pytest.approx(r2.mean())
    assert found.accuracy is None
    constant = torch.zeros(10, 1)
    assert in_batches("numbers", constant, constant).fit.r2 == (1.0,)
    assert in_batches("numbers", constant + 1, constant).fit.r2 == (0.0,)
