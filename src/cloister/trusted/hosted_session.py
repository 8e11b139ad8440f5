"""A client's session in a process of its own, as the service that starts it sees it.

The plan and the inputs are the client's: ONNX Runtime and the kernels compute what they say. So
each client has a process, whose private memory is limited, and which ends with the client. A plan
that takes too much memory or time, or ends its process, harms no other client, and no process has
the values of two.
"""

import os
import resource
import socket
import subprocess
import threading
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cloister.errors import CloisterError, InputError, ServiceUnavailable
from cloister.trusted.packed_values import pack
from cloister.trusted.runtime_messages import RESULT_BYTES
from cloister.trusted.sealed_memory import SealedMemory
from cloister.wire.https.bodies import decode, encode
from cloister.wire.https.error_bodies import error_body, error_of
from cloister.wire.process import python, start

LEAST_BYTES = 512 << 20
"""Python, NumPy and ONNX Runtime, and some room to compute."""
OPENING_S = 300.0
DONE, REFUSED = b"\0", b"\1"
NO_FILE = -1


@dataclass(frozen=True)
class HostSettings:
    """How the sessions of a service compute; its operator decides.

    memory_bytes   private memory of each process of a session
    run_s          how long one call may take
    """

    workers: tuple[str, ...] = ()
    threads: int = 1
    worker_threads: int = 1
    batch: int = 8
    lanes: int | None = None
    timeout_s: float = 60.0
    memory_bytes: int = 4 << 30
    run_s: float = 600.0

    def __post_init__(self) -> None:
        if self.memory_bytes < LEAST_BYTES:
            raise InputError(f"a session needs at least {LEAST_BYTES >> 20} MiB of memory")


@dataclass(frozen=True, repr=False)
class BundleKeys:
    """What opens the bundle whose hidden end the session's process runs, and no other bundle.

    Secret   key
    """

    path: Path
    bundle_id: bytes
    key: bytes
    vendor: bytes
    engine: str = "native"
    counter: Path | None = None


class HostedSession:
    """A `Session` in another process; one call at a time.

    plan       the canonical bytes of a plan
    template   the model with free sizes that it was made from, if there is one
    bundle     what opens the plan's module, if it has one
    """

    def __init__(
        self,
        plan: SealedMemory,
        template: SealedMemory | None,
        settings: HostSettings,
        *,
        bundle: BundleKeys | None = None,
    ) -> None:
        """Start the process; `open` opens the session.

        Raises   OSError
        """
        self._lock, self._settings, self._bundle = threading.Lock(), settings, bundle
        ours, theirs = socket.socketpair()
        self._channel = Connection(ours.detach())
        files = [NO_FILE if one is None else one.descriptor for one in (plan, template)]
        with theirs:
            descriptors = [theirs.fileno(), *files]
            self._process = start(
                python("-m", "cloister.trusted.session_process", *map(str, descriptors)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what a library prints could quote an input
                descriptors=[one for one in descriptors if one != NO_FILE],
                detached=True,
                more={"MALLOC_ARENA_MAX": "2"},
            )
        limits = (settings.memory_bytes, settings.memory_bytes)
        try:
            resource.prlimit(self._process.pid, resource.RLIMIT_DATA, limits)
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        """Open the session; it ends if that fails.

        Raises   what opening the session raises, by class; ServiceUnavailable if it ended
        """
        try:
            told = {"settings": _plain(self._settings), "bundle": _plain(self._bundle)}
            self._ask(pack(told), OPENING_S)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def run(self, packed: bytes | memoryview) -> bytes:
        """The packed result (packed_result.py) of packed inputs.

        Raises   what the session raises, by class; ServiceUnavailable if its process ended
        """
        return self._ask(packed, self._settings.run_s)

    def close(self) -> None:
        """End the process, from any thread; a call that waits for it fails."""
        self._process.kill()
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def _ask(self, message: bytes | memoryview, within_s: float) -> bytes:
        with self._lock:
            try:
                self._channel.send_bytes(message)
                if not self._channel.poll(within_s):
                    # Its late answer must not pass for that of another call.
                    self._end()
                    raise ServiceUnavailable(
                        f"trusted session: took longer than {within_s:.0f} s and was ended; run "
                        "fewer inputs at a time, or ask the machine's operator for more time"
                    )
                status = self._channel.recv_bytes(1)
                answer = self._channel.recv_bytes(RESULT_BYTES)
            except (OSError, EOFError):
                self._end()
                raise ServiceUnavailable(
                    "trusted session: its process ended; it may take "
                    f"{self._settings.memory_bytes >> 20} MiB of memory: run smaller inputs, or "
                    "ask the machine's operator for more (--session-gib)"
                ) from None
            except BaseException:
                self._end()  # in the middle of a message
                raise
        if status == DONE:
            return answer
        raise error_of(decode(answer))


def refusal(error: Exception) -> bytes:
    """An error as the session's process sends it; of a fault of ours, its class alone."""
    if isinstance(error, CloisterError):
        return encode(error_body(error))
    text = f"trusted session: failed ({type(error).__name__})"
    if isinstance(error, MemoryError):
        text = "trusted session: its memory is spent; run smaller inputs or fewer at a time"
    return encode(error_body(ServiceUnavailable(text)))


def _plain(one: HostSettings | BundleKeys | None) -> dict[str, Any] | None:
    if one is None:
        return None
    found = asdict(one)
    for name, value in found.items():
        if isinstance(value, bytes):
            found[name] = np.frombuffer(value, np.uint8)
        elif isinstance(value, Path):
            found[name] = os.fspath(value.absolute())
    return found
