"""How much of a classifier's last vector is returned, and that a hidden end releases no more."""

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

import nets
from cloister.errors import InputError
from cloister.graph.answers import AnswerKind, with_answers
from cloister.graph.graph import Graph
from cloister.graph.hidden import hide
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from graph.test_hidden import graph_of, vgg


def answer(graph: Graph, feeds):
    (found,) = runtime_session(model_bytes(graph)).run(None, feeds)
    return found


@pytest.mark.parametrize("net", [nets.chain, nets.residual, vgg])
def test_each_kind_of_answer(net):
    graph, feeds = graph_of(net()), nets.samples(net(), 7)
    (scores,) = interpret(graph, feeds).values()
    order = np.argsort(-scores, axis=1, kind="stable")
    assert with_answers(graph, AnswerKind.ALL) is graph
    found = {kind: with_answers(graph, kind) for kind in AnswerKind}
    np.testing.assert_array_equal(answer(found[AnswerKind.LABEL], feeds), order[:, 0])
    np.testing.assert_array_equal(answer(found[AnswerKind.TOP5], feeds), order[:, :5])
    powers = scores if net is vgg else np.exp(scores - scores.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(answer(found[AnswerKind.PROBABILITIES], feeds), expected, atol=1e-5)
    for kind, shape in ((AnswerKind.LABEL, (None,)), (AnswerKind.TOP5, order[:, :5].shape)):
        known = found[kind].types[found[kind].outputs[0]]
        assert (known.dtype, known.shape[1:]) == (np.int64, shape[1:])


def test_probabilities_are_not_made_twice():
    graph = graph_of(vgg())
    assert with_answers(graph, AnswerKind.PROBABILITIES) is graph


def test_fewer_classes_than_five():
    graph = graph_of(nets.residual())
    made = with_answers(graph, AnswerKind.TOP5)
    assert made.types[made.outputs[0]].shape == (None, 4)


def test_the_best_of_an_old_operator_set():
    graph = replace(graph_of(nets.chain()), opset=9)
    made = with_answers(graph, AnswerKind.TOP5)
    assert made.nodes[-1].attributes["k"] == 5
    assert len(made.nodes[-1].inputs) == 1


@pytest.mark.parametrize("kind", [AnswerKind.LABEL, AnswerKind.TOP5])
def test_a_hidden_end_releases_the_answer_alone(kind):
    graph = with_answers(graph_of(vgg()), kind)
    split = hide(graph, last=1)
    module = split.outer.nodes[-1]
    assert split.outer.outputs == module.outputs == split.hidden.outputs == graph.outputs
    assert split.hidden.nodes[-1].op in ("ArgMax", "TopK")


@pytest.mark.parametrize("net", [nets.several, nets.transposed, nets.sequence])
@pytest.mark.parametrize("kind", [AnswerKind.LABEL, AnswerKind.TOP5, AnswerKind.PROBABILITIES])
def test_what_is_no_vector_of_scores_is_refused(net, kind):
    with pytest.raises(InputError, match=f"answers {kind}: the model's output is not one vector"):
        with_answers(graph_of(net()), kind)


def test_an_input_is_no_answer():
    net = nets.Net()
    net.input("x", 4)
    net.inputs[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    graph = graph_of(net.model(net.op("Relu", "x")))
    with pytest.raises(InputError, match="no node makes it"):
        with_answers(replace(graph, outputs=("x",)), AnswerKind.PROBABILITIES)
