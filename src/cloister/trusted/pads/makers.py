"""Pads from makers: other parties, each of which gets a seed and returns `A r + k`.

A maker expands `r` itself, so it knows the pads that it makes; the session's worker sees `x + r`.
Each of them alone learns nothing of `x`, and both together learn all of it. Nothing tests a maker's
answer by itself: where every blinded node is checked, a wrong term is a wrong `A x`, which that
check refuses. Proofs: docs/protocols/padmaker.md.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import UInt32

from cloister.base.process_identity import this_process
from cloister.base.rng import Csprng
from cloister.base.tls_identity import load_certificate
from cloister.errors import (
    InputError,
    MakerError,
    PadReusedError,
    PlanError,
    ProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)
from cloister.plan.plan import Plan
from cloister.ring.pad_block import BLOCK_ROWS_MAX, SEED_BYTES, BlockKeys
from cloister.trusted.checks import for_native
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import KnownTo, PadSet, reclaim
from cloister.trusted.pads.store import PadStore, ReservedBlock
from cloister.wire.grpc.connect import connect
from cloister.wire.grpc.places import machines
from cloister.wire.link import WorkerLink
from cloister.wire.messages import MakePads

Reserve = Callable[[KnownTo], tuple[bytes, int]]
"""A seed and the pad id of its first row for a maker; no other maker was given them."""


@dataclass(frozen=True)
class MakerAddress:
    """Where a maker is reached.

    certificate   file with the one that it shows, which is pinned; None: without encryption
    """

    address: str
    certificate: Path | None = None


def require_checked(plan: Plan) -> None:
    """Refuse a plan that would not notice wrong pads, or that needs none.

    Raises   PlanError
    """
    if not plan.hidden_nodes:
        raise PlanError(f"policy {plan.policy!r} blinds nothing; leave out the makers of pads")
    if not plan.pads_checked:
        nodes = (plan.linear_nodes[i] for i in plan.hidden_nodes)
        name = next(node.node for node in nodes if not plan.protection_of(node).checked)
        raise PlanError(
            f"node {name!r} is blinded and not checked, so that a maker could change its values "
            "unnoticed; use policy slalom, or have two workers make the pads, in shares that are "
            "checked (cloister pads make --worker)"
        )


def open_links(
    makers: Sequence[str | MakerAddress | WorkerLink], *, timeout_s: float, insecure_plaintext: bool
) -> list[WorkerLink]:
    """The links to makers, each connected at first use.

    Raises   InputError for an address without a certificate, or an unusable certificate, and for a
             link that a listener on the network could read, unless `insecure_plaintext`
    """
    if isinstance(makers, str):
        raise InputError("makers= takes a list, such as [MakerAddress('host:port', certificate)]")
    links: list[WorkerLink] = []
    for given in makers:
        maker = MakerAddress(given) if isinstance(given, str) else given
        link = maker if isinstance(maker, WorkerLink) else _open(maker, timeout_s=timeout_s)
        if not (link.encrypted or insecure_plaintext):
            raise InputError(
                f"maker {link.name}: is reached without encryption, and whoever reads a seed knows "
                "its pads; serve it with `cloister worker serve --tls DIR` and give its "
                "certificate (--maker-certificate; --insecure-plaintext: for tests)"
            )
        if any(link.name == other.name for other in links):
            raise InputError(f"maker {link.name} is given twice")
        links.append(link)
    if not links:
        raise InputError("makers= is empty; leave it out to make the pads here")
    return links


def _open(maker: MakerAddress, *, timeout_s: float) -> WorkerLink:
    certificate = None if maker.certificate is None else load_certificate(maker.certificate)
    return connect(maker.address, timeout_s=timeout_s, certificate=certificate)


def is_one_party(
    makers: Sequence[KnownTo],
    workers: Sequence[str | WorkerLink] | None,
    *,
    insecure_one_party: bool,
) -> bool:
    """Whether a maker and a worker are of one party, as far as their addresses show it.

    Raises   InputError if so, unless `insecure_one_party`; also for a name that does not resolve
    """
    owners: dict[str, str] = {}
    for worker in (None,) if workers is None else workers:
        address = worker.address if isinstance(worker, WorkerLink) else worker
        owners.update(dict.fromkeys(machines(address), address or "of this machine"))
    found = False
    for maker in makers:
        for machine in sorted(machines(maker.address) & owners.keys()):
            if not insecure_one_party:
                raise InputError(
                    f"maker {maker.address or 'of this machine'} and worker {owners[machine]} are "
                    f"one party ({machine}), which could read every input; choose a maker of "
                    "another owner, on another machine (insecure_one_party, --insecure-one-party: "
                    "for tests)"
                )
            found = True
    return found


@dataclass(eq=False, repr=False)
class MadeBlock:
    """The masked terms of a block, which may lie in memory that the maker still writes.

    Secret   keys
    """

    maker: "_Maker"
    request_id: int
    keys: BlockKeys
    first_id: int
    terms: UInt32[np.ndarray, "rows words"]

    def __post_init__(self) -> None:
        self.rows_left = len(self.terms)

    def release(self) -> None:
        """The terms are not read any more."""
        self.maker.release(self.request_id)


class _Maker:
    """One maker; several threads take turns."""

    def __init__(self, link: WorkerLink) -> None:
        self.link = link
        self.known = KnownTo(link.address, link.encrypted)
        self.turn = threading.Lock()
        self._loaded: Plan | None = None
        self._next_request = 1
        self._spent: deque[int] = deque()

    def make(
        self, plan: Plan, layout: PadLayout, seed: bytes, first_id: int, *, rows: int,
        timeout_s: float,
    ) -> MadeBlock:  # fmt: skip
        """Have a block made, in this thread's turn."""
        self._release_spent()
        if self._loaded is not plan:
            self._loaded = None  # half loaded, it would apply maps of another plan
            for index in layout.shapes:
                self.link.load_linear(index, plan.linear_nodes[index].linear)
            self._loaded = plan
        request_id, self._next_request = self._next_request, self._next_request + 1
        targets, offsets = tuple(layout.offsets), tuple(layout.offsets.values())
        self.link.make_pads(
            MakePads(request_id, seed, first_id, rows, targets, offsets, layout.words)
        )
        try:
            (reply,) = self.link.receive(request_id, timeout_s=timeout_s)
        except BaseException:
            self.link.release(request_id)
            raise
        return MadeBlock(self, request_id, BlockKeys.of(seed), first_id, for_native(reply))

    def release(self, request_id: int) -> None:
        """Give the memory of an answer back: now, or before the next request."""
        self._spent.append(request_id)
        if self.turn.acquire(blocking=False):
            try:
                self._release_spent()
            finally:
                self.turn.release()

    def _release_spent(self) -> None:
        while self._spent:
            self.link.release(self._spent.popleft())


class Makers:
    """The makers of one session or store; a maker that lied, hung or died is not used again.

    timeout_s   for each block

    A link serves this object alone. Thread-safe.
    """

    def __init__(self, links: Sequence[WorkerLink], *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._all = [_Maker(link) for link in links]
        self._makers = list(self._all)
        self._lost: list[str] = []
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        plan: Plan,
        makers: Sequence[str | MakerAddress | WorkerLink],
        *,
        timeout_s: float,
        insecure_plaintext: bool = False,
    ) -> Self:
        """The makers of a plan's pads; the session sees to it that no worker is of their party.

        Raises   PlanError and InputError, see `require_checked`, `open_links`
        """
        require_checked(plan)
        links = open_links(makers, timeout_s=timeout_s, insecure_plaintext=insecure_plaintext)
        return cls(links, timeout_s=timeout_s)

    def pads_of(self, plan: Plan, *, rng: Csprng) -> "MakerPads":
        """The source of a plan's pads."""
        return MakerPads(plan, self, rng=rng)

    @property
    def names(self) -> tuple[str, ...]:
        """The makers that are left."""
        return tuple(maker.link.name for maker in self._makers)

    @property
    def known_to(self) -> tuple[KnownTo, ...]:
        """The parties that these makers are, those that are lost among them."""
        return tuple(maker.known for maker in self._all)

    @property
    def lost(self) -> tuple[str, ...]:
        """The makers that are not used any more."""
        return tuple(self._lost)

    def make(self, plan: Plan, layout: PadLayout, *, rows: int, reserve: Reserve) -> MadeBlock:
        """A block of masked terms; a maker that hangs or dies is followed by the next one.

        Each maker is asked under a seed of its own, so that no two of them know one pad.

        Raises   MakerError when a maker breaks the protocol, or none is left
        """
        last: Exception | None = None
        while True:
            with self._turn(last) as maker:
                seed, first_id = reserve(maker.known)
                try:
                    return maker.make(
                        plan, layout, seed, first_id, rows=rows, timeout_s=self._timeout_s
                    )
                except (WorkerTimeout, WorkerUnavailable) as error:
                    self.drop(maker)
                    last = error
                except ProtocolError as error:
                    self.drop(maker)
                    raise MakerError(
                        f"maker {maker.link.name}: {error}; nothing was released, the maker is "
                        "quarantined"
                    ) from None

    @contextmanager
    def _turn(self, last: Exception | None) -> Iterator[_Maker]:
        """A maker that no other thread uses, as soon as there is one."""
        while True:
            with self._lock:
                makers = list(self._makers)
            if not makers:
                why = "" if last is None else f" ({last})"
                raise MakerError(
                    f"no maker of pads is left{why}: every one lied, hung, died or was closed; "
                    "open a new session with others"
                )
            free = (maker for maker in makers if maker.turn.acquire(blocking=False))
            maker = next(free, None)
            if maker is None:
                maker = makers[0]
                maker.turn.acquire()
            try:
                if maker in self._makers:
                    yield maker
                    return
            finally:
                maker.turn.release()

    def drop(self, maker: _Maker) -> None:
        """Never use a maker again."""
        with self._lock:
            if maker not in self._makers:
                return
            self._makers.remove(maker)
            self._lost.append(maker.link.name)
        maker.link.cut()

    def close(self) -> None:
        """Close every connection, while no block is made."""
        with self._lock:
            self._makers = []
        for maker in self._all:
            maker.link.close()


class MakerPads:
    """Pads of one plan that makers make when they are asked for; nothing is stored.

    Memory: the terms of the pads that are taken, where the links have them.
    """

    kind = "maker"

    def __init__(self, plan: Plan, makers: Makers, *, rng: Csprng) -> None:
        require_checked(plan)
        self.plan_digest = plan.digest
        self._plan = plan
        self._layout = PadLayout.of(plan)
        self._most_rows = self._layout.block_rows(most=BLOCK_ROWS_MAX)
        self._makers = makers
        self._rng = rng
        self._process = this_process()
        self._next_id = 0
        self._blocks: dict[int, MadeBlock] = {}
        self._lock = threading.Lock()

    @property
    def known_to(self) -> Sequence[KnownTo]:
        """See PadSource."""
        return self._makers.known_to

    def take(self, count: int) -> list[PadSet]:
        """Have `count` pad sets made; none is ever handed out twice.

        Raises   MakerError, see Makers.make; PadReusedError in a forked process, whose parent uses
                 the same connections
        """
        if this_process() != self._process:
            raise PadReusedError("pads of another process; make them where they are used")
        pads: list[PadSet] = []
        try:
            while len(pads) < count:
                pads += self._block(min(count - len(pads), self._most_rows))
        except BaseException:
            self.recycle(pads)
            raise
        return pads

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """Give the memory of spent pads back, a block at once."""
        for pad in pads:
            if not reclaim([pad]):
                continue
            with self._lock:
                block = self._blocks.pop(pad.pad_id)
                block.rows_left -= 1
                spent = block.rows_left == 0
            if spent:
                block.release()

    def erase(self) -> None:
        """See PadSource: the terms are masked, and their maker knows them."""

    def blame(self, pads: Sequence[PadSet]) -> str:
        """See PadSource: the makers of these pads, none of which is used again."""
        with self._lock:
            blocks = [self._blocks[pad.pad_id] for pad in pads if pad.pad_id in self._blocks]
        makers = list(dict.fromkeys(block.maker for block in blocks))
        for maker in makers:
            self._makers.drop(maker)
        names = ", ".join(maker.link.name for maker in makers)
        return f"the pads that maker {names} made are"

    def _block(self, rows: int) -> list[PadSet]:
        with self._lock:
            first_id, self._next_id = self._next_id, self._next_id + rows

        def reserve(_: KnownTo) -> tuple[bytes, int]:
            # Under a key of its own, an id need not be new.
            with self._lock:
                return self._rng.random_bytes(SEED_BYTES), first_id

        block = self._makers.make(self._plan, self._layout, rows=rows, reserve=reserve)
        ids = range(first_id, first_id + rows)
        with self._lock:
            self._blocks.update(dict.fromkeys(ids, block))
        keys = block.keys
        return [
            PadSet(pad_id, keys.pad_key, terms, keys.mask_key)
            for pad_id, terms in zip(ids, block.terms, strict=True)
        ]


@dataclass(frozen=True)
class StoreMakers:
    """Makers that fill stores of one plan; masked terms are stored as they come."""

    plan: Plan
    makers: Makers

    def put_block(self, store: PadStore, rows: int) -> None:
        """Have a block made and store it, durably.

        A block whose maker was lost stays reserved, and the next maker gets another one.

        Raises   MakerError, PadStoreError; then nothing is stored
        """
        reserved: list[ReservedBlock] = []

        def reserve(maker: KnownTo) -> tuple[bytes, int]:
            reserved.append(store.reserve(rows, known_to=maker))
            return reserved[-1].seed, reserved[-1].first_id

        made = self.makers.make(self.plan, store.layout, rows=rows, reserve=reserve)
        try:
            store.put_block(reserved[-1], made.terms, masked=True)
        finally:
            made.release()

    def close(self) -> None:
        """Close every connection."""
        self.makers.close()
