"""`cloister bench layers`: exact integer layers against float32 ones, layer by layer.

Every layer of VGG16 at 224x224, batch 1, runs alone in ONNX Runtime (a session with one node), as a
blinded request (uint32, two products) and as a plain one (int16, one product). The three take turns
within each repeat, so that a change of clock speed or a neighbour's load meets all of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Int16
from onnx import helper, numpy_helper

import cloister._native as native
from cloister.base.rng import InsecureSeededRandom
from cloister.errors import InputError
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.ring_map import RingMap

OPSET = 17
IR_VERSION = 9


@dataclass(frozen=True)
class Layer:
    """A named 3x3 convolution with padding 1 or, for `size` 1, a dense layer."""

    name: str
    size: int
    in_channels: int
    out_channels: int

    @property
    def geometry(self) -> Geometry:
        """The layer as a linear map."""
        image = (self.size, self.size)
        kernel, pad = ((1, 1), (0, 0)) if self.size == 1 else ((3, 3), (1, 1))
        return Geometry(image, self.in_channels, image, self.out_channels, kernel, pad=pad)


VGG16 = (
    Layer("conv1_1", 224, 3, 64),
    Layer("conv1_2", 224, 64, 64),
    Layer("conv2_1", 112, 64, 128),
    Layer("conv2_2", 112, 128, 128),
    Layer("conv3_1", 56, 128, 256),
    Layer("conv3_2", 56, 256, 256),
    Layer("conv3_3", 56, 256, 256),
    Layer("conv4_1", 28, 256, 512),
    Layer("conv4_2", 28, 512, 512),
    Layer("conv4_3", 28, 512, 512),
    Layer("conv5_1", 14, 512, 512),
    Layer("conv5_2", 14, 512, 512),
    Layer("conv5_3", 14, 512, 512),
    Layer("fc6", 1, 25088, 4096),
    Layer("fc7", 1, 4096, 4096),
    Layer("fc8", 1, 4096, 1000),
)


class LayersResult(TypedDict):
    """Medians in ms; the spread is the slowest run less the fastest; ratios are to ONNX Runtime."""

    layers: list[dict[str, str | float]]
    ort_ms: float
    ring_ms: float
    plain_ms: float
    ratio: float
    plain_ratio: float
    threads: int
    repeats: int
    isa: str
    onnxruntime: str


def bench_layers(
    threads: int = 1, repeats: int = 5, *, layers: Sequence[Layer] = VGG16
) -> LayersResult:
    """Time every layer in ONNX Runtime float32 and in the ring kernel.

    Raises InputError when there is nothing to measure.
    """
    if threads < 1 or repeats < 1 or not layers:
        raise InputError("bench layers: threads, repeats and layers must be at least 1")
    rows = [_measure(layer, threads, repeats) for layer in layers]
    totals = {
        key: sum(float(row[key]) for row in rows) for key in ("ort_ms", "ring_ms", "plain_ms")
    }
    return LayersResult(
        layers=rows,
        ort_ms=totals["ort_ms"],
        ring_ms=totals["ring_ms"],
        plain_ms=totals["plain_ms"],
        ratio=totals["ring_ms"] / totals["ort_ms"],
        plain_ratio=totals["plain_ms"] / totals["ort_ms"],
        threads=threads,
        repeats=repeats,
        isa=native.isa(),
        onnxruntime=onnxruntime.__version__,
    )


def _measure(layer: Layer, threads: int, repeats: int) -> dict[str, str | float]:
    geometry = layer.geometry
    random = InsecureSeededRandom(1)  # nothing here is secret
    weights = _integers(random, geometry.weight_shape)
    plain = _integers(random, (1, *geometry.in_shape))
    blinded = plain.astype(np.uint32) * np.uint32(0x9E3779B1)
    out = np.empty((1, *geometry.out_shape), np.uint32)
    ring = RingMap(LinearMap(geometry, weights))
    session = _session(float_model(layer, weights), threads)
    feeds = {"x": float_input(layer, plain)}
    runs: dict[str, Callable[[], object]] = {
        "ort": lambda: session.run(None, feeds),
        "ring": lambda: ring.apply(blinded, out=out, threads=threads),
        "plain": lambda: ring.apply(plain, out=out, threads=threads),
    }
    times = _interleaved(runs, repeats)
    row: dict[str, str | float] = {"layer": layer.name}
    row |= {f"{key}_ms": statistics.median(values) for key, values in times.items()}
    row["ratio"] = float(row["ring_ms"]) / float(row["ort_ms"])
    row |= {f"{key}_spread_ms": max(values) - min(values) for key, values in times.items()}
    return row


def _interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {key: [] for key in runs}
    for repeat in range(repeats + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat > 0:  # the first round only warms up
                times[key].append((time.perf_counter() - start) * 1e3)
    return times


def _integers(random: InsecureSeededRandom, shape: tuple[int, ...]) -> Int16[np.ndarray, "..."]:
    count = int(np.prod(shape))
    return np.frombuffer(random.random_bytes(2 * count), np.int16).reshape(shape)


def float_input(layer: Layer, x: Int16[np.ndarray, "n h w c"]) -> np.ndarray:
    """The same input for ONNX Runtime: float32, channels first; a dense layer's without image."""
    if layer.size == 1:
        return x.reshape(len(x), -1).astype(np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32)


def float_model(layer: Layer, weights: Int16[np.ndarray, "o kh kw c"]) -> onnx.ModelProto:
    """The layer as an ONNX model of one float32 node, `Conv` or `Gemm`, from x to y."""
    size, channels = layer.size, layer.in_channels
    if size == 1:
        node = helper.make_node("Gemm", ["x", "w"], ["y"])
        values = weights.reshape(layer.out_channels, channels).T
        shape = [1, channels]
    else:
        node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
        values = weights.transpose(0, 3, 1, 2)
        shape = [1, channels, size, size]
    graph = helper.make_graph(
        [node],
        layer.name,
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ascontiguousarray(values, np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle ORT threads would otherwise spin through the ring kernel's turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
