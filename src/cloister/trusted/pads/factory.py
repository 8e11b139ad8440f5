"""Pads made ahead of time: by the trusted runtime at a chosen rate, or by workers.

With workers that do not collude, a pad `r` is cut into as many uniform shares as there are workers,
r = r1 + r2 + ... (mod 2^32). Worker i sees r_i alone and returns `A r_i`, in digits that can be
checked (shares.py); the sum of the answers is `A r`. Proofs: docs/protocols/padfactory.md.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import UInt32, UInt64

from cloister.base.private_memory import private_memory
from cloister.base.rng import KEY_BYTES, Csprng, SystemRandom
from cloister.errors import (
    InputError,
    ProtocolError,
    VerificationError,
    WorkerUnavailable,
)
from cloister.plan.plan import Plan
from cloister.ring.freivalds import CheckVectors
from cloister.ring.pads import expand_into
from cloister.trusted.checks import accept
from cloister.trusted.pads.maker import Maker, PadMaker
from cloister.trusted.pads.makers import MakerAddress, Makers, StoreMakers
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.shares import SharedNode
from cloister.trusted.pads.store import PadStore
from cloister.wire.grpc.places import machines
from cloister.wire.link import WorkerLink

DEFAULT_TIMEOUT_S = 120.0
DEFAULT_BLOCK_ROWS_MAX = 1024
TOO_FEW = (
    "one worker alone would see the whole pads and could read every message they blind; give two "
    "or more workers that do not collude, or none to make the pads here"
)


def count_parties(links: Sequence[WorkerLink], *, insecure_one_party: bool = False) -> int:
    """How many parties would have to collude to know the pads that these workers make.

    Raises   InputError for fewer than two workers, one given twice, a name that does not resolve,
             and for two on one machine unless `insecure_one_party`: then the answer is 1
    """
    if len(links) < 2:
        raise InputError(f"pads: {TOO_FEW}")
    owners: dict[str, str] = {}
    names: set[str] = set()
    one_party = False
    for link in links:
        if link.name in names:
            raise InputError(f"pads: worker {link.name} is given twice and would see two shares")
        names.add(link.name)
        found = machines(link.address)
        for machine in sorted(found & owners.keys()):
            if not insecure_one_party:
                raise InputError(
                    f"pads: workers {owners[machine]} and {link.name} are one party ({machine}), "
                    "which would see two shares of every pad; choose workers of different owners "
                    "(insecure_one_party, --insecure-one-party: for tests)"
                )
            one_party = True
        owners.update(dict.fromkeys(found, link.name))
    return 1 if one_party else len(links)


@dataclass(frozen=True, eq=False, repr=False)
class _Asked:
    link: WorkerLink
    request_id: int
    vectors: CheckVectors
    sums: UInt64[np.ndarray, " digits"]


class WorkerMaker:
    """Makes pad sets with two or more workers; they must not collude.

    All workers together can compute every pad, and so can a listener that reads the traffic to all
    of them; any smaller group learns nothing. A link serves this object alone. After an error
    nothing of that pad is kept; a worker that lied, hung or died is closed and not used again, and
    its pad id must not be used again either. Memory: the check vectors (8 bytes per input element)
    and one node.

    insecure_one_party   for tests: the workers may be on one machine, whose owner can compute the
                         pads; they then count as one party

    Raises   InputError, see `count_parties`
    """

    def __init__(
        self,
        plan: Plan,
        links: Sequence[WorkerLink],
        *,
        rng: Csprng,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        insecure_one_party: bool = False,
    ) -> None:
        self._parties = count_parties(links, insecure_one_party=insecure_one_party)
        self._links = list(links)
        self.layout = PadLayout.of(plan)
        self._rng = rng
        self._timeout_s = timeout_s
        self._nodes = [
            SharedNode(i, plan.linear_nodes[i].node, plan.linear_nodes[i].linear)
            for i in plan.hidden_nodes
        ]
        self._loaded: list[WorkerLink] = []
        self._next_request = 1
        self._newest: dict[bytes, int] = {}
        inputs = max((node.geometry.in_elements for node in self._nodes), default=0)
        self._pad, self._share = np.empty((2, inputs), np.uint32)

    @property
    def parties(self) -> int:
        """See Maker; workers that were dropped do not count."""
        # With fewer than two, no pad is made any more.
        return min(self._parties, max(len(self._links), 2))

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of the workers in use."""
        return tuple(link.name for link in self._links)

    def prepare(self) -> None:
        """Give the workers the weights and draw the check vectors; `make` does it when needed.

        Raises   ProtocolError, after which that worker is dropped
        """
        for link in list(self._links):
            if link not in self._loaded:
                try:
                    for node in self._nodes:
                        link.load_linear(node.index, node.linear)
                except ProtocolError:
                    self._drop(link)
                    raise
                self._loaded.append(link)
        for node in self._nodes:
            node.draw(self._rng)

    def make(self, key: bytes, first_id: int, *, into: UInt32[np.ndarray, "rows words"]) -> None:
        """See Maker: bit for bit what PadMaker computes.

        Secret   the terms; the workers' views are uniform and independent of it unless all collude
        Error    a wrong answer passes with probability at most 3 / P52 < 2^-50
        Source   Slalom (arXiv:1806.03287) section 3.2; deviation: made by workers, in shares
        Raises   VerificationError, ProtocolError naming the worker, which is dropped;
                 WorkerUnavailable when fewer than two are left; InputError unless ids increase
        """
        for pad_id, terms in enumerate(into, first_id):
            self._make_pad(key, pad_id, self.layout.views(terms))

    def _make_pad(self, pad_key: bytes, pad_id: int, into: Mapping[int, np.ndarray]) -> None:
        if len(self._links) < 2:
            raise WorkerUnavailable(f"pads: {len(self._links)} workers are left; {TOO_FEW}")
        if pad_id <= self._newest.get(pad_key, -1):
            # The shares of a second attempt would be a second view of the same pad.
            raise InputError(f"pad {pad_id}: its turn has passed; reserve another id")
        self.prepare()
        self._newest[pad_key] = pad_id
        # A fresh key per share but the first, which is what is missing to the pad.
        keys = [self._rng.random_bytes(KEY_BYTES) for _ in self._links[1:]]
        try:
            for node in self._nodes:
                self._make_node(node, pad_key, pad_id, keys, into[node.index])
        finally:
            for array in (self._pad, self._share):
                array.fill(0)

    def _make_node(
        self,
        node: SharedNode,
        pad_key: bytes,
        pad_id: int,
        keys: Sequence[bytes],
        out: UInt32[np.ndarray, "h w c"],
    ) -> None:
        count = node.geometry.in_elements
        rest, share = self._pad[:count], self._share[:count]
        out.fill(0)
        expand_into(pad_key, pad_id, domain=node.index, out=rest)
        first, *others = self._links
        asked: list[_Asked] = []
        try:
            for link, key in zip(others, keys, strict=True):
                expand_into(key, pad_id, domain=node.index, out=share)
                np.subtract(rest, share, out=rest)
                self._ask(asked, link, node, share)
            self._ask(asked, first, node, rest)
            for question in asked:
                self._add_answer(question, node, out)
        finally:
            for question in asked:
                if question.link in self._links:
                    question.link.release(question.request_id)

    def _ask(
        self,
        asked: list[_Asked],
        link: WorkerLink,
        node: SharedNode,
        share: UInt32[np.ndarray, " words"],
    ) -> None:
        request_id, self._next_request = self._next_request, self._next_request + 1
        vectors = node.draw(self._rng)
        try:
            limbs = link.send_buffer(node.request)
            sums = node.split(share, limbs, vectors=vectors)
            link.submit(request_id, node.index, (limbs,), (node.answer,))
        except ProtocolError:
            self._drop(link)
            raise
        asked.append(_Asked(link, request_id, vectors, sums))

    def _add_answer(
        self, question: _Asked, node: SharedNode, out: UInt32[np.ndarray, "h w c"]
    ) -> None:
        """Add one worker's answer, which is checked."""
        link = question.link
        try:
            (reply,) = link.receive(question.request_id, timeout_s=self._timeout_s)
            add = partial(node.add_answers, out=out, vectors=question.vectors)
            accept(reply, add, question.sums, node=node.name)
        except VerificationError as error:
            self._drop(link)
            for other in self._nodes:
                other.forget()
            raise VerificationError(f"worker {link.name}: {error}") from None
        except ProtocolError:
            self._drop(link)
            raise

    def _drop(self, link: WorkerLink) -> None:
        self._links = [other for other in self._links if other is not link]
        self._loaded = [other for other in self._loaded if other is not link]
        link.close()

    def close(self) -> None:
        """Close all links, then forget the check vectors: no answer is accepted without them."""
        for link in list(self._links):
            self._drop(link)
        for node in self._nodes:
            node.forget()


@contextmanager
def open_maker(
    plan: Plan,
    links: Sequence[WorkerLink] = (),
    *,
    makers: Sequence[MakerAddress | WorkerLink] = (),
    threads: int = 1,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    insecure_one_party: bool = False,
    insecure_plaintext: bool = False,
) -> Iterator[Maker | StoreMakers]:
    """A maker of pads: these workers in shares, these makers, or this process without any."""
    if not links and not makers:
        yield PadMaker(plan, threads=threads)
        return
    maker: WorkerMaker | StoreMakers
    if makers:
        found = Makers.open(
            plan, makers, timeout_s=timeout_s, insecure_plaintext=insecure_plaintext
        )
        maker = StoreMakers(plan, found)
    else:
        maker = WorkerMaker(
            plan,
            links,
            rng=SystemRandom(),
            timeout_s=timeout_s,
            insecure_one_party=insecure_one_party,
        )
    with closing(maker):
        yield maker


# ---- filling a store


@dataclass(frozen=True)
class Rate:
    """A limit on making pads: a share of the time, and a number per hour; None: no limit."""

    share: float | None = None
    per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise InputError(f"rate: the share of time must be above 0 and at most 1: {self.share}")
        if self.per_hour is not None and not 0 < self.per_hour < float("inf"):
            raise InputError(f"rate: pads per hour must be positive and finite: {self.per_hour}")

    def pause_s(self, busy_s: float, *, made: int) -> float:
        """How long to rest after `made` pad sets that took `busy_s` to make."""
        pause = 0.0
        if self.share is not None:
            pause = busy_s * (1 / self.share - 1)
        if self.per_hour is not None:
            pause = max(pause, 3600 * made / self.per_hour - busy_s)
        return pause


def fill(
    store: PadStore,
    maker: Maker | StoreMakers,
    *,
    count: int,
    block_rows: int | None = None,
    rate: Rate | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Make pads until the store holds `count` unused pad sets; how many were made.

    They are made in blocks of `block_rows` (default: `PadLayout.block_rows`); the last one may be
    smaller. Every block is durable before the next begins; one that is interrupted, even by
    `kill -9`, is lost with its ids and another one made. `stop` ends it between two blocks.
    """
    stop = stop or threading.Event()
    missing = max(0, count - store.status().ready)
    if missing == 0:
        return 0
    rows = min(block_rows or store.layout.block_rows(most=DEFAULT_BLOCK_ROWS_MAX), missing)
    done = 0
    with _filling(store, maker, rows) as put_block:
        while done < missing and not stop.is_set():
            started = time.monotonic()
            made = min(rows, missing - done)
            put_block(made)
            done += made
            if progress is not None:
                progress(done, missing)
            if rate is not None and done < missing:
                stop.wait(rate.pause_s(time.monotonic() - started, made=made))
    return done


@contextmanager
def _filling(
    store: PadStore, maker: Maker | StoreMakers, rows: int
) -> Iterator[Callable[[int], None]]:
    """What makes and stores a block of at most so many rows."""
    if isinstance(maker, StoreMakers):
        yield partial(maker.put_block, store)
        return
    memory = private_memory(rows * store.layout.words * np.dtype(np.uint32).itemsize)
    terms = memory.view(np.uint32).reshape(rows, -1)

    def put_block(count: int) -> None:
        part = terms[:count]
        block = store.reserve(count, makers=maker.parties)
        part.fill(0)
        maker.make(block.keys.pad_key, block.first_id, into=part)
        store.put_block(block, part)

    try:
        yield put_block
    finally:
        terms.fill(0)
