"""The transcript: exactly what the untrusted side saw and said."""

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.wire.link import NativeChannel, WorkerLink
from cloister.wire.messages import (
    Expected,
    LoadLinear,
    LoadSegment,
    TensorSpec,
    Unchecked,
)
from cloister.wire.shm.exchange import PreparedRequest, PreparedRequests

Direction = Literal["to_worker", "from_worker"]

_DIRECTIONS: tuple[Direction, ...] = ("to_worker", "from_worker")


class Entry(NamedTuple):
    """One tensor that crossed the boundary; `payload` is a copy, or None when not recorded."""

    direction: Direction
    request_id: int
    target_id: int
    worker: str
    dtype: np.dtype
    shape: tuple[int, ...]
    nbytes: int
    payload: np.ndarray | None = None


class Transcript:
    """Tensors by micro-batch, in the order of the inputs; each in the order in which it crossed."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = list(entries)
        self._later: list[Callable[[], Iterable[Entry]]] = []
        self._lock = threading.Lock()

    @property
    def entries(self) -> list[Entry]:
        """All entries; deferred entries are computed when a caller asks for the first time."""
        with self._lock:
            while self._later:
                # In one step, so that an interrupt loses nothing and repeats nothing.
                known = [*self._entries, *self._later[0]()]
                self._entries, self._later = known, self._later[1:]
            return self._entries

    def defer(self, entries: Callable[[], Iterable[Entry]]) -> None:
        """Entries that come next: a request of hundreds of layers does not wait for its record."""
        self._later.append(entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transcript) and self.entries == other.entries

    __hash__ = None  # type: ignore[assignment]  # as of every class with a mutable value

    def __repr__(self) -> str:
        return f"Transcript({self.entries!r})"

    def __reduce__(self) -> tuple[type["Transcript"], tuple[list[Entry]]]:
        return Transcript, (self.entries,)

    def follow(self, other: "Transcript") -> None:
        """The entries of another transcript come next."""
        self.defer(lambda: other.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def messages(
        self, *, target_id: int | None = None, direction: Direction | None = None
    ) -> list[Entry]:
        """The entries of one target, one direction, or both."""
        return [
            entry
            for entry in self.entries
            if target_id in (None, entry.target_id) and direction in (None, entry.direction)
        ]

    def nbytes(self, direction: Direction | None = None) -> int:
        """Bytes that crossed, in one direction or both."""
        return sum(entry.nbytes for entry in self.messages(direction=direction))

    def save(self, path: Path) -> None:
        """Write the transcript as an .npz file for its owner alone: it may hold inputs."""
        entries = self.entries
        arrays: dict[str, np.ndarray] = {
            "direction": np.array([_DIRECTIONS.index(e.direction) for e in entries], np.uint8),
            "request_id": np.array([e.request_id for e in entries], np.int64),
            "target_id": np.array([e.target_id for e in entries], np.int64),
            "worker": np.array([e.worker for e in entries], np.str_),
            "dtype": np.array([e.dtype.str for e in entries], np.str_),
            "shape": np.array([" ".join(map(str, e.shape)) for e in entries], np.str_),
        }
        for i, entry in enumerate(entries):
            if entry.payload is not None:
                arrays[f"payload_{i}"] = entry.payload
        with files.replacing(path, private=True) as file:
            np.savez(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path) -> "Transcript":
        """Read a file written by `save`.

        Raises   InputError when it is something else
        """
        with parsing(f"{path}: not a transcript written by Cloister"):
            with open_regular(path) as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return Transcript([_entry(arrays, i) for i in range(len(arrays["request_id"]))])


class RecordingLink(WorkerLink):
    """Passes everything through to a link and enters it in a transcript.

    payloads   keep a copy of every tensor, not only its size; no native channel then
    """

    def __init__(self, link: WorkerLink, transcript: Transcript, *, payloads: bool) -> None:
        super().__init__(link.name, address=link.address)
        self._link = link
        self._transcript = transcript
        self._payloads = payloads
        self._targets: dict[int, int] = {}

    @property
    def pid(self) -> int | None:
        """See WorkerLink."""
        return self._link.pid

    @property
    def bytes_sent(self) -> int:
        """See WorkerLink."""
        return self._link.bytes_sent

    @property
    def bytes_received(self) -> int:
        """See WorkerLink."""
        return self._link.bytes_received

    def load(self, message: LoadLinear | LoadSegment) -> None:
        """See WorkerLink; weights are public to the worker and not recorded."""
        self._link.load(message)

    def send_buffer(self, spec: TensorSpec) -> np.ndarray:
        """See WorkerLink."""
        return self._link.send_buffer(spec)

    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[Expected, ...],
    ) -> None:
        """See WorkerLink."""
        for tensor in tensors:
            self._record("to_worker", request_id, target_id, tensor)
        self._targets[request_id] = target_id
        self._link.submit(request_id, target_id, tensors, expect)

    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """See WorkerLink; a recorded reply is read once more, for the record alone."""
        replies = self._link.receive(request_id, timeout_s=timeout_s)
        target_id = self._targets.get(request_id, -1)
        for reply in replies:
            self._record("from_worker", request_id, target_id, reply.expose_unchecked())
        return replies

    def release(self, request_id: int) -> None:
        """See WorkerLink."""
        self._targets.pop(request_id, None)
        self._link.release(request_id)

    def close(self) -> None:
        """See WorkerLink."""
        self._link.close()

    def cut(self) -> None:
        """See WorkerLink."""
        self._link.cut()

    def native_channel(self) -> NativeChannel | None:
        """See WorkerLink."""
        return None if self._payloads else self._link.native_channel()

    def exchanged(self, first_request_id: int, exchanges: PreparedRequests) -> None:
        """See WorkerLink."""
        self._link.exchanged(first_request_id, exchanges)
        name = self.name

        def entries() -> Iterator[Entry]:
            for request_id, exchange in enumerate(exchanges.requests, first_request_id):
                target = exchange.target_id
                yield _noted("to_worker", request_id, target, name, exchange.spec)
                yield _noted("from_worker", request_id, target, name, exchange.expect)

        self._transcript.defer(entries)

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
        self._note("to_worker", request_id, exchange.target_id, exchange.spec)
        self._link.complete(
            request_id, exchange, sent=sent, came=came, deadline_s=deadline_s, timeout_s=timeout_s
        )
        self._note("from_worker", request_id, exchange.target_id, exchange.expect)

    def abandon(self, request_id: int, exchange: PreparedRequest) -> None:
        """See WorkerLink."""
        self._note("to_worker", request_id, exchange.target_id, exchange.spec)
        self._link.abandon(request_id, exchange)

    def _note(
        self, direction: Direction, request_id: int, target_id: int, spec: TensorSpec
    ) -> None:
        self._transcript.entries.append(_noted(direction, request_id, target_id, self.name, spec))

    def _record(
        self, direction: Direction, request_id: int, target_id: int, tensor: np.ndarray
    ) -> None:
        noted = _noted(direction, request_id, target_id, self.name, TensorSpec.of(tensor))
        payload = tensor.copy() if self._payloads else None
        self._transcript.entries.append(noted._replace(payload=payload))


def _noted(
    direction: Direction, request_id: int, target_id: int, worker: str, spec: TensorSpec
) -> Entry:
    return Entry(direction, request_id, target_id, worker, spec.dtype, spec.shape, spec.nbytes)


def _entry(file: dict[str, np.ndarray], i: int) -> Entry:
    dtype = np.dtype(str(file["dtype"][i]))
    shape = tuple(int(size) for size in str(file["shape"][i]).split())
    payload = file.get(f"payload_{i}")
    spec = TensorSpec(dtype, shape)
    if payload is not None and TensorSpec.of(payload) != spec:
        raise ValueError(f"payload {i} is not {spec}")
    return Entry(
        _DIRECTIONS[int(file["direction"][i])],
        int(file["request_id"][i]),
        int(file["target_id"][i]),
        str(file["worker"][i]),
        dtype,
        shape,
        spec.nbytes,
        payload,
    )
