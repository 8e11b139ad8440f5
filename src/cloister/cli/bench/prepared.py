"""Pads that are there before a measured call begins."""

import threading
import time
from collections.abc import Sequence

from cloister.base.rng import SystemRandom
from cloister.errors import PadsExhausted
from cloister.plan.plan import Plan
from cloister.trusted.pads.maker import InlinePads
from cloister.trusted.pads.store import PadSet


class PadsAhead:
    """Pads in memory, made when `fill` is called, so that a call does not wait for them."""

    kind = "prepared"

    def __init__(self, plan: Plan) -> None:
        self._source = InlinePads(plan, rng=SystemRandom())
        self._ready: list[PadSet] = []
        self.made_ms: list[float] = []
        self._lock = threading.Lock()

    @property
    def pad_key(self) -> bytes:
        """See PadSource."""
        return self._source.pad_key

    @property
    def plan_digest(self) -> bytes:
        """See PadSource."""
        return self._source.plan_digest

    def fill(self, count: int) -> None:
        """Make pads until so many are there; `made_ms` keeps the CPU time of each."""
        with self._lock:
            while len(self._ready) < count:
                started = time.process_time()
                self._ready += self._source.take(1)
                self.made_ms.append(1e3 * (time.process_time() - started))

    def take(self, count: int) -> list[PadSet]:
        """See PadSource."""
        with self._lock:
            if count > len(self._ready):
                raise PadsExhausted("not enough pads were prepared")
            taken, self._ready = self._ready[:count], self._ready[count:]
        return taken

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """See PadSource."""
        self._source.recycle(pads)

    def erase(self) -> None:
        """See PadSource."""
        self._source.erase()
