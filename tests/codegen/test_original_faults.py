"""The faults of the published implementation (eNNclave, 2020), each as a test of generated code.

Those about the engine and the bundle - weights decrypted on every call, a debug enclave, a signing
key in the repository - are tested where engines, bundles and Gramine's files are.
"""

import numpy as np
import pytest

import nets
from cloister.errors import InputError
from cloister.graph.answers import AnswerKind, with_answers
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from codegen.modules import Native, aligned, compiled, packed_inputs, unpacked_outputs

BUILD = "native-x86-64-v3"


def built(net, *outputs):
    graph = from_model(net.model(*outputs), name="net")
    return graph, Native(compiled(graph, builds=(BUILD,)), BUILD)


def samples(graph, seed=4):
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal((1, *graph.types[name].shape[1:])).astype(np.float32)
        for name in graph.inputs
    }


def agrees(graph, native, given=None):
    given = given or samples(graph)
    expected = interpret(graph, given)
    for name, value in zip(graph.outputs, native.run(*given.values()), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strides", [[2, 1], [1, 3], [3, 2]])
@pytest.mark.parametrize("group", [1, 4])
def test_strides_are_not_ignored(strides, group):
    net = nets.Net(1)
    x = net.input("x", 4, 11, 8)
    agrees(*built(net, net.conv(x, 4, 4, (3, 2), strides=strides, group=group)))


def test_a_missing_bias_moves_no_later_weights():
    net = nets.Net(2)
    x = net.input("x", 3, 6, 5)
    x = net.op("Relu", net.op("Conv", x, net.weights(8, 3, 3, 2)))
    x = net.op("Conv", x, net.weights(8, 1, 2, 2), group=8)
    x = net.conv(x, 8, 5, (1, 1))
    x = net.op("MatMul", net.op("Flatten", x), net.weights(5 * 3 * 3, 7))
    agrees(*built(net, net.gemm(net.op("Tanh", x), 7, 3)))


def test_a_depthwise_convolution_in_a_chain_reads_its_own_weights_alone():
    net = nets.Net(3)
    x = net.input("x", 5, 9, 6)
    for kernel in ((3, 3), (2, 3), (3, 1)):
        x = net.conv(x, 5, 5, kernel, group=5)
        x = net.conv(x, 5, 5, (1, 1))
    agrees(*built(net, x))


def test_a_dense_layer_on_rows_applies_its_activation_to_every_row():
    net = nets.Net(4)
    x = net.input("x", 7, 6)
    y = net.op("Relu", net.op("MatMul", x, net.weights(6, 5)))
    graph, native = built(net, y)
    given = samples(graph)
    agrees(graph, native, given)
    rows = native.run(*given.values())[0][0]
    assert rows.min() == 0
    assert (rows[1:] == 0).any()


def test_softmax_does_not_overflow_and_works_row_by_row():
    net = nets.Net(5)
    x = net.input("x", 4, 6)
    graph, native = built(net, net.op("Softmax", x, axis=-1))
    given = {"x": samples(graph)["x"] * 1000}
    found = native.run(given["x"])[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    agrees(graph, native, given)


def test_an_activation_leaves_the_callers_input_and_its_other_readers_alone():
    net = nets.Net(6)
    x = net.input("x", 3, 5, 4)
    y = net.op("Relu", x)
    z = net.op("Add", net.op("Mul", y, y), x)
    # `run` compares the caller's buffer before and after.
    agrees(*built(net, z, y))


@pytest.mark.parametrize("size", [(5, 12), (12, 5), (1, 9), (9, 1)])
def test_height_and_width_are_not_confused(size):
    net = nets.Net(7)
    x = net.input("x", 3, *size)
    x = net.conv(x, 3, 4, (1, 3), pads=[0, 2, 0, 0], strides=[1, 2])
    x = net.op("MaxPool", x, kernel_shape=[2, 1], pads=[1, 0, 0, 0], strides=[2, 1])
    x = net.op("AveragePool", x, kernel_shape=[1, 2], pads=[0, 1, 0, 1])
    agrees(*built(net, x))


def test_a_host_cannot_choose_how_much_is_read_or_written():
    net = nets.Net(8)
    graph, native = built(net, net.gemm(net.input("x", 6), 6, 2))
    manifest = native.module.manifest
    inputs = aligned(manifest.input_bytes)
    inputs[:] = np.frombuffer(packed_inputs(native.module, samples(graph).values()), np.uint8)
    outputs = aligned(1 << 16)
    before = outputs.tobytes()
    right = (manifest.weights_bytes, manifest.input_bytes, 64, manifest.arena_bytes)
    for length in (0, 2, 4, 8, 63, 65, 68 * 4, 1 << 16, 2**63):
        assert native.call(inputs, outputs, lengths=(*right[:2], length, right[3])) == 3
        assert outputs.tobytes() == before
    assert native.call(inputs, outputs, lengths=right) == 0
    # Two numbers, and nothing behind them.
    assert outputs[8:].tobytes() == before[8:]


@pytest.mark.parametrize(("kind", "elements"), [(AnswerKind.LABEL, 1), (AnswerKind.TOP5, 5)])
def test_a_label_leaves_the_module_without_the_vector(kind, elements):
    net = nets.Net(9)
    whole = from_model(net.model(net.gemm(net.input("x", 6), 6, 9)), name="net")
    graph = with_answers(whole, kind)
    module = compiled(graph, builds=(BUILD,))
    assert [tensor.dtype for tensor in module.manifest.outputs] == ["int64"]
    assert module.manifest.output_bytes == 64
    given = samples(whole)
    scores = interpret(whole, given)[whole.outputs[0]][0]
    expected = np.argsort(-scores)[:elements]
    outputs = aligned(64)
    before = outputs.tobytes()
    inputs = aligned(module.manifest.input_bytes)
    inputs[:] = np.frombuffer(packed_inputs(module, given.values()), np.uint8)
    assert Native(module, BUILD).call(inputs, outputs) == 0
    found = unpacked_outputs(module, outputs.tobytes())[0].reshape(-1)
    np.testing.assert_array_equal(found, expected)
    assert outputs[8 * elements :].tobytes() == before[8 * elements :]


def test_a_label_of_what_is_no_vector_is_refused():
    net = nets.Net(10)
    whole = from_model(net.model(net.conv(net.input("x", 3, 5, 4), 3, 2)), name="net")
    with pytest.raises(InputError, match="not one vector of scores"):
        with_answers(whole, AnswerKind.LABEL)
