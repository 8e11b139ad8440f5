"""What the process of an engine can still do: its limits, and its system calls.

The seccomp filter is what protects. It lists the calls that are allowed; any other one ends the
process at once. It is set twice:

    loading    before a secret arrives: no file, socket, process or other descriptor can be opened,
               and messages go over one socket; memory can be made executable
    running    before an instruction of the module: memory cannot be made executable either

Both filters stay: the second only takes away. The other settings bound what a defect of the kernel
or of the filter would cost.
"""

import ctypes
import errno
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.syscall.argtypes = [*[ctypes.c_long] * 3, ctypes.c_char_p]

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_CLONE_THREAD = 0x00010000
_F_SETSIG = 10
_PROT_EXEC = 4

# ---- seccomp(2)

_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_KILL_PROCESS, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
"""Of BPF: load a word, jump if equal, jump if any of these bits is set, return."""
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in seccomp_data. Arguments are 64 bits, the low word first."""

_MEMORY = {"munmap": 11, "brk": 12, "mremap": 25}
_SIGNALS = {"rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131}
_TIME = {"clock_gettime": 228, "clock_nanosleep": 230, "sched_yield": 24, "restart_syscall": 219}
_OTHERS = {"futex": 202, "getrandom": 318, "gettid": 186, "exit": 60, "exit_group": 231}
# A thread that was started while loading may make its first calls later.
_BEGIN_OF_THREAD = {"set_robust_list": 273, "rseq": 334, "sched_getaffinity": 204}
_ALLOWED = tuple(
    number
    for group in (_MEMORY, _SIGNALS, _TIME, _OTHERS, _BEGIN_OF_THREAD)
    for number in group.values()
)
_MESSAGES = {"read": 0, "write": 1, "sendto": 44, "recvfrom": 45}
_MAPPINGS = {"mmap": 9, "mprotect": 10}
_WHILE_LOADING = {"seccomp": 317, "mlock": 149}
_MADVISE, _IOCTL, _CLONE, _CLONE3 = 28, 16, 56, 435
_ADVICE = (4, 8, 14, 16)
"""DONTNEED, FREE, HUGEPAGE, DONTDUMP: what allocators and GuardedMemory give. Others concern more
than this process: HWPOISON and SOFT_OFFLINE, of root, take pages of the machine, and the time that
pages of MERGEABLE take tells whether another process has the same."""


class AllowedCalls(Enum):
    """What a process may do."""

    LOADING = "loading"
    LOADING_WITH_THREADS = "loading with threads"
    RUNNING = "running"


class _Instruction(NamedTuple):
    code: int
    value: int
    if_true: int = 0
    if_false: int = 0

    def pack(self) -> bytes:
        return struct.pack("<HBBI", self.code, self.if_true, self.if_false, self.value)


def _argument(index: int) -> _Instruction:
    return _Instruction(_LOAD, _ARGUMENTS + 8 * index)


def _when(call: int, *rule: _Instruction) -> list[_Instruction]:
    """A rule for one system call; it ends with a return or leaves the call's number to the next."""
    return [_Instruction(_EQUAL, call, 0, len(rule)), *rule]


_PASS, _END = _Instruction(_RETURN, _ALLOW), _Instruction(_RETURN, _KILL_PROCESS)


def _filter(stage: AllowedCalls, descriptor: int) -> Iterable[_Instruction]:
    yield from (
        _Instruction(_LOAD, _ARCHITECTURE),
        _Instruction(_EQUAL, _AUDIT_ARCH_X86_64, 1, 0),
        _END,
        _Instruction(_LOAD, _NUMBER),
    )
    for call in _ALLOWED:
        yield from _when(call, _PASS)
    for call in _MESSAGES.values():
        # The kernel reads a descriptor as 32 bits.
        same = _Instruction(_EQUAL, descriptor, 0, 1)
        yield from _when(call, _argument(0), same, _PASS, _END)
    for call in _MAPPINGS.values():
        executable = _Instruction(_ANY_BIT, _PROT_EXEC, 1, 0)
        rule = (
            (_argument(2), executable, _PASS, _END) if stage is AllowedCalls.RUNNING else (_PASS,)
        )
        yield from _when(call, *rule)
    advice = (_Instruction(_EQUAL, one, len(_ADVICE) - at) for at, one in enumerate(_ADVICE))
    yield from _when(_MADVISE, _argument(2), *advice, _END, _PASS)
    if stage is not AllowedCalls.RUNNING:
        for call in _WHILE_LOADING.values():
            yield from _when(call, _PASS)
        # wasmtime asks whether errors go to a terminal.
        yield from _when(_IOCTL, _Instruction(_RETURN, _ERRNO | errno.ENOTTY))
    if stage is AllowedCalls.LOADING_WITH_THREADS:
        # The arguments of clone3 lie in memory, out of a filter's sight; libraries fall back.
        yield from _when(_CLONE3, _Instruction(_RETURN, _ERRNO | errno.ENOSYS))
        yield from _when(
            _CLONE, _argument(0), _Instruction(_ANY_BIT, _CLONE_THREAD, 0, 1), _PASS, _END
        )
    yield _END


def lock(stage: AllowedCalls, *, descriptor: int) -> None:
    """Allow all threads of this process only the system calls of a stage, for good.

    descriptor   the only one that can be read and written

    Raises   OSError
    """
    packed = b"".join(one.pack() for one in _filter(stage, descriptor))
    instructions = ctypes.create_string_buffer(packed, len(packed))
    program = struct.pack("<HxxxxxxQ", len(packed) // 8, ctypes.addressof(instructions))
    _check(_libc.syscall(_WHILE_LOADING["seccomp"], _SET_MODE_FILTER, _ALL_THREADS, program))


def _check(result: int) -> None:
    # seccomp returns the id of a thread that it could not set.
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# ---- everything else


def end_with(descriptor: int) -> None:
    """Have the kernel kill this process when the last writer of a pipe closes it or dies.

    The module cannot hold this up, whatever it computes.

    Raises   OSError
    """
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_ASYNC)


def forbid_core_dumps() -> None:
    """Have the kernel make no core dump of this process, and of those that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # Of no byte if a program gets the dumps (core_pattern): then 0 is ignored, and 1 means none.
    # No file has one byte either.
    most = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (most, hard))


def hide_memory() -> None:
    """No core dump, no debugger of the same user, no /proc/PID/mem: of this process, from now on.

    Raises   OSError
    """
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def isolate(memory_bytes: int, *, reserved_bytes: int = 0) -> None:
    """Give up everything that the filter does not need: dumps, privileges, files, network, memory.

    memory_bytes     that the process may allocate beyond what it has
    reserved_bytes   of addresses, beyond that memory

    Raises   OSError
    """
    # Not relied upon: not every kernel permits it.
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    with open("/proc/self/statm", encoding="utf-8") as file:
        size, *_, data, _ = (int(pages) * resource.getpagesize() for pages in file.read().split())
    limits = {
        resource.RLIMIT_DATA: data + memory_bytes,
        # Shared mappings do not count as data.
        resource.RLIMIT_AS: size + memory_bytes + reserved_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 0,
    }
    for which, limit in limits.items():
        _, hard = resource.getrlimit(which)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (limit, limit))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    hide_memory()
