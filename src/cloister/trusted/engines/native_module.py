"""A module as machine code, in the process of an engine."""

import ctypes

from cloister.trusted.engines.engine_messages import EngineSettings
from cloister.trusted.engines.guarded_memory import READ, GuardedMemory
from cloister.trusted.engines.native_image import NativeImage

RESERVED_BYTES = 0
_Size = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_int32)
_Run = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p, ctypes.c_uint64] * 4)


class NativeModule:
    """See LoadedModule."""

    fuel = 0

    def __init__(self, settings: EngineSettings, code: memoryview) -> None:
        image = NativeImage(code, ("cloister_module_size", "cloister_module_run"))
        size, run = image.functions.values()
        self.size, self._run = _Size(size), _Run(run)
        self._memory = [GuardedMemory(nbytes) for nbytes in settings.sizes[1:]]
        weights, inputs, outputs, _ = self._memory
        self.weights, self.inputs, self.outputs = weights.view, inputs.address, outputs.address
        self._arguments = [word for one in self._memory for word in (one.address, one.nbytes)]
        # What the image holds of the module's constants is as secret.
        self._image = image

    def complete(self) -> None:
        """See LoadedModule."""
        self._memory[0].protect(0, self._memory[0].span, READ)

    def run(self) -> int:
        """See LoadedModule."""
        return int(self._run(*self._arguments))

    def wipe(self) -> None:
        """See LoadedModule."""
        for memory in (*self._memory, self._image.memory):
            memory.wipe()


load = NativeModule
