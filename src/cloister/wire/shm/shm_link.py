"""A worker process on the same machine, reached through shared memory.

Tensors lie in shared segments and are never copied on the trusted side: `send_buffer` is memory
the worker sees while it is written, and an answer is a view of memory the worker can still change.
Control packets (packets.py) go over a socket pair. This side blocks in the kernel. The worker may
busy-poll for the next request before it blocks, if no other thread needs its core.
"""

import contextlib
import select
import socket
import subprocess
import time
import weakref
from collections.abc import Sequence
from functools import partial

import numpy as np

from cloister.errors import ProtocolError, WorkerTimeout, WorkerUnavailable
from cloister.wire.codec import encode, encode_head
from cloister.wire.link import MessageLink, NativeChannel
from cloister.wire.messages import (
    Answer,
    Apply,
    Expected,
    Failure,
    Hello,
    LoadLinear,
    LoadSegment,
    MakePads,
    Message,
    TensorSpec,
    Unchecked,
)
from cloister.wire.process import start_worker
from cloister.wire.replies import named
from cloister.wire.shm.arena import Arena, Region
from cloister.wire.shm.exchange import (
    PreparedRequest,
    PreparedRequests,
    SendBuffer,
    Sent,
    with_request_id,
)
from cloister.wire.shm.packets import (
    MAX_PACKET_BYTES,
    pack_answer,
    pack_drop,
    pack_message,
    pack_segment,
    parse_answer,
)

DEFAULT_START_TIMEOUT_S = 60.0
DEFAULT_LOAD_TIMEOUT_S = 120.0
_EXIT_WAIT_S = 2.0


class ShmLink(MessageLink):
    """See WorkerLink. Made by `start_local_worker`; owns the process, alone or with others.

    users   the links that share the process; the last one to be closed ends it
    """

    def __init__(
        self,
        channel: socket.socket,
        process: subprocess.Popen[bytes],
        *,
        name: str,
        load_timeout_s: float = DEFAULT_LOAD_TIMEOUT_S,
        users: "set[ShmLink] | None" = None,
    ) -> None:
        super().__init__(name)
        self._channel = channel
        self._process = process
        self._users = set() if users is None else users
        self._users.add(self)
        self._cut = False
        self._load_timeout_s = load_timeout_s
        self._arena = Arena(self._announce)
        # Buffers lent by `send_buffer` and not yet submitted, by their array's id.
        self._lent: dict[int, SendBuffer] = {}
        self._sent: dict[int, Sent] = {}
        self._due: dict[bytes, int] = {}
        self._packet = memoryview(bytearray(MAX_PACKET_BYTES + 1))
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(channel, select.POLLOUT)
        channel.setblocking(True)  # native code waits in recv()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def encrypted(self) -> bool:
        """See WorkerLink: nothing leaves the machine."""
        return True

    def greet(self, *, timeout_s: float = DEFAULT_START_TIMEOUT_S) -> None:
        """Wait until the new process answers."""
        self._replies.greet()
        self._send(encode(Hello()).head)
        self._wait_for_control(timeout_s, "did not start")

    def load(self, message: LoadLinear | LoadSegment) -> None:
        """See WorkerLink."""
        self._check_open()
        encoded = encode(message)
        (data,) = encoded.payload
        region = self._arena.allocate_alone(len(data))
        target = self._arena.array(region, TensorSpec(np.dtype(np.uint8), (len(data),)))
        target[:] = np.frombuffer(data, np.uint8)
        self._replies.load(message.target_id)
        self._send(encoded.head, (region,))
        self._bytes_sent += len(data)
        self._wait_for_control(self._load_timeout_s, f"did not load target {message.target_id}")
        self._arena.drop(region.segment)
        self._transmit(pack_drop(region.segment))

    def send_buffer(self, spec: TensorSpec) -> np.ndarray:
        """See WorkerLink; shared memory here."""
        region = self._arena.allocate(spec.nbytes)
        array = self._arena.array(region, spec)
        # An array that is dropped without having been submitted gives its region back.
        reference = weakref.ref(array, partial(self._take_back, id(array)))
        self._lent[id(array)] = SendBuffer(reference, region, spec)
        return array

    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[Expected, ...],
    ) -> None:
        """See WorkerLink."""
        self._check_open()
        self._replies.open(request_id, expect)
        placed = [self._place(tensor) for tensor in tensors]
        head = encode_head(Apply, (request_id, target_id), tuple(found.spec for found in placed))
        self._request(request_id, head, placed, expect)

    def make_pads(self, message: MakePads) -> None:
        """See WorkerLink; the terms stay where the maker writes them, until `release`."""
        self._check_open()
        encoded = encode(message)
        self._replies.open(message.request_id, (message.answer,))
        placed = [self._place(np.frombuffer(data, np.uint8)) for data in encoded.payload]
        self._request(message.request_id, encoded.head, placed, (message.answer,))

    def _request(
        self, request_id: int, head: bytes, placed: list[SendBuffer], expect: tuple[Expected, ...]
    ) -> None:
        """Send a request whose tensors are placed, with rooms for its answer."""
        specs = tuple(spec for spec in expect if isinstance(spec, TensorSpec))
        answer = None
        if len(specs) == len(expect):
            answer = pack_answer(encode_head(Answer, (request_id,), specs))
        places = tuple(found.region for found in placed)
        rooms = tuple(self._arena.allocate(spec.nbytes) for spec in expect)
        self._sent[request_id] = Sent((*places, *rooms), rooms, expect, answer)
        if answer is not None:
            self._due[answer] = request_id
        self._send(head, places, rooms, wait=False)
        self._bytes_sent += sum(found.spec.nbytes for found in placed)

    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """See WorkerLink; views of memory the worker can still write."""
        self._check_open()
        deadline = time.monotonic() + timeout_s
        while (answer := self._taken(request_id)) is None:
            self._pump(deadline, f"no answer within {timeout_s:g} s")
        return answer

    def release(self, request_id: int) -> None:
        """See WorkerLink; regions of an unanswered request wait for its late answer."""
        if self._replies.known(request_id) and self._replies.release(request_id):
            self._free(self._sent.pop(request_id))

    # ---- the native channel: native code uses the socket and the regions itself

    def native_channel(self) -> NativeChannel | None:
        """See WorkerLink; while an answer is due, packets are read one by one."""
        return self if self._broken is None and self._replies.idle else None

    @property
    def descriptor(self) -> int:
        """See NativeChannel."""
        return self._channel.fileno()

    def reserve(self, nbytes: int) -> Region:
        """See NativeChannel."""
        self._check_open()
        return self._arena.allocate_populated(nbytes)

    def unreserve(self, region: Region) -> None:
        """See NativeChannel."""
        self._arena.free(region)

    def request_view(self, region: Region, spec: TensorSpec) -> np.ndarray:
        """See NativeChannel."""
        return self._arena.array(region, spec)

    def answer_view(self, region: Region, spec: TensorSpec) -> Unchecked[np.ndarray]:
        """See NativeChannel."""
        return Unchecked(self._arena.array(region, spec))

    def exchanged(self, first_request_id: int, exchanges: PreparedRequests) -> None:
        """See WorkerLink."""
        self._bytes_sent += exchanges.bytes_sent
        self._bytes_received += exchanges.bytes_received

    def complete(
        self,
        request_id: int,
        exchange: PreparedRequest,
        *,
        sent: bool,
        came: bytes,
        deadline_s: float,
        timeout_s: float,
    ) -> None:
        """See WorkerLink."""
        try:
            self._adopt(request_id, exchange, sent=sent)
            if came:
                self._enter(came)
            while self._replies.take(request_id) is None:
                self._pump(deadline_s, f"no answer within {timeout_s:g} s")
        finally:
            self.release(request_id)

    def abandon(self, request_id: int, exchange: PreparedRequest) -> None:
        """See WorkerLink."""
        self._adopt(request_id, exchange, sent=True)
        self.release(request_id)

    def _adopt(self, request_id: int, exchange: PreparedRequest, *, sent: bool) -> None:
        self._replies.open(request_id, (exchange.expect,))
        self._sent[request_id] = entry = exchange.sent(request_id)
        if entry.answer is not None:
            self._due[entry.answer] = request_id
        if not sent:
            self._transmit(with_request_id(exchange.packet, request_id), wait=False)
        self._bytes_sent += len(exchange.packet) + exchange.message_bytes

    def close(self) -> None:
        """See WorkerLink; the process is killed with its last link, it has nothing to save."""
        self._broken = self._broken or WorkerUnavailable(f"worker {self.name}: the link is closed")
        self._channel.close()
        self._arena.close()
        self._users.discard(self)
        if not self._users:
            self._process.kill()
            self._process.wait()

    def cut(self) -> None:
        """End the connection from another thread than the one that uses the link.

        That one then gets WorkerUnavailable; the memory and the descriptor stay its own to close.
        """
        self._cut = True
        with contextlib.suppress(OSError):  # the worker was faster
            self._channel.shutdown(socket.SHUT_RDWR)

    # ---- messages

    def _wait_for_control(self, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._replies.control_done():
            self._pump(deadline, f"{what} within {timeout_s:g} s")

    def _pump(self, deadline: float, what: str) -> None:
        """Read one packet and enter it."""
        self._enter(self._read(deadline, what))

    def _enter(self, packet: bytes) -> None:
        if len(packet) > MAX_PACKET_BYTES:
            raise self._break(ProtocolError(f"worker {self.name}: packet too long"))
        self._bytes_received += len(packet)
        # A head has one encoding, so the answers that are due are known byte for byte; only what is
        # none of them is decoded: a control message, an answer of a size of its own, or an error.
        request_id = self._due.get(packet)
        if request_id is not None:
            self._settle(Answer(request_id, self._arrays(request_id)))
            return
        try:
            head = parse_answer(packet)
            self._replies.admit(head)
            tensors = self._arrays(head.numbers[0], head.specs) if head.kind is Answer else ()
            self._settle(head.message(tensors))
        except ProtocolError as error:
            raise self._break(named(error, self.name)) from error

    def _settle(self, message: Message) -> None:
        self._replies.deliver(message)
        if not isinstance(message, Answer | Failure) or message.request_id not in self._sent:
            return
        sent = self._sent[message.request_id]
        if sent.answer is not None:
            del self._due[sent.answer]
        if not self._replies.known(message.request_id):
            self._free(self._sent.pop(message.request_id))

    # ---- regions

    def _arrays(
        self, request_id: int, specs: tuple[TensorSpec, ...] | None = None
    ) -> tuple[np.ndarray, ...]:
        """The tensors of an answer in their rooms; `specs` are those that the worker has stated."""
        sent = self._sent[request_id]
        if specs is None:
            specs = tuple(spec for spec in sent.expect if isinstance(spec, TensorSpec))
        self._bytes_received += sum(spec.nbytes for spec in specs)
        return tuple(map(self._arena.array, sent.rooms, specs))

    def _place(self, tensor: np.ndarray) -> SendBuffer:
        found = self._lent.get(id(tensor))
        if found is not None and found.reference is not None and found.reference() is tensor:
            del self._lent[id(tensor)]
            return found
        spec = TensorSpec.of(tensor)
        region = self._arena.allocate(spec.nbytes)
        self._arena.array(region, spec)[...] = tensor
        return SendBuffer(None, region, spec)

    def _take_back(self, key: int, reference: "weakref.ref[np.ndarray]") -> None:
        found = self._lent.get(key)
        if found is not None and found.reference is reference:
            del self._lent[key]
            self._arena.free(found.region)

    def _free(self, sent: Sent) -> None:
        for region in sent.regions:
            self._arena.free(region)

    def _announce(self, index: int, size: int, descriptor: int) -> None:
        self._transmit(pack_segment(index, size), descriptor)

    # ---- the socket

    def _send(
        self,
        head: bytes,
        places: tuple[Region, ...] = (),
        rooms: tuple[Region, ...] = (),
        *,
        wait: bool = True,
    ) -> None:
        self._bytes_sent += len(head)
        self._transmit(pack_message(head, places, rooms), wait=wait)

    def _transmit(self, packet: bytes, *descriptors: int, wait: bool = True) -> None:
        """Send a packet; without `wait`, a worker that leaves its messages unread is too slow."""
        deadline = time.monotonic() + (self._load_timeout_s if wait else 0.0)
        while True:
            try:
                if descriptors:
                    socket.send_fds(self._channel, [packet], list(descriptors), socket.MSG_DONTWAIT)
                else:
                    self._channel.send(packet, socket.MSG_DONTWAIT)
            except BlockingIOError as error:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise WorkerTimeout(
                        f"worker {self.name}: it does not read its messages"
                    ) from error
                self._writable.poll(1e3 * remaining)
            except OSError as error:
                raise self._break(self._death()) from error
            else:
                return

    def _read(self, deadline: float, what: str) -> bytes:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not self._poll.poll(1e3 * remaining):
            raise WorkerTimeout(f"worker {self.name}: {what}; raise the timeout or use another one")
        try:
            size = self._channel.recv_into(self._packet)
        except OSError as error:
            raise self._break(self._death()) from error
        if not size:
            raise self._break(self._death())
        return bytes(self._packet[:size])

    def _death(self) -> WorkerUnavailable:
        if self._cut:
            return WorkerUnavailable(f"worker {self.name}: the link was cut off")
        try:
            code = self._process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return WorkerUnavailable(f"worker {self.name}: it closed the connection")
        return WorkerUnavailable(f"worker {self.name}: its process ended with status {code}")

    def _break(self, error: ProtocolError) -> ProtocolError:
        self._broken = error
        return error


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

    command   arguments to run instead of the worker's own, in the root folder: paths among them
              must be absolute; `--fd`, `--device` and `--threads` are appended

    Raises   WorkerUnavailable, WorkerTimeout when it does not come up
    """
    (link,) = connect_local_worker(
        1,
        device=device,
        threads=threads,
        name=name,
        command=command,
        start_timeout_s=start_timeout_s,
        load_timeout_s=load_timeout_s,
    )
    return link


def connect_local_worker(
    connections: int,
    *,
    device: str = "cpu",
    threads: int = 1,
    name: str | None = None,
    command: Sequence[str] | None = None,
    poll_us: int = 0,
    start_timeout_s: float = DEFAULT_START_TIMEOUT_S,
    load_timeout_s: float = DEFAULT_LOAD_TIMEOUT_S,
) -> list[ShmLink]:
    """Start one worker process with several connections, all of one name; see start_local_worker.

    poll_us   microseconds of busy polling for the next request before the worker blocks: it takes a
              core for that time, and this side need not wake the worker

    The process ends when its last link is closed. Each connection may be used by its own thread.

    Raises   WorkerUnavailable, WorkerTimeout when it does not come up
    """
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(connections)]
    try:
        process = start_worker(
            [theirs.fileno() for _, theirs in pairs],
            command,
            device=device,
            threads=threads,
            poll_us=poll_us,
        )
    except WorkerUnavailable:
        for ours, _ in pairs:
            ours.close()
        raise
    finally:
        for _, theirs in pairs:
            theirs.close()
    users: set[ShmLink] = set()
    name = name or f"local-{process.pid}"
    links = [
        ShmLink(ours, process, name=name, load_timeout_s=load_timeout_s, users=users)
        for ours, _ in pairs
    ]
    try:
        for link in links:
            link.greet(timeout_s=start_timeout_s)
    except ProtocolError:
        for link in links:
            link.close()
        raise
    return links
