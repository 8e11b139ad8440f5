"""A link: the trusted side's view of one worker, whatever carries the bytes."""

from typing import Protocol, runtime_checkable

import numpy as np

from cloister.ring.linear import LinearMap
from cloister.wire.messages import TensorSpec, Unchecked


@runtime_checkable
class WorkerLink(Protocol):
    """One worker. Not for use by several threads at once.

    Every call raises WorkerUnavailable when the worker cannot be reached, died or refuses,
    WorkerTimeout when it is too slow, and ProtocolError when it breaks the protocol. After a
    ProtocolError other than a timeout the link is unusable and repeats the error.
    """

    @property
    def name(self) -> str:
        """Name for reports and errors; unique among a session's workers."""

    @property
    def address(self) -> str | None:
        """HOST:PORT of a worker that is reached over the network; None: it is on this machine."""

    @property
    def bytes_sent(self) -> int:
        """Bytes sent to the worker so far."""

    @property
    def bytes_received(self) -> int:
        """Bytes received from the worker so far."""

    def load_linear(self, target_id: int, linear: LinearMap) -> None:
        """Give the worker a linear map; returns when it is in place."""

    def load_segment(self, target_id: int, model: bytes) -> None:
        """Give the worker an open ONNX segment; returns when it is in place."""

    def send_buffer(self, spec: TensorSpec) -> np.ndarray:
        """A writable array for one later `submit`.

        It may be memory the worker reads *as it is being written*: write each word once, with its
        final value, and never write anything the worker must not see.
        """

    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[TensorSpec, ...],
    ) -> None:
        """Send a request and state what its answer must look like.

        An array from `send_buffer` is sent without a copy and must not be written again before
        `release`; any other array is copied.
        """

    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """Wait for a request's answer; dtype, shape and byte count are exactly those expected.

        Several requests may be outstanding and are answered in any order. The arrays may be memory
        the worker can still write: each word is read once, by whoever checks it.
        """

    def release(self, request_id: int) -> None:
        """The buffers of a request, sent and received, are not used any more."""

    def close(self) -> None:
        """Say goodbye; a local worker process is stopped. May be called twice."""
