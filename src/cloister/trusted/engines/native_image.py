"""Loads a native build: a shared library in memory, without the dynamic linker.

`dlopen` would open libraries that a module names, and run its constructors while files can still be
opened. Here nothing of a module runs before its functions are called, and it can import only the
names of IMPORTS.
"""

import ctypes
import itertools
import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cloister.errors import InputError
from cloister.trusted.engines.guarded_memory import EXECUTE, NONE, READ, WRITE, GuardedMemory, pages

IMPORTS = ("memcpy", "memmove", "memset")
"""Functions of C that a compiler calls on its own."""
MAX_IMAGE_BYTES = 256 << 20

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<QQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_WORD, _ADDRESS = struct.Struct("<I"), struct.Struct("<Q")
_MAGIC = b"\x7fELF\x02\x01\x01"
_SHARED_LIBRARY, _X86_64, _WEAK = 3, 62, 2
# Segments.
_LOAD, _DYNAMIC, _INTERPRETER, _THREAD_LOCAL = 1, 2, 3, 7
# Of the dynamic section.
_PLT_BYTES, _STRINGS, _SYMBOLS, _RELA, _RELA_BYTES = 2, 5, 6, 7, 8
_REL, _TEXT_RELOCATIONS, _PLT, _RELR, _GNU_HASH = 17, 22, 23, 36, 0x6FFFFEF5
_REFUSED_ENTRIES = {_REL, _TEXT_RELOCATIONS, _RELR}
# Relocations.
_SYMBOL_64, _GLOBAL, _JUMP, _RELATIVE = 1, 6, 7, 8


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    file_bytes: int
    memory_bytes: int
    alignment: int

    @property
    def protection(self) -> int:
        return (
            (READ if self.flags & 4 else 0)
            | (WRITE if self.flags & 2 else 0)
            | (EXECUTE if self.flags & 1 else 0)
        )


class NativeImage:
    """A shared library, mapped and linked.

    functions   the addresses of those exports that `names` names

    Raises   InputError for one that is not as `cloister compile` makes them; MemoryError
    """

    def __init__(self, code: memoryview, names: Sequence[str]) -> None:
        try:
            segments = _segments(code)
            self._load(code, segments)
            self._link()
            self.functions = {name: self.memory.start + self._find(name) for name in names}
            # Last: what lies between the segments cannot be read afterwards.
            self._protect(segments)
        except (struct.error, IndexError, ValueError, ArithmeticError) as error:
            raise InputError("native build: is damaged") from error

    def _load(self, code: memoryview, segments: list[_Segment]) -> None:
        span = max(pages(one.address + one.memory_bytes) for one in segments)
        self.memory = GuardedMemory(span)
        self._bytes = self.memory.view
        for one in segments:
            if one.kind == _LOAD:
                target = slice(one.address, one.address + one.file_bytes)
                self._bytes[target] = code[one.offset : one.offset + one.file_bytes]
        (self._dynamic,) = (
            self._entries(one.address, one.memory_bytes) for one in segments if one.kind == _DYNAMIC
        )

    def _entries(self, at: int, nbytes: int) -> dict[int, int]:
        found = {}
        for position in range(at, at + nbytes, _ENTRY.size):
            tag, value = _ENTRY.unpack_from(self._bytes, position)
            if tag == 0:
                break
            if tag in _REFUSED_ENTRIES:
                raise InputError(f"native build: has an entry {tag} that engines do not link")
            found[tag] = value
        return found

    def _link(self) -> None:
        for table, size in ((_RELA, _RELA_BYTES), (_PLT, _PLT_BYTES)):
            at, nbytes = self._dynamic.get(table, 0), self._dynamic.get(size, 0)
            for position in range(at, at + nbytes, _RELOCATION.size):
                place, info, addend = _RELOCATION.unpack_from(self._bytes, position)
                value = self._value(info & 0xFFFFFFFF, info >> 32, addend)
                _ADDRESS.pack_into(self._bytes, place, value)

    def _protect(self, segments: list[_Segment]) -> None:
        self.memory.protect(0, self.memory.span, NONE)
        for one in segments:
            if one.kind == _LOAD:
                first = one.address // mmap.PAGESIZE * mmap.PAGESIZE
                end = pages(one.address + one.memory_bytes)
                self.memory.protect(first, end - first, one.protection)

    def _value(self, kind: int, symbol: int, addend: int) -> int:
        if kind == _RELATIVE:
            return self.memory.start + addend
        if kind in (_SYMBOL_64, _GLOBAL, _JUMP):
            return self._address(symbol) + (addend if kind == _SYMBOL_64 else 0)
        raise InputError(f"native build: has a relocation {kind} that engines do not link")

    def _address(self, index: int) -> int:
        _, info, _, section, value, _ = self._symbol(index)
        if section:
            return self.memory.start + value
        name = self._name(index)
        if name in IMPORTS:
            return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
        if info >> 4 == _WEAK:
            return 0
        raise InputError(f"native build: imports {name!r}; modules import nothing of a library")

    def _symbol(self, index: int) -> tuple[int, int, int, int, int, int]:
        at = self._dynamic.get(_SYMBOLS, 0) + index * _SYMBOL.size
        return _SYMBOL.unpack_from(self._bytes, at)

    def _name(self, index: int) -> str:
        at = self._dynamic.get(_STRINGS, 0) + self._symbol(index)[0]
        return bytes(self._bytes[at : at + 64]).partition(b"\0")[0].decode("ascii", "replace")

    def _find(self, name: str) -> int:
        for index in self._candidates(_hash(name)):
            _, _, _, section, value, _ = self._symbol(index)
            if section and self._name(index) == name:
                return value
        raise InputError(f"native build: has no function {name}")

    def _candidates(self, wanted: int) -> Iterator[int]:
        """Symbols whose hash is this one, but for its last bit."""
        at = self._dynamic.get(_GNU_HASH, 0)
        count, first, bloom_words, _ = struct.unpack_from("<4I", self._bytes, at)
        buckets = at + 16 + 8 * bloom_words
        (index,) = _WORD.unpack_from(self._bytes, buckets + 4 * (wanted % count))
        chains = buckets + 4 * count
        while index >= first:
            (found,) = _WORD.unpack_from(self._bytes, chains + 4 * (index - first))
            if found | 1 == wanted | 1:
                yield index
            if found & 1:
                return
            index += 1


def _segments(code: memoryview) -> list[_Segment]:
    header = _HEADER.unpack_from(code, 0)
    magic, kind, machine, table, size, count = (header[i] for i in (0, 1, 2, 5, 9, 10))
    if not magic.startswith(_MAGIC) or (kind, machine) != (_SHARED_LIBRARY, _X86_64):
        raise InputError("native build: is not a shared library for x86-64")
    if size != _SEGMENT.size:
        raise InputError("native build: is damaged")
    found = [_Segment(*_SEGMENT.unpack_from(code, table + i * size)) for i in range(count)]
    if any(one.kind in (_INTERPRETER, _THREAD_LOCAL) for one in found):
        raise InputError("native build: is a program, or has memory of threads")
    kept = [one for one in found if one.kind in (_LOAD, _DYNAMIC)]
    for one in kept:
        if one.offset + one.file_bytes > len(code) or one.file_bytes > one.memory_bytes:
            raise InputError("native build: is cut off")
        if one.address + one.memory_bytes > MAX_IMAGE_BYTES:
            raise InputError(f"native build: takes more than {MAX_IMAGE_BYTES} B of memory")
        if one.protection & WRITE and one.protection & EXECUTE:
            raise InputError("native build: has memory that can be written and executed")
    loaded = [one for one in kept if one.kind == _LOAD]
    for low, high in itertools.pairwise(loaded):
        if pages(low.address + low.memory_bytes) > high.address // mmap.PAGESIZE * mmap.PAGESIZE:
            raise InputError("native build: has segments that share a page")
    return loaded + [one for one in kept if one.kind == _DYNAMIC]


def _hash(name: str) -> int:
    value = 5381
    for byte in name.encode():
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value
