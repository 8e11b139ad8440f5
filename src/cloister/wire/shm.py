"""A worker process on the same machine, reached through shared memory.

Tensors lie in shared segments and are never copied on the trusted side: `send_buffer` is memory
the worker sees while it is written, and an answer is a view of memory the worker can still change.
Control packets (packets.py) go over a socket pair; both sides block in the kernel, nothing spins.
"""

import os
import select
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence

import numpy as np

from cloister.errors import ProtocolError, WorkerTimeout, WorkerUnavailable
from cloister.field.linear import LinearMap
from cloister.wire.arena import Arena, Region
from cloister.wire.codec import Head, encode
from cloister.wire.messages import (
    Answer,
    Apply,
    Failure,
    Hello,
    LoadLinear,
    LoadSegment,
    Message,
    TensorSpec,
    Unchecked,
)
from cloister.wire.packets import (
    MAX_PACKET_BYTES,
    pack_drop,
    pack_message,
    pack_segment,
    parse_answer,
)
from cloister.wire.replies import ReplyBook

DEFAULT_START_TIMEOUT_S = 60.0
DEFAULT_LOAD_TIMEOUT_S = 120.0
_EXIT_WAIT_S = 2.0


class ShmLink:
    """See WorkerLink. Made by `start_local_worker`; owns the process."""

    def __init__(
        self,
        channel: socket.socket,
        process: subprocess.Popen[bytes],
        *,
        name: str,
        load_timeout_s: float = DEFAULT_LOAD_TIMEOUT_S,
    ) -> None:
        self.name = name
        self.bytes_sent = 0
        self.bytes_received = 0
        self._channel = channel
        self._process = process
        self._load_timeout_s = load_timeout_s
        self._book = ReplyBook(name)
        self._arena = Arena(self._announce)
        self._broken: ProtocolError | None = None
        # Regions lent by `send_buffer`, by their array's address, each with its loan's number.
        self._lent: dict[int, tuple[int, Region]] = {}
        self._loans = 0
        self._requests: dict[int, list[Region]] = {}
        self._rooms: dict[int, tuple[Region, ...]] = {}
        self._orphans: dict[int, list[Region]] = {}

    @property
    def device(self) -> str:
        """The device the worker says it uses."""
        return self._book.welcome.device if self._book.welcome else "unknown"

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def greet(self, *, timeout_s: float = DEFAULT_START_TIMEOUT_S) -> None:
        """Wait until the new process answers."""
        self._book.greet()
        self._send(encode(Hello()).head)
        self._wait_for_control(timeout_s, "did not start")

    def load_linear(self, target_id: int, linear: LinearMap) -> None:
        """See WorkerLink."""
        self._load(LoadLinear(target_id, linear))

    def load_segment(self, target_id: int, model: bytes) -> None:
        """See WorkerLink."""
        self._load(LoadSegment(target_id, model))

    def send_buffer(self, spec: TensorSpec) -> np.ndarray:
        """See WorkerLink; shared memory here."""
        region = self._arena.allocate(spec.nbytes)
        array = self._arena.array(region, spec)
        address = array.ctypes.data
        self._loans += 1
        self._lent[address] = (self._loans, region)
        # An array that is dropped without having been submitted gives its region back.
        weakref.finalize(array, self._take_back, address, self._loans).atexit = False
        return array

    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[TensorSpec, ...],
    ) -> None:
        """See WorkerLink."""
        self._check_open()
        head = encode(Apply(request_id, target_id, tensors)).head
        self._book.open(request_id, expect)
        places = tuple(self._place(tensor) for tensor in tensors)
        rooms = tuple(self._arena.allocate(spec.nbytes) for spec in expect)
        self._requests[request_id] = [*places, *rooms]
        self._rooms[request_id] = rooms
        self._send(head, places, rooms)
        self.bytes_sent += sum(tensor.nbytes for tensor in tensors)

    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """See WorkerLink; views of memory the worker can still write."""
        self._check_open()
        deadline = time.monotonic() + timeout_s
        while (tensors := self._book.take(request_id)) is None:
            self._pump(deadline, f"no answer within {timeout_s:g} s")
        return tuple(Unchecked(tensor) for tensor in tensors)

    def release(self, request_id: int) -> None:
        """See WorkerLink; regions of an unanswered request wait for its late answer."""
        if not self._book.known(request_id):
            return
        regions = self._requests.pop(request_id, [])
        if self._book.release(request_id):
            self._free(regions)
            self._rooms.pop(request_id, None)
        else:
            self._orphans[request_id] = regions

    def close(self) -> None:
        """See WorkerLink; the process is killed, it has nothing to save."""
        self._broken = self._broken or WorkerUnavailable(f"worker {self.name}: the link is closed")
        self._channel.close()
        self._arena.close()
        self._process.kill()
        self._process.wait()

    # ---- messages

    def _load(self, message: LoadLinear | LoadSegment) -> None:
        self._check_open()
        encoded = encode(message)
        (data,) = encoded.payload
        region = self._arena.allocate_alone(len(data))
        target = self._arena.array(region, TensorSpec(np.dtype(np.uint8), (len(data),)))
        target[:] = np.frombuffer(data, np.uint8)
        self._book.load(message.target_id)
        self._send(encoded.head, (region,))
        self.bytes_sent += len(data)
        self._wait_for_control(self._load_timeout_s, f"did not load target {message.target_id}")
        self._arena.drop(region.segment)
        self._transmit(pack_drop(region.segment))

    def _wait_for_control(self, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._book.control_done():
            self._pump(deadline, f"{what} within {timeout_s:g} s")

    def _pump(self, deadline: float, what: str) -> None:
        """Read one packet and enter it."""
        packet = self._read(deadline, what)
        self.bytes_received += len(packet)
        try:
            head = parse_answer(packet)
            self._book.admit(head)
            self._book.deliver(self._message(head))
        except ProtocolError as error:
            raise self._break(error) from error
        if head.kind in (Answer, Failure) and head.numbers[0] in self._orphans:
            self._free(self._orphans.pop(head.numbers[0]))
            self._rooms.pop(head.numbers[0], None)

    def _message(self, head: Head) -> Message:
        # The specs were compared with what was expected, and the rooms were made for that.
        rooms = self._rooms.get(head.numbers[0], ()) if head.specs else ()
        self.bytes_received += head.payload_bytes
        return head.message(
            tuple(
                self._arena.array(room, spec) for room, spec in zip(rooms, head.specs, strict=True)
            )
        )

    # ---- regions

    def _place(self, tensor: np.ndarray) -> Region:
        loan = self._lent.get(tensor.ctypes.data)
        if loan is not None and tensor.flags.c_contiguous and tensor.nbytes <= loan[1].size:
            del self._lent[tensor.ctypes.data]
            return loan[1]
        region = self._arena.allocate(tensor.nbytes)
        self._arena.array(region, TensorSpec.of(tensor))[...] = tensor
        return region

    def _take_back(self, address: int, number: int) -> None:
        loan = self._lent.get(address)
        if loan is not None and loan[0] == number:
            del self._lent[address]
            self._arena.free(loan[1])

    def _free(self, regions: Sequence[Region]) -> None:
        for region in regions:
            self._arena.free(region)

    def _announce(self, index: int, size: int, descriptor: int) -> None:
        self._transmit(pack_segment(index, size), descriptor)

    # ---- the socket

    def _send(
        self, head: bytes, places: tuple[Region, ...] = (), rooms: tuple[Region, ...] = ()
    ) -> None:
        self.bytes_sent += len(head)
        self._transmit(pack_message(head, places, rooms))

    def _transmit(self, packet: bytes, *descriptors: int) -> None:
        try:
            self._channel.settimeout(self._load_timeout_s)
            if descriptors:
                socket.send_fds(self._channel, [packet], list(descriptors))
            else:
                self._channel.send(packet)
        except TimeoutError as error:
            raise WorkerTimeout(f"worker {self.name}: it does not read its messages") from error
        except OSError as error:
            raise self._break(self._death()) from error

    def _read(self, deadline: float, what: str) -> bytes:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(1e3 * remaining):
            raise WorkerTimeout(f"worker {self.name}: {what}; raise the timeout or use another one")
        try:
            packet = self._channel.recv(MAX_PACKET_BYTES + 1)
        except OSError as error:
            raise self._break(self._death()) from error
        if not packet:
            raise self._break(self._death())
        if len(packet) > MAX_PACKET_BYTES:
            raise self._break(ProtocolError(f"worker {self.name}: packet too long"))
        return packet

    def _death(self) -> WorkerUnavailable:
        try:
            code = self._process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return WorkerUnavailable(f"worker {self.name}: it closed the connection")
        return WorkerUnavailable(f"worker {self.name}: its process ended with status {code}")

    def _break(self, error: ProtocolError) -> ProtocolError:
        self._broken = error
        return error

    def _check_open(self) -> None:
        if self._broken is not None:
            raise self._broken


def start_local_worker(
    *,
    device: str = "cpu",
    threads: int = 1,
    name: str | None = None,
    command: Sequence[str] | None = None,
    start_timeout_s: float = DEFAULT_START_TIMEOUT_S,
    load_timeout_s: float = DEFAULT_LOAD_TIMEOUT_S,
) -> ShmLink:
    """Start a worker process and connect to it; `close` ends it, as does this process's end.

    command   arguments to run instead of `python -m cloister.worker`; `--fd`, `--device` and
              `--threads` are appended

    Raises   WorkerUnavailable, WorkerTimeout when it does not come up
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    base = list(command) if command else [sys.executable, "-m", "cloister.worker"]
    arguments = ["--fd", str(theirs.fileno()), "--device", device, "--threads", str(threads)]
    try:
        # In a session of its own, so that Ctrl-C reaches the trusted side alone, which then closes
        # the socket; a worker whose socket is closed ends itself.
        process = subprocess.Popen(
            base + arguments,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
    except OSError as error:
        ours.close()
        raise WorkerUnavailable(
            f"local worker: cannot start {base[0]}: {error.strerror}"
        ) from error
    finally:
        theirs.close()
    link = ShmLink(
        ours, process, name=name or f"local-{process.pid}", load_timeout_s=load_timeout_s
    )
    try:
        link.greet(timeout_s=start_timeout_s)
    except ProtocolError:
        link.close()
        raise
    return link
