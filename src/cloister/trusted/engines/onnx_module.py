"""A module as ONNX, in the process of an engine: run by ONNX Runtime."""

import numpy as np

from cloister.bundle.manifest import ModuleTensor, offsets
from cloister.errors import InputError
from cloister.graph.ort_session import ORT_ERRORS, runtime_session
from cloister.trusted.engines.engine_messages import EngineSettings
from cloister.trusted.engines.guarded_memory import GuardedMemory

RESERVED_BYTES = 0


class OnnxModule:
    """See LoadedModule; the weights are part of the code."""

    fuel = 0
    weights = memoryview(b"")

    def __init__(self, settings: EngineSettings, code: memoryview) -> None:
        try:
            self._session = runtime_session(bytes(code), threads=settings.threads, optimised=True)
        except ORT_ERRORS as error:
            raise InputError("onnx build: ONNX Runtime does not load it") from error
        self._sizes = settings.sizes
        inputs, outputs = GuardedMemory(settings.input_bytes), GuardedMemory(settings.output_bytes)
        self.inputs, self.outputs = inputs.address, outputs.address
        names = [one.name for one in self._session.get_inputs()]
        if (len(names), len(self._session.get_outputs())) != tuple(
            map(len, (settings.inputs, settings.outputs))
        ):
            raise InputError("onnx build: has other inputs or outputs than its manifest")
        self._feeds = dict(zip(names, _arrays(inputs, settings.inputs), strict=True))
        self._targets = _arrays(outputs, settings.outputs)
        self._memory = (inputs, outputs)

    def size(self, which: int) -> int:
        """See LoadedModule; an ONNX model has no such function."""
        return self._sizes[which]

    def complete(self) -> None:
        """See LoadedModule."""

    def run(self) -> int:
        """See LoadedModule; -1 for an output that is not the manifest's."""
        try:
            made = self._session.run(None, self._feeds)
        except ORT_ERRORS:
            return -1
        for target, array in zip(self._targets, made, strict=True):
            if (array.shape, array.dtype) != (target.shape, target.dtype):
                return -1
            target[...] = array
        return 0

    def wipe(self) -> None:
        """See LoadedModule; ONNX Runtime's own copies go with the process."""
        for memory in self._memory:
            memory.wipe()


def _arrays(
    memory: GuardedMemory, tensors: tuple[tuple[str, tuple[int, ...]], ...]
) -> list[np.ndarray]:
    """The tensors of one sample in their memory: batches of one, as the model takes them."""
    described = tuple(ModuleTensor("", dtype, shape) for dtype, shape in tensors)
    return [
        np.ndarray((1, *one.shape), one.dtype, buffer=memory.view, offset=at)
        for one, at in zip(described, offsets(described), strict=True)
    ]


load = OnnxModule
