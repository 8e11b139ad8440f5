"""The worker's engine: keeps what one client loaded and applies it.

It checks what it is sent because a worker should not fall over, not because anyone trusts it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import onnxruntime as ort

from cloister.errors import InputError, RangeError, ShapeError
from cloister.field.linear import LinearMap
from cloister.wire.messages import (
    PROTOCOL_VERSION,
    Answer,
    Apply,
    Failure,
    Hello,
    Loaded,
    LoadLinear,
    LoadSegment,
    Message,
    Welcome,
)
from cloister.worker.cpu_maps import CpuMap
from cloister.worker.targets import Shared, Target, TargetStore, key_of_linear, key_of_segment
from cloister.worker.torch_maps import Int8Map, TorchMap, check_device, make_map

MAX_TARGETS = 4096


class Engine:
    """Handles one client's messages, one at a time.

    device    "cpu" (native kernels) or a PyTorch device such as "cuda" or "cuda:1"
    store     what is loaded, shared by all engines of one worker
    gate      entered around every computation; default: engines compute side by side

    Raises   InputError when the device cannot be used
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        threads: int = 1,
        name: str = "worker",
        store: TargetStore | None = None,
        gate: AbstractContextManager[object] | None = None,
    ) -> None:
        if threads < 1:
            raise InputError(f"worker: threads must be at least 1, got {threads}")
        if device != "cpu":
            check_device(device)
        self._device = device
        self._threads = threads
        self._name = name
        self._store = store or TargetStore()
        self._gate = gate or nullcontext()
        self._targets: dict[int, tuple[Shared, Target]] = {}

    def handle(self, message: Message) -> Message | None:
        """The reply to a message; whatever goes wrong becomes a `Failure`."""
        request_id = message.request_id if isinstance(message, Apply) else 0
        try:
            return self._reply(message)
        # A client must learn of every failure, among them those of engines whose exceptions
        # derive from Exception directly; nothing is hidden, the text travels in the reply.
        except Exception as error:  # noqa: BLE001
            return Failure(request_id, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Drop everything that was loaded."""
        for shared, _ in self._targets.values():
            self._store.let_go(shared)
        self._targets.clear()

    def _reply(self, message: Message) -> Message:
        match message:
            case Hello(version):
                if version != PROTOCOL_VERSION:
                    raise InputError(f"protocol {version} is not {PROTOCOL_VERSION}")
                return Welcome(PROTOCOL_VERSION, self._name, self._device)
            case LoadLinear(target_id, linear):
                # Packed weights, and room for padded input planes while applying.
                size = 2 * linear.weights.nbytes + 16 * linear.geometry.in_elements
                key = key_of_linear(linear)
                self._keep(target_id, key, size, lambda: self._linear(linear))
                return Loaded(target_id)
            case LoadSegment(target_id, model):
                key = key_of_segment(model)
                self._keep(target_id, key, 2 * len(model), lambda: self._segment(model))
                return Loaded(target_id)
            case Apply(request_id, target_id, tensors):
                kept = self._targets.get(target_id)
                if kept is None:
                    raise InputError(f"target {target_id} is not loaded")
                _, target = kept
                with self._gate:
                    return Answer(request_id, target.run(tensors))
            case _:
                raise InputError(f"a worker takes no {type(message).__name__}")

    def _keep(self, target_id: int, key: bytes, nbytes: int, make: Callable[[], Target]) -> None:
        known = self._targets.pop(target_id, None)
        if known is not None:
            self._store.let_go(known[0])
        if len(self._targets) >= MAX_TARGETS:
            raise RangeError(f"more than {MAX_TARGETS} targets")
        self._targets[target_id] = self._store.hold(key, nbytes, make)

    def _linear(self, linear: LinearMap) -> Target:
        if self._device == "cpu":
            return _LinearTarget(CpuMap(linear, threads=self._threads))
        return _LinearTarget(make_map(linear, device=self._device))

    def _segment(self, model: bytes) -> Target:
        return _SegmentTarget(model, device=self._device, threads=self._threads)


class _LinearTarget:
    def __init__(self, linear: CpuMap | TorchMap | Int8Map) -> None:
        self._map = linear

    def run(self, tensors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        if len(tensors) != 1:
            raise ShapeError(f"a linear map takes one tensor, got {len(tensors)}")
        (x,) = tensors
        if x.dtype not in (np.uint32, np.int16) or x.shape[1:] != self._map.in_shape:
            raise ShapeError(
                f"linear map: input must be uint32 or int16 (n, {self._map.in_shape}), "
                f"got {x.dtype} {x.shape}"
            )
        return (self._map.apply(x),)


class _SegmentTarget:
    """Plain ONNX Runtime: open segments promise nothing."""

    def __init__(self, model: bytes, *, device: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        if device.startswith("cuda") and "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        self._session = ort.InferenceSession(model, options, providers=providers)
        self._inputs = [value.name for value in self._session.get_inputs()]

    def run(self, tensors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        if len(tensors) != len(self._inputs):
            raise ShapeError(f"segment takes {len(self._inputs)} tensors, got {len(tensors)}")
        feeds = dict(zip(self._inputs, tensors, strict=True))
        return tuple(np.asarray(output) for output in self._session.run(None, feeds))
