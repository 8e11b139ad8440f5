"""Builds a graph node by node; every method returns the name of the value it makes.

Weights are pseudorandom and scaled so that activations keep their size (He et al. 2015); they are
the same in every run and on every machine. Images are (N, C, H, W), sequences (N, C, L).
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from cloister.base.rng import keystream
from cloister.graph.graph import Graph, Node, TensorType
from cloister.graph.inference import with_types

OPSET = 17
CHUNK_WORDS = 1 << 20
_SEED = hashlib.sha256(b"cloister preset weights").digest()


@dataclass(frozen=True, eq=False)
class Network:
    """A graph, and what its training has to know.

    dropouts   share of a value's elements that training sets to zero, by the value's name
    logits     the value before the last activation, which training's loss reads
    """

    graph: Graph
    dropouts: dict[str, float]
    logits: str


class NetBuilder:
    """One network, of one input."""

    def __init__(self, name: str, input_name: str, shape: tuple[int, ...], dtype: type) -> None:
        self._name, self._input = name, input_name
        self._type = TensorType(np.dtype(dtype), (None, *shape))
        self._nodes: list[Node] = []
        self._constants: dict[str, np.ndarray] = {}
        self._dropouts: dict[str, float] = {}
        self._channels = {input_name: shape[0]}

    def conv(self, x: str, channels: int, kernel: tuple[int, ...], *, groups: int = 1) -> str:
        """Convolution that keeps the size; a depthwise one (`groups` = channels) has no bias."""
        fan_in = self._channels[x] // groups * math.prod(kernel)
        weights = self._uniform((channels, self._channels[x] // groups, *kernel), fan_in)
        bias = [] if groups > 1 else [self._constant(np.zeros(channels, np.float32))]
        pads = tuple(size // 2 for size in kernel) * 2
        inputs = [x, weights, *bias]
        return self._add("Conv", inputs, channels, kernel_shape=kernel, pads=pads, group=groups)

    def separable(self, x: str, channels: int, kernel: int = 3) -> str:
        """Depthwise, then pointwise convolution over a sequence, and ReLU."""
        x = self.conv(x, self._channels[x], (kernel,), groups=self._channels[x])
        return self.relu(self.conv(x, channels, (1,)))

    def dense(self, x: str, inputs: int, outputs: int, *, gain: float = 2.0) -> str:
        """Matrix product with a bias; `gain` is the variance of outputs over that of inputs."""
        weights = self._uniform((outputs, inputs), inputs, gain=gain)
        bias = self._constant(np.zeros(outputs, np.float32))
        return self._add("Gemm", [x, weights, bias], outputs, transB=1)

    def embedding(self, x: str, words: int, channels: int) -> str:
        """A row of a table for each index, as a sequence (N, C, L)."""
        table = self._uniform((words, channels), 1, gain=0.01)
        rows = self._add("Gather", [table, x], channels, axis=0)
        return self._add("Transpose", [rows], channels, perm=(0, 2, 1))

    def relu(self, x: str) -> str:
        """The larger of 0 and x."""
        return self._add("Relu", [x], self._channels[x])

    def max_pool(self, x: str, *window: int) -> str:
        """Maxima of windows that do not overlap."""
        sizes = {"kernel_shape": window, "strides": window}
        return self._add("MaxPool", [x], self._channels[x], **sizes)

    def average(self, x: str) -> str:
        """Mean over all positions, flat."""
        return self.flatten(self._add("GlobalAveragePool", [x], self._channels[x]))

    def flatten(self, x: str) -> str:
        """One axis for all but the batch."""
        return self._add("Flatten", [x], self._channels[x])

    def softmax(self, x: str) -> str:
        """Class probabilities."""
        return self._add("Softmax", [x], self._channels[x], axis=1)

    def sigmoid(self, x: str) -> str:
        """The probability of the second of two classes."""
        return self._add("Sigmoid", [x], self._channels[x])

    def dropout(self, x: str, rate: float) -> str:
        """The same value; training sets a share of its elements to zero."""
        self._dropouts[x] = rate
        return x

    def network(self, output: str, *, logits: str) -> Network:
        """All nodes as a graph that ends in `output`."""
        graph = Graph(
            name=self._name,
            nodes=tuple(self._nodes),
            inputs=(self._input,),
            outputs=(output,),
            constants=self._constants,
            types={self._input: self._type},
            opset=OPSET,
        )
        return Network(with_types(graph), self._dropouts, logits)

    def _add(
        self, op: str, inputs: list[str], channels: int, **attributes: int | tuple[int, ...]
    ) -> str:
        name = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(Node(name, op, tuple(inputs), (name,), attributes))
        self._channels[name] = channels
        return name

    def _constant(self, array: np.ndarray) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = array
        return name

    def _uniform(self, shape: tuple[int, ...], fan_in: int, *, gain: float = 2.0) -> str:
        nonce = len(self._constants).to_bytes(12, "big")
        bound = math.sqrt(3 * gain / fan_in)
        values = uniform(math.prod(shape), bound, key=_SEED, nonce=nonce)
        return self._constant(values.reshape(shape))


def uniform(count: int, bound: float, *, key: bytes, nonce: bytes) -> Float32[np.ndarray, " count"]:
    """Uniform in (-bound, bound); each nonce is a stream of its own."""
    words = keystream(key, nonce, -(-count // 2))
    out = np.empty(count, np.float32)
    for start in range(0, len(words), CHUNK_WORDS):
        halves = words[start : start + CHUNK_WORDS].view(np.int16)
        part = out[2 * start : 2 * start + len(halves)]
        np.multiply(halves[: len(part)], np.float32(bound / 2**15), out=part)
    return out
