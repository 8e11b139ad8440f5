"""Memory that is there before it is first used, so that no request waits for page faults.

A page that is written for the first time costs a fault, some microseconds for 4 KiB. Memory that
serves requests is therefore populated when it is allocated; private memory in huge pages, as far as
it fills them.
"""

import errno
import mmap

import numpy as np
from jaxtyping import UInt8

HUGE_PAGE = 2 << 20
MADV_POPULATE_WRITE = 23
"""Of Linux 5.14; the module `mmap` has no name for it."""


def private_memory(nbytes: int) -> UInt8[np.ndarray, " nbytes"]:
    """Zeros that no other process shares, all of their pages in memory; aligned to a page.

    From 2 MiB on they are aligned to a huge page, and every whole one is asked for as such. The
    rest takes small pages: no allocation is rounded up to a huge page. It is given back with the
    last array that views it.

    Raises   MemoryError
    """
    large = nbytes >= HUGE_PAGE
    room = max(nbytes, 1) + (HUGE_PAGE if large else 0)
    try:
        memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {nbytes} bytes") from error
    start = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE_PAGE if large else 0
    advise_huge(memory, start, nbytes // HUGE_PAGE * HUGE_PAGE)
    populate(memory, start, nbytes)
    return np.frombuffer(memory, np.uint8, count=nbytes, offset=start)


def advise_huge(memory: mmap.mmap, start: int, nbytes: int) -> None:
    """Ask for huge pages for a part that begins at a page; a kernel without them goes on."""
    if nbytes:
        _advise(memory, mmap.MADV_HUGEPAGE, start, nbytes)


def populate(memory: mmap.mmap, start: int, nbytes: int) -> None:
    """Bring a part that begins at a page, and whose contents do not matter yet, into memory.

    Raises   MemoryError
    """
    if nbytes and not _advise(memory, MADV_POPULATE_WRITE, start, nbytes):
        np.frombuffer(memory, np.uint8, count=nbytes, offset=start)[:: mmap.PAGESIZE] = 0


def map_pages(memory: mmap.mmap) -> None:
    """Map all pages of shared memory that already has them; on an older kernel, when used."""
    _advise(memory, MADV_POPULATE_WRITE, 0, len(memory))


def _advise(memory: mmap.mmap, advice: int, start: int, nbytes: int) -> bool:
    """Whether the kernel knows the advice, and has followed it.

    Raises   MemoryError
    """
    try:
        memory.madvise(advice, start, nbytes)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise MemoryError(f"no memory for {nbytes} bytes") from error
    return True
