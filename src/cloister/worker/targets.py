"""The targets that a worker has loaded: each is kept once, for all clients that loaded the same.

Clients of one worker are several lanes of one trusted runtime, or several runtimes that serve one
model. Contents are told apart by SHA-256 over everything that matters, so no client can put its
own weights in the place of another's. A client can find out whether another client loaded the same
weights before, since loading is then faster. Weights are not secret to a worker, but do not share a
worker with a client that must not know which model is served.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from cloister.ring.linear import LinearMap
from cloister.worker.budget import MemoryBudget


class Cost(NamedTuple):
    """Bytes that a target takes for a request, as far as they are known beforehand.

    kept     from then on, itself included; 0: no more than it was loaded for
    answer   until the answer is sent
    """

    kept: int = 0
    answer: int = 0


class Target(Protocol):
    """Something loaded: takes a request's tensors and makes the answer's."""

    def cost(self, tensors: tuple[np.ndarray, ...]) -> Cost:
        """The memory that an answer takes.

        Raises   ShapeError when the tensors are no request of this target, RangeError when they
                 would take far more than their own size
        """

    def run(self, tensors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Apply the target to what `cost` was asked about; may be called by several threads."""


@dataclass(eq=False)
class Shared:
    """A target and how many hold it; `lock` is held while it is made."""

    key: bytes
    nbytes: int
    holders: int = 0
    target: Target | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class TargetStore:
    """Targets by content, counted once in the budget. Thread-safe."""

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        self.budget = budget or MemoryBudget()
        self._shared: dict[bytes, Shared] = {}
        self._lock = threading.Lock()

    def hold(self, key: bytes, nbytes: int, make: Callable[[], Target]) -> tuple[Shared, Target]:
        """The target of this content, made by the first who asks; then `let_go`.

        Raises   RangeError when the memory is spent, and whatever `make` raises
        """
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                self.budget.take(nbytes)
                shared = self._shared[key] = Shared(key, nbytes)
            shared.holders += 1
        try:
            with shared.lock:
                if shared.target is None:
                    shared.target = make()
                return shared, shared.target
        except BaseException:
            self.let_go(shared)
            raise

    def grow(self, shared: Shared, nbytes: int) -> None:
        """Count a target that is held as this large from now on, unless it is so already.

        Raises   RangeError when the memory is spent
        """
        if nbytes <= shared.nbytes:  # it never shrinks, so an old value is no danger
            return
        with self._lock:
            more = nbytes - shared.nbytes
            if more > 0:
                self.budget.take(more)
                shared.nbytes = nbytes

    def let_go(self, shared: Shared) -> None:
        """One holder less; the last one takes the target along."""
        with self._lock:
            shared.holders -= 1
            if shared.holders == 0:
                del self._shared[shared.key]
                self.budget.give_back(shared.nbytes)


def key_of_linear(linear: LinearMap) -> bytes:
    """What two linear maps have in common exactly if they are the same map."""
    digest = hashlib.sha256(linear.geometry.to_bytes())
    digest.update(np.ascontiguousarray(linear.weights).data)
    return b"linear" + digest.digest()


def key_of_segment(model: bytes) -> bytes:
    """The same for an open segment."""
    return b"segment" + hashlib.sha256(model).digest()
