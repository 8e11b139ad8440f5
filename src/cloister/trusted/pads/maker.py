"""One-time pads: `x + r` goes out, `A (x + r) - A r = A x` comes back (modulo 2^32).

A pad set is identified by a pad id and serves one input of one plan. `r` is never stored: it is
expanded (`cloister.ring.pads`) under key, pad id and node index. `A r` is made beforehand, either
here when asked (`InlinePads`) or in a store (store.py), and used once.
"""

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import UInt32

from cloister.base.private_memory import private_memory
from cloister.base.process_identity import this_process
from cloister.base.rng import KEY_BYTES, Csprng
from cloister.errors import PadReusedError
from cloister.plan.plan import Plan
from cloister.ring.pads import expand
from cloister.ring.ring_map import RingMap
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import PadSet, PadSource, erase, reclaim


class Maker(Protocol):
    """Makes the terms of pad sets of one plan: `PadMaker` here, factory.WorkerMaker elsewhere."""

    @property
    def layout(self) -> PadLayout:
        """Where each node's terms lie."""
        ...

    @property
    def parties(self) -> int:
        """How many parties would have to collude to know the pads; 0: no party sees a share."""
        ...

    def make(self, key: bytes, first_id: int, *, into: UInt32[np.ndarray, "rows words"]) -> None:
        """Write the terms of consecutive pad ids, from `first_id` on, one row for each."""
        ...


class PadMaker:
    """Computes pad sets of a plan: the offline phase.

    Secret   the pads; the maps' weights are public
    Source   Slalom (arXiv:1806.03287) section 3.2, "precomputation"
    """

    parties = 0
    """No other party sees a share of these pads."""

    def __init__(self, plan: Plan, *, threads: int = 1) -> None:
        self.layout = PadLayout.of(plan)
        self._maps = {i: RingMap(plan.linear_nodes[i].linear) for i in plan.hidden_nodes}
        self._threads = threads

    def make(self, key: bytes, first_id: int, *, into: UInt32[np.ndarray, "rows words"]) -> None:
        """See Maker; every node is one product over all rows."""
        ids = np.arange(first_id, first_id + len(into), dtype=np.int64)
        for index, terms in self.layout.views(into).items():
            ring_map = self._maps[index]
            pad = expand(key, ids, ring_map.geometry.in_shape, domain=index)
            ring_map.apply(pad, out=terms, threads=self._threads)


class InlinePads:
    """Pads made on demand, in memory, under a key that lives as long as this object.

    For several threads: an id is given out under a lock, and the pads themselves are made outside
    of it, so that threads make them at the same time.
    """

    kind = "inline"
    known_to = ()

    def __init__(self, plan: Plan, *, rng: Csprng, threads: int = 1) -> None:
        self._maker = PadMaker(plan, threads=threads)
        self.plan_digest = plan.digest
        self._process = this_process()
        self._key = rng.random_bytes(KEY_BYTES)
        self._next_id = 0
        self._spare: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> list[PadSet]:
        """Make `count` pad sets; none is ever handed out twice.

        Raises   PadReusedError in a forked process, whose parent hands out the same pads
        """
        if this_process() != self._process:
            raise PadReusedError("pads of another process; make them where they are used")
        pads = []
        for _ in range(count):
            with self._lock:
                pad_id, self._next_id = self._next_id, self._next_id + 1
                terms = self._spare.pop() if self._spare else None
            if terms is None:
                terms = private_memory(4 * self._maker.layout.words).view(np.uint32)
            self._maker.make(self._key, pad_id, into=terms[None])
            pads.append(PadSet(pad_id, self._key, terms))
        return pads

    def blame(self, pads: Sequence[PadSet]) -> str:
        """See PadSource: they were computed here."""
        return ""

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """Keep the memory of spent pads for the next ones, which overwrite it."""
        with self._lock:
            self._spare += reclaim(pads)

    def erase(self) -> None:
        """Overwrite and release the memory of spent pads."""
        with self._lock:
            spare, self._spare = self._spare, []
        erase(spare)


class PadUse:
    """The pads of one request, which can be claimed once."""

    def __init__(self, source: PadSource, count: int) -> None:
        self._source = source
        self._pads = source.take(count)
        self._claimed = False

    def claim(self) -> list[PadSet]:
        """The pad sets, one for each input.

        Raises   PadReusedError the second time
        """
        if self._claimed:
            raise PadReusedError("the pads of this request were already used")
        self._claimed = True
        return self._pads

    def blame(self) -> str:
        """See PadSource."""
        return self._source.blame(self._pads)

    def erase(self) -> None:
        """Give the spent pads back to their source, which overwrites them."""
        pads, self._pads = self._pads, []
        self._source.recycle(pads)
