"""Solving for a hidden linear head, and which hidden parts are one."""

import numpy as np
import pytest

pytest.importorskip("torch")

import nets
from cloister.audit.model.linear_recovery import is_linear, recover
from cloister.audit.model.victim import probabilities, victim
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare


def answers(features, weights, bias):
    return probabilities((features @ weights + bias).astype(np.float32))


@pytest.fixture
def head():
    rng = np.random.default_rng(3)
    return rng.standard_normal((40, 7)), rng.standard_normal(7)


def features(count, seed=4):
    return np.random.default_rng(seed).standard_normal((count, 40)).astype(np.float32)


def test_centred_weights_follow_from_probabilities(head):
    weights, bias = head
    x = features(82)
    found = recover(x, answers(x, weights, bias))
    centred = np.vstack([weights, bias])
    centred = centred - centred.mean(axis=1, keepdims=True)
    assert found.is_determined
    assert np.linalg.norm(found.weights - centred) / np.linalg.norm(centred) < 1e-5


def test_what_softmax_forgets_cannot_be_recovered(head):
    """The same vector added to the weights of all classes changes no answer."""
    weights, bias = head
    x = features(82)
    shifted = weights + np.random.default_rng(5).standard_normal((40, 1))
    assert np.abs(shifted - weights).max() > 1
    np.testing.assert_allclose(
        recover(x, answers(x, shifted, bias)).weights,
        recover(x, answers(x, weights, bias)).weights,
        atol=1e-5,
    )


def test_one_query_fewer_than_needed_leaves_the_head_open(head):
    assert recover(features(41), answers(features(41), *head)).is_determined
    found = recover(features(40), answers(features(40), *head))
    assert not found.is_determined
    assert found.rank == 40


def test_features_that_are_never_active_leave_the_head_open(head):
    x = features(200)
    x[:, 5] = 0
    found = recover(x, answers(x, *head))
    assert found.rank == 40
    more = features(50, seed=6)
    more[:, 5] = 0
    true = more @ head[0] + head[1]
    true = true - true.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found.logits(more), true, atol=1e-4)


def test_answers_that_round_to_zero_are_not_used(head):
    x = features(200)
    x[:100] *= 60
    given = answers(x, *head)
    assert (given[:100] == 0).any(axis=1).sum() > 50
    found = recover(x, given)
    more = features(50, seed=7)
    true = more @ head[0] + head[1]
    np.testing.assert_allclose(
        found.logits(more), true - true.mean(axis=1, keepdims=True), atol=1e-4
    )
    assert recover(x[:1], np.eye(7, dtype=np.float32)[:1]) is None


LINEAR_ENDS = {"chain": 1, "residual": 1, "branches": 0, "text": 1}


@pytest.mark.parametrize("name", LINEAR_ENDS)
def test_a_linear_hidden_part_is_known_by_its_operators(name):
    whole = victim(prepare(from_model(nets.ALL[name](), name=name)))
    found = [whole.split(hidden).is_linear for hidden in range(1, whole.layers + 1)]
    assert sum(found) == LINEAR_ENDS[name]
    part = whole.split(1)
    if not part.is_linear:
        return
    x = np.random.default_rng(8).standard_normal(
        (5, *(size for size in part.hidden.types[part.hidden.inputs[0]].shape[1:]))
    ).astype(np.float32)  # fmt: skip
    matrix = part.weights()
    assert matrix.shape == (part.features, whole.classes)
    from cloister.graph.interpreter import interpret

    (values,) = interpret(part.hidden, {part.hidden.inputs[0]: x}).values()
    linear = x.reshape(5, -1) @ matrix
    np.testing.assert_allclose(values - values[0], linear - linear[0], atol=1e-4)


def test_a_product_of_computed_values_is_not_linear():
    net = nets.Net(1)
    x = net.gemm(net.input("x", 6), 6, 6)
    graph = prepare(from_model(net.model(net.op("Mul", x, x)), name="square"))
    assert not is_linear(graph)
