"""Memory for a module: apart from Python's own, between pages that nothing can touch."""

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = _libc.mprotect.argtypes
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

NONE, READ, WRITE, EXECUTE = 0, mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
_FAILED = ctypes.c_void_p(-1).value
_ALIGNMENT = 64
_HUGE = 2 << 20


class GuardedMemory:
    """Zeroed memory, aligned to 64 bytes.

    It ends where a page begins that cannot be read: a module that reads or writes beyond the end
    dies. At most 63 bytes of padding lie between. Before the first page lies another such page. The
    memory is not in core dumps, and locked in RAM as far as the process's limit allows.

    Raises   MemoryError
    """

    def __init__(self, nbytes: int) -> None:
        rounded = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self.span = pages(rounded)
        self.start = _map(self.span + 2 * mmap.PAGESIZE) + mmap.PAGESIZE
        self.protect(0, self.span, READ | WRITE)
        self.address = self.start + self.span - rounded
        self.nbytes = nbytes
        _libc.madvise(self.start, self.span, mmap.MADV_DONTDUMP)
        if self.span >= _HUGE:
            _libc.madvise(self.start, self.span, mmap.MADV_HUGEPAGE)
        _libc.mlock(self.start, self.span)

    @property
    def view(self) -> memoryview:
        """The bytes."""
        return memoryview((ctypes.c_char * self.nbytes).from_address(self.address)).cast("B")

    def protect(self, offset: int, nbytes: int, protection: int) -> None:
        """Set what can be done with whole pages, from `start` on.

        Raises   MemoryError
        """
        if _libc.mprotect(self.start + offset, nbytes, protection) != 0:
            raise MemoryError(os.strerror(ctypes.get_errno()))

    def wipe(self) -> None:
        """Overwrite the bytes."""
        self.protect(0, self.span, READ | WRITE)
        ctypes.memset(self.address, 0, self.nbytes)


def pages(nbytes: int) -> int:
    """Bytes of the pages that so many bytes take, one at least."""
    return max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE


def release_freed() -> None:
    """Give the pages of freed memory back, with what was in them."""
    _libc.malloc_trim(0)


def _map(nbytes: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc.mmap(None, nbytes, NONE, flags, -1, 0)
    if address == _FAILED:
        raise MemoryError(os.strerror(ctypes.get_errno()))
    return int(address)
