"""A link: the trusted side's view of one worker, over any transport."""

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from cloister.errors import PlanError, ProtocolError
from cloister.ring.linear import LinearMap
from cloister.wire.messages import (
    Expected,
    LoadLinear,
    LoadSegment,
    MakePads,
    TensorSpec,
    Unchecked,
)
from cloister.wire.replies import PendingReplies
from cloister.wire.shm.arena import Region
from cloister.wire.shm.exchange import PreparedRequest, PreparedRequests


class NativeChannel(Protocol):
    """A socket and shared memory over which native code exchanges messages by itself."""

    @property
    def descriptor(self) -> int:
        """The file descriptor of a SOCK_SEQPACKET socket."""

    def reserve(self, nbytes: int) -> Region:
        """Memory for many requests, until `unreserve`."""

    def unreserve(self, region: Region) -> None:
        """Give reserved memory back."""

    def request_view(self, region: Region, spec: TensorSpec) -> np.ndarray:
        """Where a request goes: the worker reads it while it is written."""

    def answer_view(self, region: Region, spec: TensorSpec) -> Unchecked[np.ndarray]:
        """Where an answer comes: the worker can write to it at any time."""


class WorkerLink(ABC):
    """One worker. Not for use by several threads at once.

    Every call raises WorkerUnavailable when the worker cannot be reached, died or refuses,
    WorkerTimeout when it is too slow, and ProtocolError when it breaks the protocol. After a
    ProtocolError other than a timeout the link is unusable and repeats the error.

    name      for reports and errors; unique among a session's workers
    address   HOST:PORT of a worker that is reached over the network; None: it is on this machine
    """

    def __init__(self, name: str, *, address: str | None = None) -> None:
        self.name = name
        self.address = address
        self._bytes_sent = 0
        self._bytes_received = 0

    @property
    def pid(self) -> int | None:
        """Process id of a worker that was started on this machine."""
        return None

    @property
    def bytes_sent(self) -> int:
        """Bytes sent to the worker so far."""
        return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes received from the worker so far."""
        return self._bytes_received

    def load_linear(self, target_id: int, linear: LinearMap) -> None:
        """Give the worker a linear map; returns when it is in place."""
        self.load(LoadLinear(target_id, linear))

    def load_segment(self, target_id: int, model: bytes) -> None:
        """Give the worker an open ONNX segment; returns when it is in place."""
        self.load(LoadSegment(target_id, model))

    @abstractmethod
    def load(self, message: LoadLinear | LoadSegment) -> None:
        """Give the worker what it will be asked for; returns when it is in place."""

    def send_buffer(self, spec: TensorSpec) -> np.ndarray:
        """A writable array for one later `submit`; private memory, unless a link says otherwise.

        It may be memory the worker reads *as it is being written*: write each word once, with its
        final value, and never write anything the worker must not see.
        """
        return np.empty(spec.shape, spec.dtype)

    def exchange(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[Expected, ...],
        *,
        timeout_s: float,
    ) -> tuple[Unchecked[np.ndarray], ...]:
        """Send a request and wait for its answer: `submit`, then `receive`."""
        self.submit(request_id, target_id, tensors, expect)
        return self.receive(request_id, timeout_s=timeout_s)

    @abstractmethod
    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[Expected, ...],
    ) -> None:
        """Send a request and state what its answer must look like.

        An array from `send_buffer` is sent without a copy and must not be written again before
        `release`; any other array is copied.
        """

    @property
    def encrypted(self) -> bool:
        """Whether no listener on a network can read what is sent."""
        return False

    def make_pads(self, message: MakePads) -> None:
        """Ask a maker for the terms of a block, which `receive` waits for."""
        raise PlanError(f"worker {self.name}: the link makes no pads")

    @abstractmethod
    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """Wait for a request's answer; dtype, shape and byte count are exactly those expected.

        Several requests may be outstanding and are answered in any order. The arrays may be memory
        the worker can still write: each word is read once, by the check.
        """

    @abstractmethod
    def release(self, request_id: int) -> None:
        """The buffers of a request, sent and received, are not used any more."""

    @abstractmethod
    def close(self) -> None:
        """End the connection; a local worker process is stopped. May be called twice."""

    def cut(self) -> None:
        """End the connection from another thread than the one that uses the link.

        The thread that waits for an answer gets WorkerUnavailable.
        """
        self.close()

    # ---- links with a native channel

    def native_channel(self) -> NativeChannel | None:
        """The channel of an idle link; None where messages have to go through `exchange`."""
        return None

    def exchanged(self, first_request_id: int, exchanges: PreparedRequests) -> None:
        """Requests with consecutive ids were sent and answered over the native channel."""
        raise PlanError(f"worker {self.name}: the link has no native channel")

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
        """Take over an exchange that native code has begun, and wait for its answer.

        sent         False: the socket took nothing
        came         a packet that was read instead of the answer; it may be an earlier request's
        deadline_s   on time.monotonic()'s clock
        """
        raise PlanError(f"worker {self.name}: the link has no native channel")

    def abandon(self, request_id: int, exchange: PreparedRequest) -> None:
        """An exchange that native code has begun is given up; its answer may still come."""
        raise PlanError(f"worker {self.name}: the link has no native channel")


class MessageLink(WorkerLink):
    """A link that speaks the messages of messages.py, and admits only the replies that are due."""

    def __init__(self, name: str, *, address: str | None = None) -> None:
        super().__init__(name, address=address)
        self._replies = PendingReplies(name)
        self._broken: ProtocolError | None = None

    @property
    def device(self) -> str:
        """The device the worker says it uses."""
        return self._replies.welcome.device if self._replies.welcome else "unknown"

    def _check_open(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _taken(self, request_id: int) -> tuple[Unchecked[np.ndarray], ...] | None:
        """The answer to a request, or None while it is outstanding."""
        tensors = self._replies.take(request_id)
        return None if tensors is None else tuple(Unchecked(tensor) for tensor in tensors)
