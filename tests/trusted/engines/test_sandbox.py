"""Code of a module that turns on its process gets nowhere: every attempt ends the process."""

import ctypes
import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from cloister.errors import EngineError
from cloister.trusted.engines import sandbox
from cloister.trusted.engines.module_engine import start_engine
from cloister.trusted.engines.sandbox import AllowedCalls
from trusted.engines import hand_written

# The module makes the system call that its input says: number and arguments. An argument below
# 0 is the address of a path, "/tmp" with the input's last element behind it.
ANY_CALL = (
    hand_written.SYSTEM_CALLS
    + """
RUN {
  CHECK_LENGTHS
  const int64_t *given = inputs;
  static char path[] = "/tmp/cloister-hostile";
  static char *arguments[] = {path, 0};
  long value[6];
  for (int i = 0; i < 6; i++)
    value[i] = given[i + 1] == -1 ? (long)path : given[i + 1] == -2 ? (long)arguments
             : given[i + 1] == -3 ? (long)arena : given[i + 1];
  *(int64_t *)outputs = call(given[0], value[0], value[1], value[2], value[3], value[4], value[5]);
  return 0;
}
"""
)
PATH, ARGUMENTS, MEMORY = -1, -2, -3
MARK = Path("/tmp/cloister-hostile")
EXECUTE = mmap.PROT_READ | mmap.PROT_EXEC
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
X32 = 0x40000000
FORBIDDEN = {
    "open": (2, PATH, os.O_CREAT | os.O_WRONLY, 0o600),
    "openat": (257, -100, PATH, os.O_CREAT | os.O_WRONLY, 0o600),
    "openat2": (437, -100, PATH, MEMORY, 24),
    "creat": (85, PATH, 0o600),
    "unlink": (87, PATH),
    "rename": (82, PATH, PATH),
    "mkdir": (83, PATH, 0o700),
    "stat": (4, PATH, MEMORY),
    "readlink": (89, PATH, MEMORY, 64),
    "socket": (41, 2, 1, 0),
    "unix socket": (41, 1, 1, 0),
    "socketpair": (53, 1, 1, 0, MEMORY),
    "connect": (42, 3, MEMORY, 16),
    "sendmsg": (46, 3, MEMORY, 0),
    "recvmsg": (47, 3, MEMORY, 0),
    "execve": (59, PATH, ARGUMENTS, 0),
    "execveat": (322, -100, PATH, ARGUMENTS, 0, 0),
    "fork": (57,),
    "vfork": (58,),
    "clone": (56, signal.SIGCHLD),
    "clone of a thread": (56, 0x00010F00, MEMORY),
    "clone3": (435, MEMORY, 88),
    "ptrace": (101, 0, 0, 0, 0),
    "process_vm_readv": (310, 1, MEMORY, 1, MEMORY, 1, 0),
    "mmap that executes": (9, 0, 4096, EXECUTE, ANONYMOUS, -4, 0),
    "mprotect that executes": (10, MEMORY, 4096, EXECUTE),
    "madvise that poisons a page of the machine": (28, MEMORY, 4096, 100),
    "madvise that takes a page from the machine": (28, MEMORY, 4096, 101),
    "madvise that shares equal pages": (28, MEMORY, 4096, 12),
    "pkey_mprotect": (329, MEMORY, 4096, EXECUTE, 0),
    "memfd_create": (319, PATH, 0),
    "shmget": (29, 0, 4096, 0o1600),
    "dup": (32, 1),
    "pipe": (22, MEMORY),
    "fcntl": (72, 3, 1),
    "ioctl": (16, 0, 0x5401, MEMORY),
    "write to standard output": (1, 1, MEMORY, 1),
    "write to standard error": (1, 2, MEMORY, 1),
    "read from standard input": (0, 0, MEMORY, 1),
    "writev": (20, 1, MEMORY, 1),
    "sendto elsewhere": (44, 1, MEMORY, 1, 0, 0, 0),
    "prctl": (157, 4, 1, 0, 0, 0),
    "seccomp": (317, 1, 1, MEMORY),
    "unshare": (272, 0x10000000),
    "setrlimit": (160, 9, MEMORY),
    "prlimit64": (302, 0, 9, MEMORY, 0),
    "kill": (62, 1, 0),
    "tgkill": (234, 1, 1, 0),
    "io_uring_setup": (425, 8, MEMORY),
    "bpf": (321, 0, MEMORY, 64),
    "perf_event_open": (298, MEMORY, 0, -4, -4, 0),
    "userfaultfd": (323, 0),
    "personality": (135, 0x0400000),
    "modify_ldt": (154, 0, MEMORY, 16),
    "getpid": (39,),
    "a number beyond the table": (10_000,),
    "an allowed number of the x32 table": (X32 | 228, 1, MEMORY),
    "getrandom by its x32 number": (X32 | 318, MEMORY, 16, 0),
}


@pytest.fixture(scope="module")
def any_call():
    return hand_written.made(
        ANY_CALL, inputs=(("call", "int64", (7,)),), outputs=(("result", "int64", (1,)),),
        arena_bytes=4096,
    )  # fmt: skip


def attempt(engine, *words):
    call = np.zeros((1, 7), np.int64)
    call[0, : len(words)] = words
    ((result,),) = engine.run([call])[0]
    return int(result)


@pytest.mark.parametrize("words", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_module_that_makes_another_call_is_killed(any_call, words):
    MARK.unlink(missing_ok=True)
    with start_engine(any_call, "native") as engine:
        with pytest.raises(EngineError, match="it made a system call that engines may not make"):
            attempt(engine, *words)
        assert not Path(f"/proc/{engine.pid}").exists()
        with pytest.raises(EngineError, match=r"cannot be used any more: .* may not make"):
            attempt(engine, 228, 1, MEMORY)
    assert not MARK.exists()


def test_the_calls_that_a_module_may_make_are_harmless(any_call):
    """The attempts above fail because of their numbers, not because the module cannot call."""
    with start_engine(any_call, "native") as engine:
        assert attempt(engine, 228, 1, MEMORY) == 0  # clock_gettime
        assert attempt(engine, 318, MEMORY, 16, 0) == 16  # getrandom
        assert attempt(engine, 9, 0, 4096, mmap.PROT_READ, ANONYMOUS, -4, 0) > 0
        assert attempt(engine, 24) == 0  # sched_yield


def test_a_module_gets_no_more_memory_than_its_manifest_says(any_call):
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
    with start_engine(any_call, "native") as engine:
        for flags in (ANONYMOUS, shared):
            assert attempt(engine, 9, 0, 1 << 20, writable, flags, -4, 0) > 0
            assert attempt(engine, 9, 0, 1 << 30, writable, flags, -4, 0) == -errno.ENOMEM


OLD_ENTRY = """
RUN {
  CHECK_LENGTHS
  long result = 20;  /* getpid of the 32-bit table; 20 is writev of the other */
  __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
  *(float *)outputs = (float)result;
  return 0;
}
"""


def test_the_system_calls_of_32_bit_programs_are_killed_too():
    x = np.zeros((1, 4), np.float32)
    engine = start_engine(hand_written.made(OLD_ENTRY), "native")
    with engine, pytest.raises(EngineError, match="its process was killed"):
        engine.run([x])


def allowed(number, *arguments):
    """What the filter of a running module says: its instructions, as the kernel performs them."""
    words = {sandbox._NUMBER: number, sandbox._ARCHITECTURE: sandbox._AUDIT_ARCH_X86_64}
    words |= {sandbox._ARGUMENTS + 8 * at: value for at, value in enumerate(arguments)}
    program, at, word = list(sandbox._filter(AllowedCalls.RUNNING, 3)), 0, None
    while program[at].code != sandbox._RETURN:
        code, value, if_true, if_false = program[at]
        at += 1
        if code == sandbox._LOAD:
            word = words[value]
        else:
            holds = word == value if code == sandbox._EQUAL else bool(word & value)
            at += if_true if holds else if_false
    return program[at].value == sandbox._ALLOW


def test_the_list_of_allowed_calls_is_reviewed():
    """A call that is added here lets a module do more: say why in the sandbox."""
    # The socket for what reads and writes, and MADV_FREE for madvise, which is no PROT_EXEC.
    numbers = {number for number in range(1024) if allowed(number, 3, 0, 8)}
    names = {
        0: "read", 1: "write", 9: "mmap", 10: "mprotect", 11: "munmap", 12: "brk",
        13: "rt_sigaction", 14: "rt_sigprocmask", 15: "rt_sigreturn", 24: "sched_yield",
        25: "mremap", 28: "madvise", 44: "sendto", 45: "recvfrom", 60: "exit", 131: "sigaltstack",
        186: "gettid", 202: "futex", 204: "sched_getaffinity", 219: "restart_syscall",
        228: "clock_gettime", 230: "clock_nanosleep", 231: "exit_group", 273: "set_robust_list",
        318: "getrandom", 334: "rseq",
    }  # fmt: skip
    assert numbers == set(names)
    assert {advice for advice in range(128) if allowed(28, 0, 0, advice)} == {4, 8, 14, 16}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into any process")
@pytest.mark.parametrize("name", ["mem", "maps", "fd", "environ"])
def test_other_processes_of_the_user_cannot_look_into_an_engine(any_call, name):
    with start_engine(any_call, "native") as engine, pytest.raises(PermissionError):
        path = Path(f"/proc/{engine.pid}/{name}")
        next(path.iterdir()) if name == "fd" else path.read_bytes()


# ---- before the module is loaded


def test_nothing_of_a_module_runs_when_it_is_loaded(tmp_path):
    """The dynamic linker would run this before any filter."""
    mark, library = tmp_path / "mark", tmp_path / "module.so"
    constructor = f"""
    static volatile int ran;
    __attribute__((constructor, used)) static void hostile(void) {{
      ran = 1;
      call(2, (long)"{mark}", {os.O_CREAT | os.O_WRONLY}, 0600, 0, 0, 0);
    }}
    RUN {{ CHECK_LENGTHS *(float *)outputs = (float)ran; return 0; }}
    """
    module = hand_written.made(hand_written.SYSTEM_CALLS + constructor)
    with start_engine(module, "native") as engine:
        (y,) = engine.run([np.zeros((1, 4), np.float32)])
    assert y[0, 0] == 0
    assert not mark.exists()
    library.write_bytes(module.builds["native-x86-64"])
    ctypes.CDLL(str(library))
    assert mark.exists()


# ---- the end


SPIN = "RUN { for (volatile unsigned i = 1; i; i |= 1) ; return 0; }"
PARENT = """
import sys, threading
import numpy as np
sys.path[:0] = sys.argv[1:]
from cloister.trusted.engines.module_engine import start_engine
from trusted.engines import hand_written
from trusted.engines.test_sandbox import SPIN
with start_engine(hand_written.made(SPIN), "native") as engine:
    print(engine.pid, flush=True)
    if sys.stdin.readline() == "run\\n":
        threading.Thread(target=lambda: print("running", flush=True)).start()
        engine.run([np.zeros((1, 4), np.float32)])
"""


def gone(pid):
    """Within ten seconds; a process that nobody waits for stays as a zombie."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("busy", [True, False])
def test_an_engine_ends_with_the_process_that_started_it(busy):
    folder = str(Path(__file__).parents[2])
    command = [sys.executable, "-P", "-c", textwrap.dedent(PARENT), folder]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as parent:
        pid = int(parent.stdout.readline())
        if busy:
            parent.stdin.write("run\n")
            assert parent.stdout.readline() == "running\n"
            time.sleep(0.2)  # into the module
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    assert gone(pid)


CORES = """
import resource
from cloister.trusted.engines.sandbox import forbid_core_dumps
forbid_core_dumps()
print(resource.getrlimit(resource.RLIMIT_CORE)[0])
"""


@pytest.mark.parametrize("hard", [resource.RLIM_INFINITY, 4096, 1, 0])
def test_programs_that_collect_core_dumps_get_none(hard):
    """A limit of 0 is ignored where a program gets the dumps; core(5) and the kernel's coredump.c
    say that 1 is not."""
    _, own = resource.getrlimit(resource.RLIMIT_CORE)
    if hard > own >= 0 or (hard == resource.RLIM_INFINITY != own):
        pytest.skip("this process may not raise its limit")
    done = subprocess.run(
        [sys.executable, "-P", "-c", CORES], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, hard)),
    )  # fmt: skip
    assert done.stdout == ("0\n" if hard == 0 else "1\n")
