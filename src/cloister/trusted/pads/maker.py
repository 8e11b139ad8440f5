"""One-time pads: `x + r` goes out, `A (x + r) - A r = A x` comes back (modulo 2^32).

A pad set is identified by a pad id and serves one input of one plan. `r` is never stored: it is
expanded (`cloister.ring.pads`) under key, pad id and node index. `A r` is made beforehand, either
here when asked (`InlinePads`) or in a store (store.py), and used once.
"""

import os
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from cloister.base.rng import Csprng
from cloister.errors import PadReusedError
from cloister.plan.plan import Plan
from cloister.ring.pads import expand
from cloister.ring.ring_map import RingMap
from cloister.trusted.pads.source import PadSet, PadSource, erase, reclaim


class PadMaker:
    """Computes pad sets of a plan: the offline phase.

    Secret   the pads; the maps' weights are public
    Source   Slalom (arXiv:1806.03287) section 3.2, "precomputation"
    """

    parties = 0
    """No other party sees a share of these pads."""

    def __init__(self, plan: Plan, *, threads: int = 1) -> None:
        self._geometries = {i: plan.linear_nodes[i].linear.geometry for i in plan.hidden_nodes}
        self._maps = {i: RingMap(plan.linear_nodes[i].linear) for i in plan.hidden_nodes}
        self._threads = threads

    def make(
        self, pad_key: bytes, pad_id: int, *, into: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, np.ndarray]:
        """`A r` of every blinded node for one pad id, uint32 (oh, ow, oc) by node index.

        `into` is the memory of a spent pad set, which is then overwritten and returned.
        """
        unblinding, number = {}, np.array([pad_id], np.int64)
        for index, ring_map in self._maps.items():
            geometry = self._geometries[index]
            pad = expand(pad_key, number, geometry.in_shape, domain=index)
            out = into[index][None] if into else None
            unblinding[index] = ring_map.apply(pad, out=out, threads=self._threads)[0]
        return unblinding


class InlinePads:
    """Pads made on demand, in memory, under a key that lives as long as this object.

    For several threads: an id is given out under a lock, and the pads themselves are made outside
    of it, so that threads make them at the same time.
    """

    kind = "inline"

    def __init__(self, plan: Plan, *, rng: Csprng, threads: int = 1) -> None:
        self._maker = PadMaker(plan, threads=threads)
        self.plan_digest = plan.digest
        self._process = os.getpid()
        self.pad_key = rng.random_bytes(32)
        self._next_id = 0
        self._spare: list[dict[int, np.ndarray]] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> list[PadSet]:
        """Make `count` pad sets; none is ever handed out twice.

        Raises   PadReusedError in a forked process, whose parent hands out the same pads
        """
        if os.getpid() != self._process:
            raise PadReusedError("pads of another process; make them where they are used")
        pads = []
        for _ in range(count):
            with self._lock:
                pad_id, self._next_id = self._next_id, self._next_id + 1
                into = self._spare.pop() if self._spare else None
            pads.append(PadSet(pad_id, self._maker.make(self.pad_key, pad_id, into=into)))
        return pads

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
        self.key = source.pad_key

    def claim(self, node_indices: Sequence[int]) -> tuple[list[int], list[list[np.ndarray]]]:
        """The pad ids, and `A r` by node and input.

        Raises   PadReusedError the second time
        """
        if self._claimed:
            raise PadReusedError("the pads of this request were already used")
        self._claimed = True
        unblinding = [[pad.unblinding[index] for pad in self._pads] for index in node_indices]
        return [pad.pad_id for pad in self._pads], unblinding

    def erase(self) -> None:
        """Give the spent pads back to their source, which overwrites them."""
        pads, self._pads = self._pads, []
        self._source.recycle(pads)
