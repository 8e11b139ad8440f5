"""What a worker has loaded: kept once, however many of its clients loaded the same.

Clients of one worker are several lanes of one trusted runtime, or several runtimes that serve one
model. Contents are told apart by SHA-256 over everything that matters, so no client can put its
own weights in the place of another's. What a client can find out is whether somebody loaded these
very weights before, since loading is then faster: weights are not secret to a worker, but do not
share a worker with those who must not know which model is served.
"""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Protocol

import numpy as np

from cloister.errors import RangeError
from cloister.field.linear import LinearMap

DEFAULT_BUDGET_BYTES = 32 << 30


class Target(Protocol):
    """Something loaded: takes a request's tensors and makes the answer's."""

    def run(self, tensors: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Apply the target; may be called by several threads."""


class MemoryBudget:
    """Bytes that all clients of one worker may keep loaded, together. Thread-safe."""

    def __init__(self, total_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self._left = total_bytes
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> None:
        """Reserve memory.

        Raises   RangeError when it is spent
        """
        with self._lock:
            if nbytes > self._left:
                raise RangeError(
                    f"worker memory: {nbytes} B wanted, which is more than is left; use fewer "
                    "clients or a larger worker"
                )
            self._left -= nbytes

    def give_back(self, nbytes: int) -> None:
        """Return reserved memory."""
        with self._lock:
            self._left += nbytes


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
        self._budget = budget or MemoryBudget()
        self._shared: dict[bytes, Shared] = {}
        self._lock = threading.Lock()

    def hold(self, key: bytes, nbytes: int, make: Callable[[], Target]) -> tuple[Shared, Target]:
        """The target of this content, made by the first who asks; then `let_go`.

        Raises   RangeError when the memory is spent, and whatever `make` raises
        """
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                self._budget.take(nbytes)
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

    def let_go(self, shared: Shared) -> None:
        """One holder less; the last one takes the target along."""
        with self._lock:
            shared.holders -= 1
            if shared.holders == 0:
                del self._shared[shared.key]
                self._budget.give_back(shared.nbytes)


def key_of_linear(linear: LinearMap) -> bytes:
    """What two linear maps have in common exactly if they are the same map."""
    digest = hashlib.sha256(repr(astuple(linear.geometry)).encode())
    digest.update(np.ascontiguousarray(linear.weights).data)
    return b"linear" + digest.digest()


def key_of_segment(model: bytes) -> bytes:
    """The same for an open segment."""
    return b"segment" + hashlib.sha256(model).digest()
