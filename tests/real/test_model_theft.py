"""The known facts of model theft on MNIST: a small convolutional network, 50 queries."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

import nets
from audit.model import victims
from benchmarks.training_data import mnist
from cloister.audit.model import TheftSettings, audit_data, audit_model
from cloister.audit.model.theft_data import LabelledSamples
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare

pytestmark = pytest.mark.data


def network():
    net = nets.Net(6)
    x = net.op("Relu", net.conv(net.input("image", 1, 28, 28), 1, 16, (5, 5), strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Relu", net.conv(x, 16, 32))
    x = net.op("LeakyRelu", net.gemm(net.op("Flatten", x), 32 * 4 * 4, 32), alpha=0.2)
    return net.model(net.op("Softmax", net.gemm(x, 32, victims.CLASSES)))


def test_known_facts_on_mnist(data, tmp_path):
    found = mnist(data, train=12_000, test=2_000)
    assert found.source == "MNIST"
    x = found.values().astype(np.float32).transpose(0, 3, 1, 2)
    members, others = (LabelledSamples(x[one], found.y[one]) for one in (~found.test, found.test))
    graph = victims.trained(prepare(from_model(network(), name="mnist")), members, steps=800)
    settings = TheftSettings(queries=(0, 50), seeds=3, steps=200)
    report = audit_model(
        graph,
        audit_data(others, members=members.of(np.arange(1000)), evaluated=settings.evaluated),
        folder=tmp_path,
        settings=settings,
    )
    assert report.victim_accuracy > 0.95
    last, whole = report.split(1), report.split(report.layers)
    # 2 (32 + 1) queries recover the head exactly, and so do 50.
    assert (last.recovery.features, last.recovery.queries, last.recovery.rank) == (32, 66, 33)
    assert last.recovery.weights_error < 1e-4
    assert last.thefts[-1].attack == "solved"
    assert last.thefts[-1].accuracy.mean > 0.99 * report.victim_accuracy
    assert report.gain(1) > 1.2
    assert report.gain(report.layers) <= 1.0
    assert whole.thefts[-1] in [one.thefts[-1] for one in report.black_boxes]
    assert report.sweet_spot != 1
