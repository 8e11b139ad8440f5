"""A module as WebAssembly, in the process of an engine: compiled by wasmtime, without imports."""

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import wasmtime
from wasmtime import _bindings as c_api

from cloister.errors import InputError
from cloister.trusted.engines.engine_messages import EngineSettings

RESERVED_BYTES = (4 << 30) + (256 << 20)
"""Addresses of the whole 32-bit memory: no access needs a comparison of its own."""
_PAGE = 65536
_ALIGNMENT = 64
_HEADER = b"\0asm\1\0\0\0"
_START_SECTION = 8
_FUEL = 1 << 62
_SIZE_TYPE = (["i32"], ["i64"])
_RUN_TYPE = (["i32", "i64"] * 4, ["i32"])
_Item = TypeVar("_Item", wasmtime.Memory, wasmtime.Global, wasmtime.Func)


class WasmModule:
    """See LoadedModule."""

    def __init__(self, settings: EngineSettings, code: memoryview) -> None:
        engine = wasmtime.Engine(_config(settings))
        module = _checked(engine, code)
        self._store = wasmtime.Store(engine)
        if settings.fuel:
            self._store.set_fuel(_FUEL)
        self._counts = settings.fuel
        self.fuel = 0
        exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        memory = _export(exports, "memory", wasmtime.Memory)
        base = _base(self._store, exports)
        self._size = _function(self._store, exports, "cloister_module_size", _SIZE_TYPE)
        run = _function(self._store, exports, "cloister_module_run", _RUN_TYPE)
        places, end = _places(base, settings.sizes[1:])
        missing = -(-end // _PAGE) - memory.size(self._store)
        if missing > 0:
            memory.grow(self._store, missing)
        # From here on the memory neither grows nor moves.
        self._nbytes = memory.data_len(self._store)
        self._store.set_limits(memory_size=self._nbytes)
        self._address = ctypes.cast(memory.data_ptr(self._store), ctypes.c_void_p).value or 0
        weights = (ctypes.c_char * settings.weights_bytes).from_address(self._address + places[0])
        self.weights = memoryview(weights).cast("B")
        self.inputs, self.outputs = self._address + places[1], self._address + places[2]
        self._call = _Call(self._store, run, zip(places, settings.sizes[1:], strict=True))

    def size(self, which: int) -> int:
        """See LoadedModule."""
        return int(self._size(self._store, which)) & 0xFFFFFFFFFFFFFFFF

    def complete(self) -> None:
        """See LoadedModule."""

    def run(self) -> int:
        """See LoadedModule; -1 when it trapped."""
        if not self._counts:
            return self._call()
        self._store.set_fuel(_FUEL)
        status = self._call()
        self.fuel = _FUEL - self._store.get_fuel()
        return status

    def wipe(self) -> None:
        """See LoadedModule."""
        ctypes.memset(self._address, 0, self._nbytes)


class _Call:
    """Calls `cloister_module_run` by wasmtime's C interface.

    `wasmtime.Func` asks for the function's type and converts each argument, which takes 0.2 ms.
    The types were compared when the module was loaded.
    """

    def __init__(
        self, store: wasmtime.Store, run: wasmtime.Func, buffers: Iterable[tuple[int, int]]
    ) -> None:
        self._values = (c_api.wasmtime_val_raw_t * 8)()
        self._words = [word for pair in buffers for word in pair]
        self._trap = ctypes.POINTER(c_api.wasm_trap_t)()
        self._arguments = (
            store._context(), ctypes.byref(run._func), self._values, 8, ctypes.byref(self._trap),
        )  # fmt: skip
        self._owners = (store, run)

    def __call__(self) -> int:
        for value, word in zip(self._values, self._words, strict=True):
            value.i64 = word
        error = c_api.wasmtime_func_call_unchecked(*self._arguments)
        # Neither is freed: the process ends after one.
        return -1 if error or self._trap else int(self._values[0].i32)


def _config(settings: EngineSettings) -> wasmtime.Config:
    config = wasmtime.Config()
    config.consume_fuel = settings.fuel
    config.parallel_compilation = False  # a process of an engine has one thread
    config.memory_may_move = False
    config.memory_init_cow = False  # would create a file in memory
    config.wasm_relaxed_simd = False  # its results differ between machines
    config.wasm_threads = False
    return config


def _checked(engine: wasmtime.Engine, code: memoryview) -> wasmtime.Module:
    try:
        module = wasmtime.Module(engine, bytes(code))
    except wasmtime.WasmtimeError as error:
        raise InputError("wasm build: is damaged") from error
    if module.imports:
        first = module.imports[0]
        raise InputError(f"wasm build: imports {first.module}.{first.name}; modules import nothing")
    # It would run as soon as there is an instance, which is before the process is locked for it.
    if _START_SECTION in _sections(code):
        raise InputError("wasm build: has a function that runs at its start; modules have none")
    return module


def _sections(code: memoryview) -> Iterator[int]:
    """The kinds of a module's sections; wasmtime has found their lengths to be right."""
    if code[: len(_HEADER)] != _HEADER:
        raise InputError("wasm build: is not WebAssembly in its binary form")
    at = len(_HEADER)
    while at < len(code):
        yield code[at]
        nbytes = shift = 0
        while True:  # seven bits in each byte, the lowest first
            at += 1
            nbytes |= (code[at] & 0x7F) << shift
            shift += 7
            if code[at] < 0x80:
                break
        at += 1 + nbytes


def _export(exports: Mapping[str, object], name: str, kind: type[_Item]) -> _Item:
    found = exports.get(name)
    if not isinstance(found, kind):
        raise InputError(f"wasm build: has no export {name}")
    return found


def _base(store: wasmtime.Store, exports: Mapping[str, object]) -> int:
    """Where the module's own data end, and its buffers begin."""
    found = _export(exports, "__heap_base", wasmtime.Global).value(store)
    # A module decides it; before the memory lies what is wasmtime's.
    if type(found) is not int or not 0 <= found < 1 << 32:
        raise InputError("wasm build: __heap_base is no place in its memory")
    return found


def _function(
    store: wasmtime.Store,
    exports: Mapping[str, object],
    name: str,
    types: tuple[list[str], list[str]],
) -> wasmtime.Func:
    function = _export(exports, name, wasmtime.Func)
    found = function.type(store)
    if ([str(one) for one in found.params], [str(one) for one in found.results]) != types:
        raise InputError(f"wasm build: {name} has other parameters than modules have")
    return function


def _places(base: int, sizes: tuple[int, ...]) -> tuple[list[int], int]:
    """Where each buffer begins in the module's memory, and where the last one ends."""
    found, at = [], base
    for nbytes in sizes:
        at = -(-at // _ALIGNMENT) * _ALIGNMENT
        found.append(at)
        at += nbytes
    return found, at


load = WasmModule
