"""Small classifiers of handwritten digits, trained here, and the data of their audits."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits

import nets
from cloister.audit.model import surrogate
from cloister.audit.model.theft_data import LabelledSamples
from cloister.audit.model.theft_settings import TheftSettings
from cloister.graph.graph import Graph
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare

torch.set_num_threads(1)
CLASSES = 10


@cache
def digits() -> tuple[LabelledSamples, LabelledSamples]:
    """Two thirds of the digits to train on, and the others."""
    found = load_digits()
    x = (found.images[:, None] / 16).astype(np.float32)
    held = np.arange(len(x)) % 3 == 0
    y = found.target.astype(np.int64)
    return LabelledSamples(x[~held], y[~held]), LabelledSamples(x[held], y[held])


def network() -> onnx.ModelProto:
    """A convolution and four dense layers; the last one reads 12 numbers."""
    net = nets.Net(4)
    x = net.op("Relu", net.conv(net.input("image", 1, 8, 8), 1, 8, pads=[1, 1, 1, 1]))
    x = net.op("Flatten", net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    for before, after in ((128, 48), (48, 24), (24, 12)):
        x = net.op("LeakyRelu", net.gemm(x, before, after), alpha=0.2)
    return net.model(net.op("Softmax", net.gemm(x, 12, CLASSES)))


def untrained() -> Graph:
    """The network with random weights."""
    return prepare(from_model(network(), name="digits"))


@cache
def classifier() -> Graph:
    """The network, trained."""
    return trained(untrained(), digits()[0], steps=1500)


def classifier_file(path) -> None:
    """The classifier as an ONNX file."""
    path.write_bytes(model_bytes(classifier()))


def trained(graph: Graph, samples: LabelledSamples, *, steps: int) -> Graph:
    """The graph with weights that were trained on samples."""
    generator = torch.Generator().manual_seed(5)
    body = replace(graph, nodes=graph.nodes[:-1], outputs=(graph.nodes[-1].inputs[0],))
    made = surrogate.HiddenLayers(body, frozenset(), generator=generator)
    targets = torch.from_numpy(np.eye(CLASSES, dtype=np.float32)[samples.y])
    settings = TheftSettings(steps=steps, batch=64)
    values = surrogate.tensors([samples.x])
    surrogate.fit(made, values, targets, settings, generator=generator)
    weights = {name: tensor.detach().numpy() for name, tensor in made.constants.items()}
    return replace(graph, constants={**graph.constants, **weights})
