"""The replies that a link expects from its worker, and the check of each reply that comes."""

import numpy as np

from cloister.errors import ProtocolError, WorkerError, WorkerUnavailable
from cloister.wire.codec import Head
from cloister.wire.messages import (
    PROTOCOL_VERSION,
    Answer,
    Expected,
    Failure,
    Loaded,
    Message,
    TensorSpec,
    Welcome,
)


def named(error: ProtocolError, worker: str) -> WorkerError:
    """The error with its worker's name in front, which the codec does not know."""
    return error if isinstance(error, WorkerError) else WorkerError(f"worker {worker}: {error}")


class PendingReplies:
    """Outstanding requests of one link, by id.

    A worker may send exactly what is outstanding, once each; everything else is a ProtocolError.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._expected: dict[int, tuple[Expected, ...]] = {}
        self._abandoned: set[int] = set()
        self._answers: dict[int, tuple[np.ndarray, ...]] = {}
        self._refusals: dict[int, str] = {}
        self._loading: int | None = None
        self._greeting = False
        self.welcome: Welcome | None = None

    def greet(self) -> None:
        """A `Welcome` is due."""
        self._greeting = True

    def load(self, target_id: int) -> None:
        """A `Loaded` is due."""
        self._loading = target_id

    def open(self, request_id: int, expect: tuple[Expected, ...]) -> None:
        """An `Answer` is due.

        Raises   ProtocolError when the id is not new
        """
        if request_id < 1 or self.known(request_id):
            raise WorkerError(f"worker {self._worker}: request id {request_id} is in use")
        self._expected[request_id] = expect

    def known(self, request_id: int) -> bool:
        """Whether a request was submitted and not yet released."""
        states = (self._expected, self._answers, self._refusals)
        return any(request_id in state for state in states)

    def admit(self, head: Head) -> None:
        """Check a head against what is due, before its tensors get memory.

        Raises   ProtocolError
        """
        if head.kind is Answer:
            self._admit_answer(head.numbers[0], head.specs)
        elif head.kind is Loaded:
            if head.numbers[0] != self._loading:
                raise self._error(f"reports target {head.numbers[0]} loaded without being asked")
        elif head.kind is Welcome:
            if not self._greeting:
                raise self._error("sent a second welcome")
            if head.numbers[0] != PROTOCOL_VERSION:
                raise self._error(
                    f"speaks protocol {head.numbers[0]}, not {PROTOCOL_VERSION}; "
                    "install the same Cloister version on both sides"
                )
        elif head.kind is Failure:
            if head.numbers[0] not in self._expected and not self._waits_for_control(head):
                raise self._error(f"refuses unknown request {head.numbers[0]}")
        else:
            raise self._error(f"sent a {head.kind.__name__}")

    def deliver(self, message: Message) -> None:
        """Enter a message whose head was admitted."""
        match message:
            case Answer(request_id, tensors):
                self._settle(request_id)
                if request_id in self._abandoned:
                    self._abandoned.discard(request_id)
                else:
                    self._answers[request_id] = tensors
            case Failure(request_id, text) if request_id:
                self._settle(request_id)
                if request_id in self._abandoned:
                    self._abandoned.discard(request_id)
                else:
                    self._refusals[request_id] = text
            case Failure(_, text):
                self._loading, self._greeting = None, False
                self._refusals[0] = text
            case Loaded():
                self._loading = None
            case Welcome():
                self._greeting = False
                self.welcome = message
            case _:
                raise self._error(f"sent a {type(message).__name__}")

    @property
    def idle(self) -> bool:
        """Whether nothing is due."""
        return not (self._expected or self._greeting or self._loading is not None)

    def take(self, request_id: int) -> tuple[np.ndarray, ...] | None:
        """The answer to a request, or None while it is outstanding.

        Raises   ProtocolError for an id that is not outstanding, WorkerUnavailable for a refusal
        """
        if request_id in self._refusals:
            raise self.refusal(request_id)
        if request_id in self._answers:
            return self._answers[request_id]
        if request_id not in self._expected:
            raise WorkerError(f"worker {self._worker}: request {request_id} is not outstanding")
        return None

    def control_done(self) -> bool:
        """Whether the greeting and every load were answered.

        Raises   WorkerUnavailable when the worker refused
        """
        if 0 in self._refusals:
            raise self.refusal(0)
        return not self._greeting and self._loading is None

    def refusal(self, request_id: int) -> WorkerUnavailable:
        """The worker's refusal as an error; a refused load is forgotten by this."""
        text = self._refusals[request_id] if request_id else self._refusals.pop(0)
        return WorkerUnavailable(f"worker {self._worker} refuses: {text}")

    def release(self, request_id: int) -> bool:
        """Forget a request; True when the worker cannot answer it any more."""
        self._answers.pop(request_id, None)
        self._refusals.pop(request_id, None)
        if request_id in self._expected:
            # Its late answer is still to come, and is dropped then.
            self._abandoned.add(request_id)
            return False
        return True

    def _admit_answer(self, request_id: int, specs: tuple[TensorSpec, ...]) -> None:
        expect = self._expected.get(request_id)
        if expect is None:
            raise self._error(f"answers request {request_id}, which is not outstanding")
        if len(specs) != len(expect):
            raise self._error(f"answers with {len(specs)} tensors, expected {len(expect)}")
        for spec, wanted in zip(specs, expect, strict=True):
            if not wanted.admits(spec):
                raise self._error(f"answers with {spec}, expected {wanted}")

    def _settle(self, request_id: int) -> None:
        if self._expected.pop(request_id, None) is None:
            raise self._error(f"answers request {request_id}, which is not outstanding")

    def _waits_for_control(self, head: Head) -> bool:
        return head.numbers[0] == 0 and (self._greeting or self._loading is not None)

    def _error(self, what: str) -> WorkerError:
        return WorkerError(f"worker {self._worker} {what}; do not use it again")
