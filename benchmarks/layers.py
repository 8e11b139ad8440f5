"""The exact integer layers of VGG16 against ONNX Runtime's float32 ones, layer by layer.

Every layer of VGG16 at 224x224, batch 1, runs alone in ONNX Runtime (a session with one node), as a
blinded request (uint32) and as a plain one (int16). The three take turns within each repeat, so
that a change of clock speed or a neighbour's load meets all of them. `on_tiles` names the layers
that a processor with AMX computes on tiles; `--isa avx512` measures without them.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import onnx
import onnxruntime
import typer
from jaxtyping import Int16
from onnx import helper, numpy_helper

import cloister.base._native as native
from benchmarks import options
from cloister.base.rng import InsecureSeededRandom
from cloister.cli.speed import OrtBaseline
from cloister.cli.timing import interleaved
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


def measure(
    threads: options.Threads = 1,
    repeats: options.Repeats = 5,
    only: Annotated[str, typer.Option("--only", help="Layers whose name holds it.")] = "",
    isa: Annotated[
        str, typer.Option("--isa", help="Instruction set of our kernels; default: the best one.")
    ] = native.isa(),
) -> dict[str, object]:
    """Medians in ms; the spread is the slowest run less the fastest; ratios are to ONNX Runtime."""
    if isa not in native.available_isas():
        raise InputError(f"--isa {isa}: this machine offers {', '.join(native.available_isas())}")
    native.force_isa(isa)
    rows = [_measure(layer, threads, repeats) for layer in VGG16 if only in layer.name]
    if not rows:
        raise InputError(f"no layer is called {only}")
    totals = {key: sum(row[key] for row in rows) for key in ("ort_ms", "ring_ms", "plain_ms")}
    return {
        "layers": rows,
        **totals,
        "ratio": totals["ring_ms"] / totals["ort_ms"],
        "plain_ratio": totals["plain_ms"] / totals["ort_ms"],
        "threads": threads,
        "repeats": repeats,
        "isa": isa,
        "onnxruntime": onnxruntime.__version__,
    }


def _measure(layer: Layer, threads: int, repeats: int) -> dict[str, str | float | bool]:
    geometry = layer.geometry
    random = InsecureSeededRandom(1)  # nothing here is secret
    weights = _integers(random, geometry.weight_shape)
    plain = _integers(random, (1, *geometry.in_shape))
    blinded = plain.astype(np.uint32) * np.uint32(0x9E3779B1)
    out = np.empty((1, *geometry.out_shape), np.uint32)
    ring = RingMap(LinearMap(geometry, weights))
    engine = OrtBaseline(float_model(layer, weights), threads)
    feed = float_input(layer, plain)
    _check_same(layer, engine, ring)
    runs = {
        "ort": lambda: engine.run(feed),
        "ring": lambda: ring.apply(blinded, out=out, threads=threads),
        "plain": lambda: ring.apply(plain, out=out, threads=threads),
    }
    timings = interleaved(runs, repeats=repeats)
    row: dict[str, str | float | bool] = {"layer": layer.name, "on_tiles": ring.on_tiles}
    row |= {f"{key}_ms": 1e3 * timing.wall_s for key, timing in timings.items()}
    row["ratio"] = row["ring_ms"] / row["ort_ms"]
    row |= {f"{key}_spread_ms": 1e3 * float(np.ptp(t.walls_s)) for key, t in timings.items()}
    return row


def _check_same(layer: Layer, engine: OrtBaseline, ring: RingMap) -> None:
    """Both compute the layer: one input of a single 1 gives the same integers.

    Raises   InputError
    """
    x = np.zeros((1, *layer.geometry.in_shape), np.int16)
    x[0, layer.size // 2, layer.size // 2, 0] = 1
    (y,) = engine.run(float_input(layer, x))
    found = y[:, None, None, :] if layer.size == 1 else y.transpose(0, 2, 3, 1)
    if not np.array_equal(found, ring.apply(x).view(np.int32)):
        raise InputError(f"{layer.name}: the ring kernel and ONNX Runtime differ")


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
