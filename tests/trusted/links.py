"""A worker in the same process, with a hook that may rewrite its answers."""

from collections.abc import Callable

import numpy as np

from cloister.errors import WorkerUnavailable
from cloister.ring.linear import LinearMap
from cloister.ring.ring_map import RingMap
from cloister.wire.link import WorkerLink
from cloister.wire.messages import LoadLinear, Unchecked

Lie = Callable[[int, np.ndarray], np.ndarray]


class DirectLink(WorkerLink):
    """Answers at once; keeps everything it was sent in `seen` and everything it answered."""

    def __init__(
        self, name: str = "direct", *, lie: Lie | None = None, address: str | None = None
    ) -> None:
        super().__init__(name, address=address)
        self.seen: list[tuple[int, np.ndarray]] = []
        self.answered: list[tuple[int, np.ndarray]] = []
        self.maps: dict[int, RingMap] = {}
        self.linears: dict[int, LinearMap] = {}
        self.closed = False
        self._lie = lie
        self._answers: dict[int, np.ndarray] = {}

    def load(self, message: LoadLinear) -> None:
        self.maps[message.target_id] = RingMap(message.linear)
        self.linears[message.target_id] = message.linear

    def submit(self, request_id: int, target_id: int, tensors, expect) -> None:
        (message,) = tensors
        self.seen.append((target_id, message.copy()))
        answer = self.maps[target_id].apply(message)
        if self._lie is not None:
            answer = self._lie(target_id, answer.copy())
        self.answered.append((target_id, answer.copy()))
        assert expect[0].shape == answer.shape
        self._answers[request_id] = answer

    def receive(self, request_id: int, *, timeout_s: float):
        return (Unchecked(self._answers.pop(request_id)),)

    def release(self, request_id: int) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class DyingLink(DirectLink):
    """Works until its `fatal` message, then is gone."""

    def __init__(self, name: str, *, fatal: int) -> None:
        super().__init__(name)
        self._left = fatal

    def receive(self, request_id: int, *, timeout_s: float):
        self._left -= 1
        if self._left <= 0:
            raise WorkerUnavailable(f"worker {self.name}: died")
        return super().receive(request_id, timeout_s=timeout_s)
