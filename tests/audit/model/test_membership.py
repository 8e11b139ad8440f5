"""Attacks on membership: the area under the curve, its interval, and victims that overfit."""

import numpy as np
import pytest

pytest.importorskip("torch")

from audit.model import victims
from cloister.audit.model.membership import (
    auc,
    confidence,
    label_scores,
    loss_scores,
    membership,
    ratio_scores,
)
from cloister.audit.model.theft_data import LabelledSamples, audit_data
from cloister.audit.model.theft_settings import TheftSettings
from cloister.audit.model.thief import Thief
from cloister.audit.model.victim import victim


def test_area_counts_pairs_and_half_of_ties():
    members, others = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])
    assert auc(members, others) == (2 + 1 + 1.5) / 6
    assert auc(others, members) == 1 - auc(members, others)
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 50) / 1.0, rng.integers(2, 12, 70) / 1.0
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auc(a, b) == pytest.approx(pairs)


def test_interval_is_that_of_hanley_and_mcneil():
    """Their own example has a standard error of 0.0325 at 0.893 for 51 and 58 patients."""
    members, others = np.r_[np.ones(46), np.zeros(5)], np.r_[np.ones(7), np.zeros(51)]
    found = membership("x", members, others)
    assert found.low < found.auc < found.high
    area, m, n = found.auc, 51, 58
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = np.sqrt(
        (area * (1 - area) + (m - 1) * (q1 - area**2) + (n - 1) * (q2 - area**2)) / (m * n)
    )
    assert found.auc - found.low == pytest.approx(1.96 * error, rel=1e-4)
    assert error == pytest.approx(0.0325, abs=0.003)


def test_members_found_at_few_false_positives():
    others = np.arange(100.0)
    found = membership("x", np.array([98.5, 99.5, 99.25, 0.0]), others)
    assert found.at_low_false_positives == 0.5


def test_scores():
    answers = np.array([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]], np.float32)
    classes = np.array([0, 1])
    np.testing.assert_allclose(confidence(answers, classes)[0], 0.0, atol=1e-12)
    np.testing.assert_allclose(loss_scores(answers, classes)[0], np.log(0.5))
    assert np.isfinite(loss_scores(answers, classes)).all()
    np.testing.assert_array_equal(label_scores(answers, classes), [1.0, 0.0])
    rng = np.random.default_rng(1)
    outside = rng.dirichlet([1, 1, 4], 200).astype(np.float32)
    scores = ratio_scores(outside, outside.argmax(axis=1), outside)
    assert abs(scores.mean()) < 0.05
    assert scores.std() == pytest.approx(1, abs=0.05)


@pytest.fixture(scope="module")
def overfitted():
    """A victim that learned 150 samples by heart, a fifth of them under a wrong class."""
    members, others = victims.digits()
    few = members.of(np.arange(150))
    wrong = np.where(np.arange(150) % 5 == 0, (few.y + 1) % 10, few.y)
    few = LabelledSamples(few.x, wrong)
    return victims.trained(victims.untrained(), few, steps=1500), few, others


@pytest.mark.parametrize("answers", ["probabilities", "label"])
def test_a_victim_that_learned_by_heart_gives_its_members_away(overfitted, answers):
    graph, few, others = overfitted
    data = audit_data(others, members=few, evaluated=300)
    thief = Thief(victim(graph), data, TheftSettings(queries=(10,), answers=answers))
    found = list(thief.infer())
    assert [one.attack for one in found] == (
        ["right label"] if answers == "label" else ["loss threshold", "likelihood ratio"]
    )
    assert all(one.low > 0.55 for one in found)


def test_a_victim_that_learned_nothing_gives_nothing_away():
    members, others = victims.digits()
    data = audit_data(others, members=members, evaluated=300)
    thief = Thief(victim(victims.untrained()), data, TheftSettings(queries=(10,)))
    for one in thief.infer():
        assert one.low < 0.5 < one.high
