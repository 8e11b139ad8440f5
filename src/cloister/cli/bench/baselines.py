"""What protected inference is measured against: plain float32 on the same cores.

The baseline is the fastest engine that is installed, never code of our own, and it is timed in the
same run, by turns with what it is compared to.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort
from jaxtyping import Float32

from cloister.cli.bench.torch_graph import TorchGraph
from cloister.errors import InputError
from cloister.graph.interpreter import ORT_ERRORS

NOT_QUANTISED: tuple[type[Exception], ...] = (
    *ORT_ERRORS,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    AttributeError,
)
"""What ONNX Runtime's quantiser, or ONNX's converter, raises about a model it does not take."""
PER_CHANNEL_OPSET = 13
"""The first opset whose DequantizeLinear has a scale for each channel."""

K = TypeVar("K")
Images = Float32[np.ndarray, "n ..."]


class OrtBaseline:
    """A model in ONNX Runtime, float32, in the order of its nodes and without busy waiting.

    Raises   InputError when ONNX Runtime does not take the model, or fails on an input
    """

    def __init__(self, model: bytes | onnx.ModelProto, threads: int) -> None:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            self._session = ort.InferenceSession(
                data, session_options(threads), providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise InputError(f"ONNX Runtime does not take the model: {error}") from None
        self._input = self._session.get_inputs()[0].name

    def run(self, x: Images) -> list[np.ndarray]:
        """The model's outputs."""
        try:
            return [np.asarray(y) for y in self._session.run(None, {self._input: x})]
        except ORT_ERRORS as error:
            raise InputError(f"ONNX Runtime cannot run the model: {error}") from None


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
    quantization = importlib.import_module("onnxruntime.quantization")
    preparation = importlib.import_module("onnxruntime.quantization.shape_inference")
    source, ready, target = (folder / f"{i}.onnx" for i in range(3))
    if any(not x.domain and x.version < PER_CHANNEL_OPSET for x in model.opset_import):
        model = onnx.version_converter.convert_version(model, PER_CHANNEL_OPSET)
    onnx.save(model, source)  # the quantiser changes a model it is given in memory
    preparation.quant_pre_process(source, ready, skip_symbolic_shape=True)
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

    def __init__(self, model: bytes | onnx.ModelProto, threads: int) -> None:
        try:
            self._torch = importlib.import_module("torch")
        except ImportError:
            raise InputError(
                "PyTorch is not installed; pip install torch measures it too"
            ) from None
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else model
        self._threads = threads
        self._graph = TorchGraph(self._torch, proto)
        self._layouts: dict[tuple[int, ...], bool] = {}

    def run(self, x: Images) -> list[np.ndarray]:
        """The model's outputs."""
        if x.shape not in self._layouts:
            self._layouts[x.shape] = self._faster_layout(x)
        return self._run(x, channels_last=self._layouts[x.shape])

    def layout(self, shape: tuple[int, ...]) -> str | None:
        """The layout chosen for inputs of a shape, once one has run."""
        chosen = self._layouts.get(shape)
        return None if chosen is None else ("channels last" if chosen else "channels first")

    def _run(self, x: Images, *, channels_last: bool) -> list[np.ndarray]:
        # A setting of the process, so it is made for every run.
        self._torch.set_num_threads(self._threads)
        with self._torch.inference_mode():
            outputs = self._graph.run(self._tensor(x), channels_last=channels_last)
            return [np.asarray(y.contiguous().numpy()) for y in outputs]

    def _tensor(self, x: Images) -> object:
        # PyTorch warns about arrays it might write to but must not.
        return self._torch.from_numpy(np.require(x, requirements=["C", "W"]))

    def _faster_layout(self, x: Images) -> bool:
        if x.ndim != 4:
            return False
        runs = {last: partial(self._run, x, channels_last=last) for last in (False, True)}
        for run in runs.values():
            run()
        times = interleaved(runs, repeats=self.TRIALS)
        return times[True].wall_s < times[False].wall_s


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs: on the clock, and of this process on all cores."""

    walls_s: tuple[float, ...]
    cpus_s: tuple[float, ...]

    @property
    def wall_s(self) -> float:
        """Median time on the clock."""
        return statistics.median(self.walls_s)

    @property
    def cpu_s(self) -> float:
        """Median time of the process."""
        return statistics.median(self.cpus_s)

    @property
    def wall_spread(self) -> float:
        """Slowest less fastest run, relative to the median; by the clock."""
        return (max(self.walls_s) - min(self.walls_s)) / self.wall_s

    @property
    def cpu_spread(self) -> float:
        """Slowest less fastest run, relative to the median; by the process's time."""
        return (max(self.cpus_s) - min(self.cpus_s)) / self.cpu_s if self.cpu_s else 0.0


def interleaved(
    callables: Mapping[K, Callable[[], object]],
    *,
    repeats: int,
    before: Mapping[K, Callable[[], object]] | None = None,
) -> dict[K, Timing]:
    """Time every callable `repeats` times, by turns, so that all meet the same conditions.

    `before` has what is called, untimed, before every run of a callable.
    """
    walls: dict[K, list[float]] = {name: [] for name in callables}
    cpus: dict[K, list[float]] = {name: [] for name in callables}
    for _ in range(repeats):
        for name, run in callables.items():
            if before is not None and name in before:
                before[name]()
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    return {name: Timing(tuple(walls[name]), tuple(cpus[name])) for name in callables}


def session_options(threads: int) -> ort.SessionOptions:
    """ONNX Runtime as it is measured: all optimisations, `threads` cores, threads that sleep."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # its messages contain names of the model
    return options
