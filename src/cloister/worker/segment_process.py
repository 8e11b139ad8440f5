"""The segments of one client of a remote worker, in a process whose memory is limited.

ONNX Runtime has no limit for its memory: a segment of a hundred bytes can make tensors of any size,
before it is run even once. So the operating system sets the limit: a client's segments run in a
process of their own under RLIMIT_DATA, which counts private memory when it is asked for. A segment
that wants more fails, or ends its process; other clients have other processes.

Both ends exchange the wire's frames over a stream socket, one request at a time.
"""

import resource
import socket
import subprocess
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from cloister.errors import InputError, ProtocolError, WorkerUnavailable
from cloister.wire.codec import DEFAULT_MAX_PAYLOAD_BYTES, Head, encode
from cloister.wire.grpc.frames import FRAME_BYTES, Assembler, to_frames
from cloister.wire.messages import Answer, Apply, Failure, LoadSegment, Message
from cloister.wire.process import python, start, thread_settings
from cloister.wire.process_end import end_with
from cloister.worker.budget import MemoryBudget, Reservation
from cloister.worker.targets import Cost

LEAST_SHARE_BYTES = 512 << 20
"""Python, NumPy, ONNX and ONNX Runtime, and some room to compute."""
THREAD_BYTES = 16 << 20
MODEL_COPIES = 8
"""Of a segment's bytes: as it arrives, parsed, checked, and ONNX Runtime's own, packed ones too."""


class SegmentProcess:
    """Loads and runs segments in another process, which is started by the first one.

    budget        pays for all that the process may take
    share_bytes   what the segments of one client may take, MODEL_COPIES times their bytes aside
    """

    def __init__(
        self, budget: MemoryBudget, *, device: str, threads: int, share_bytes: int
    ) -> None:
        self._reservation = Reservation(budget)
        self._device = device
        self._threads = threads
        self._share = max(share_bytes, LEAST_SHARE_BYTES) + threads * THREAD_BYTES
        self._granted = 0
        self._lock = threading.Lock()
        self._cut = False
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None

    def load(self, message: LoadSegment) -> None:
        """Load a segment.

        Raises   RangeError when the worker's memory is spent, InputError with what the process
                 says, WorkerUnavailable when it ended
        """
        if self._channel is None:
            self._start()
        # What was granted stays so until the process ends: replaced segments leave memory behind.
        self._grant(MODEL_COPIES * len(message.model))
        self._ask(message, lambda _: None)

    def run(
        self, target_id: int, tensors: tuple[np.ndarray, ...], *, admit: Callable[[int], None]
    ) -> tuple[np.ndarray, ...]:
        """A segment's outputs.

        admit   called with the size of the answer before it gets memory; raises to refuse it

        Raises   as `load`, and what `admit` raises
        """
        reply = self._ask(Apply(1, target_id, tensors), admit)
        if not isinstance(reply, Answer):
            raise ProtocolError(f"segment: its process sent a {type(reply).__name__}")
        return reply.tensors

    def cut(self) -> None:
        """End the process, from any thread; a thread that waits for it gets WorkerUnavailable."""
        with self._lock:
            self._cut = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the process and give back its memory."""
        self.cut()
        self._end()

    def _start(self) -> None:
        self._end()
        self._reservation.take(self._share)
        self._granted = self._share
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._cut:
                ours.close()
                raise WorkerUnavailable("segment: its client is gone")
            arguments = ("--segments", str(theirs.fileno()), "--device", self._device)
            self._channel = Connection(ours.detach())
            self._process = start(
                python("-m", "cloister.worker", *arguments, "--threads", str(self._threads)),
                stdout=subprocess.DEVNULL,
                descriptors=[theirs.fileno()],
                detached=True,
                # The allocator's arenas are for many threads that allocate at once.
                more={**thread_settings(self._threads), "MALLOC_ARENA_MAX": "2"},
            )
        self._limit()

    def _grant(self, nbytes: int) -> None:
        self._reservation.take(nbytes)
        self._granted += nbytes
        self._limit()

    def _limit(self) -> None:
        if self._process is not None and self._process.poll() is None:
            _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_DATA)
            soft = self._granted if hard == resource.RLIM_INFINITY else min(self._granted, hard)
            resource.prlimit(self._process.pid, resource.RLIMIT_DATA, (soft, hard))

    def _ask(self, message: Message, admit: Callable[[int], None]) -> Message:
        channel = self._channel
        if channel is None:
            raise InputError("segment: it went with its process; load it again")
        try:
            for frame in to_frames(encode(message)):
                channel.send_bytes(frame)
            reply = _receive(channel, admit)
        except (OSError, EOFError):
            granted = self._granted
            self._end()
            raise WorkerUnavailable(
                f"segment: its process ended; a client's segments may take {granted} B, use a "
                "smaller batch"
            ) from None
        except BaseException:
            self._end()  # in the middle of a message
            raise
        if isinstance(reply, Failure):
            raise InputError(reply.message)
        return reply

    def _end(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._channel = self._process = None
        self._reservation.end()


class HostedSegment:
    """A segment in a SegmentProcess, as a target."""

    def __init__(
        self, process: SegmentProcess, target_id: int, *, admit: Callable[[int], None]
    ) -> None:
        self._process = process
        self._target_id = target_id
        self._admit = admit

    def cost(self, _: tuple[np.ndarray, ...]) -> Cost:
        """See Target; the process has its own limit, and an answer tells its size."""
        return Cost()

    def run(self, tensors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """See Target."""
        return self._process.run(self._target_id, tensors, admit=self._admit)


def serve_segments(descriptor: int, handle: Callable[[Message], Message | None]) -> None:
    """The other end: answer messages until the socket is closed, then end the process.

    Raises   ProtocolError when the worker breaks the protocol
    """
    end_with([descriptor])
    with Connection(descriptor) as channel:
        while True:
            try:
                message = _receive(channel, lambda _: None)
            except EOFError:
                return
            reply = handle(message)
            if reply is not None:
                for frame in to_frames(encode(reply)):
                    channel.send_bytes(frame)


def _receive(channel: Connection, admit: Callable[[int], None]) -> Message:
    def check(head: Head) -> None:
        admit(head.payload_bytes)

    assembler = Assembler(check, max_payload_bytes=DEFAULT_MAX_PAYLOAD_BYTES)
    while True:
        message = assembler.feed(channel.recv_bytes(FRAME_BYTES))
        if message is not None:
            return message
