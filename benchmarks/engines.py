"""What protected inference is measured against, besides ONNX Runtime in float32."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx.version_converter
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from cloister.cli.console import note
from cloister.cli.speed import Engines, Images, OrtBaseline
from cloister.cli.timing import interleaved
from cloister.errors import CloisterError, InputError
from cloister.graph.graph import Graph
from cloister.graph.ort_session import ORT_ERRORS

try:
    import torch

    from cloister.audit.torch_graph import TorchGraph
except ImportError:
    torch = None

NOT_QUANTISED = (*ORT_ERRORS, ValueError, RuntimeError, TypeError, KeyError, AttributeError)
"""What ONNX Runtime's quantiser, or ONNX's converter, raises about a model it does not take."""
PER_CHANNEL_OPSET = 13
"""The first opset whose DequantizeLinear has a scale for each channel."""
INT8 = "onnxruntime int8"
TOLERANCE = 1e-3


def float_engines(proto: onnx.ModelProto, graph: Graph, feeds: Images, threads: int) -> Engines:
    """The float32 engines that are installed and take this model.

    Raises   InputError when they disagree
    """
    onnxruntime = OrtBaseline(proto, threads)
    found = {"onnxruntime": lambda: onnxruntime.run(feeds)}
    try:
        # Constants are folded for PyTorch, as ONNX Runtime folds them for itself.
        other = TorchBaseline(graph, threads)
    except CloisterError as error:
        note(f"PyTorch is not measured: {error}")
        return found
    for a, b in zip(onnxruntime.run(feeds), other.run(feeds), strict=True):
        if not np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * np.abs(a).max()):
            raise InputError("ONNX Runtime and PyTorch do not compute the same model")
    return {**found, "torch": lambda: other.run(feeds)}


def int8_engine(proto: onnx.ModelProto, feeds: Images, threads: int) -> Engines:
    """ONNX Runtime in 8 bits, calibrated on the inputs; nothing where it cannot take the model."""
    try:
        engine = OrtInt8Baseline(proto, threads, samples=feeds)
    except InputError as error:
        note(f"8-bit ONNX Runtime is not measured: {error}")
        return {}
    return {INT8: lambda: engine.run(feeds)}


class OrtInt8Baseline(OrtBaseline):
    """A model in ONNX Runtime with 8-bit weights and activations, quantised on `samples`.

    Less exact than what it is compared with, so no baseline of a ratio; it shows what a user who
    gives up both accuracy and protection would have.

    Raises   InputError when the model cannot be quantised
    """

    def __init__(self, model: onnx.ModelProto, threads: int, *, samples: Images) -> None:
        with TemporaryDirectory() as folder:
            try:
                target = _quantised(model, samples, Path(folder))
                super().__init__(target.read_bytes(), threads)
            except NOT_QUANTISED as error:
                raise InputError(
                    f"ONNX Runtime cannot make the model 8 bits wide ({type(error).__name__})"
                ) from None


def _quantised(model: onnx.ModelProto, samples: Images, folder: Path) -> Path:
    source, ready, target = (folder / f"{i}.onnx" for i in range(3))
    if any(not x.domain and x.version < PER_CHANNEL_OPSET for x in model.opset_import):
        model = onnx.version_converter.convert_version(model, PER_CHANNEL_OPSET)
    onnx.save(model, source)  # the quantiser changes a model it is given in memory
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    quantization.quantize_static(
        ready,
        target,
        _Samples(model.graph.input[0].name, samples),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        # With signed activations its kernels miss VNNI and take over twice as long.
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return target


class _Samples:
    """Samples in the form the quantiser reads: one dictionary per call, then None."""

    def __init__(self, name: str, samples: Images) -> None:
        self._left = iter([{name: samples[i : i + 1]} for i in range(len(samples))])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


class TorchBaseline:
    """A model in PyTorch, float32, without gradients, in the faster of two memory layouts.

    The first `run` for a shape of input tries both layouts and keeps the faster one.
    """

    TRIALS = 3

    def __init__(self, graph: Graph, threads: int) -> None:
        if torch is None:
            raise InputError("PyTorch is not installed; pip install torch measures it too")
        self._threads = threads
        self._graph = TorchGraph(graph)
        first = self._graph.constants
        last = {name: _channels_last(tensor) for name, tensor in first.items()}
        self._constants = {False: first, True: last}
        self._layouts: dict[tuple[int, ...], bool] = {}

    def run(self, x: Images) -> list[np.ndarray]:
        """The model's outputs."""
        if x.shape not in self._layouts:
            self._layouts[x.shape] = self._faster_layout(x)
        return self._run(x, channels_last=self._layouts[x.shape])

    def _run(self, x: Images, *, channels_last: bool) -> list[np.ndarray]:
        # A setting of the process, so it is made for every run.
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            given = self._tensor(x)
            given = _channels_last(given) if channels_last else given
            outputs = self._graph.run([given], self._constants[channels_last])
            return [np.asarray(y.contiguous().numpy()) for y in outputs]

    def _tensor(self, x: Images) -> object:
        # PyTorch warns about arrays it might write to but must not.
        return torch.from_numpy(np.require(x, requirements=["C", "W"]))

    def _faster_layout(self, x: Images) -> bool:
        if x.ndim != 4:
            return False
        runs = {last: partial(self._run, x, channels_last=last) for last in (False, True)}
        for run in runs.values():
            run()
        times = interleaved(runs, repeats=self.TRIALS)
        return times[True].wall_s < times[False].wall_s


def _channels_last(tensor):
    if tensor.dim() != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
