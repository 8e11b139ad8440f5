"""The store that keeps pads which were made ahead of time between runs.

A store has two parts. The *folder* holds one file per block of pad sets (block_file.py) and may lie
on storage that is not trusted. The *key file* (pad_ledger.py) lies on trusted storage and holds the
counters that are the truth: blocks are opened in strictly increasing order, and a block counts as
opened, durably, before a row of it is handed out (opened_blocks.py). So a folder that is copied,
restored, cut or edited can cost pads, but never have one used twice. A process that is killed at
any instruction loses at most the block it was making, and the rest of the one it had opened.

The pads `r` are nowhere on disk: those of a block are the AES-256-CTR keystream under a key that is
derived from the store's key and the number of the block. Only `A r` is stored, masked or sealed
under further keys of the block.
"""

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import UInt32

from cloister.base.hkdf import derive
from cloister.base.process_identity import this_process
from cloister.base.rng import Csprng
from cloister.errors import PadStoreError, RangeError, ShapeError
from cloister.ring.pad_block import BLOCK_ROWS_MAX, BlockKeys
from cloister.trusted.pads.block_file import SUFFIX, BlockFiles
from cloister.trusted.pads.masked_terms import add_masks
from cloister.trusted.pads.opened_blocks import OpenedBlock, OpenedBlocks
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.pad_ledger import BUSY_TIMEOUT_S, PadCounters, PadLedger
from cloister.trusted.pads.source import KnownTo, PadSet

_SEEDS = b"cloister pad block seed v1"
_FILES = b"cloister pad block files v1"


@dataclass(frozen=True, repr=False)
class ReservedBlock:
    """A block that is to be made: `rows` pad sets, whose ids follow each other.

    Secret   seed, and the keys that it stands for: all a maker needs of this block, and nothing of
             another one
    """

    number: int
    rows: int
    seed: bytes

    @property
    def first_id(self) -> int:
        """The pad id of the first row."""
        return self.number * BLOCK_ROWS_MAX

    @property
    def keys(self) -> BlockKeys:
        """The keys of the pads, and of the mask."""
        return BlockKeys.of(self.seed)


@dataclass(frozen=True)
class StoreStatus:
    """How many pad sets a store has.

    ready        can be taken
    used         were handed out, are held by a running process, or were burnt by one that died: the
                 rows of opened blocks that were not given back
    missing      were reserved, but have no file: being made, never finished, deleted or damaged
    ready_bytes  size of the ready pad sets on disk
    pad_bytes    size of one pad set on disk
    made_by      who made its pads besides the trusted side; empty: nobody else
    """

    ready: int
    used: int
    missing: int
    ready_bytes: int
    pad_bytes: int
    plan_digest: bytes
    store_id: bytes
    made_by: str


@dataclass(eq=False)
class PadStore:
    """A store of pads, shared by any number of threads and processes.

    `take` of several processes never returns the same pad. Memory: the pad sets taken, and as many
    that are read ahead. `PadStore.create` and `PadStore.open` make objects of this class.
    """

    folder: Path
    _ledger: PadLedger = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _process: tuple[int, int] = field(default_factory=this_process, repr=False)

    def __post_init__(self) -> None:
        ledger = self._ledger
        key = derive(ledger.store_key, info=_FILES + ledger.plan_digest)
        self._files = BlockFiles(
            self.folder, key, ledger.store_id, ledger.plan_digest, ledger.layout, ledger.sealed
        )
        self._opened: OpenedBlocks | None = None
        # As of the last block that was reserved or opened here: reports ask for it.
        self._made_by: tuple[int, tuple[KnownTo, ...]] | None = None
        # As of the last answer of `known_to`: whoever asked has compared these with its workers.
        self._compared: tuple[KnownTo, ...] | None = None

    @property
    def kind(self) -> str:
        """`store`, and who made its pads: how many workers, who must not have colluded, or makers,
        who must not be of a worker's party.
        """
        if self._made_by is None:
            with self._ledger.update() as counters:
                self._made_by = counters.makers, counters.known_to
        made_by = _who(*self._made_by)
        return f"store, made by {made_by}" if made_by else "store"

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        plan_digest: bytes,
        layout: PadLayout,
        sealed: bool,
        key_file: Path,
        rng: Csprng,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Self:
        """An empty store for one plan.

        layout   of the plan's pad sets
        sealed   whether a changed pad set is refused when it is read: needed unless the plan checks
                 every answer that it unblinds, which refuses the answer then

        Raises   PadStoreError when either part exists already or cannot be written
        """
        folder = path.absolute()
        if key_file.resolve().is_relative_to(folder.resolve()):
            raise PadStoreError(
                f"key file {key_file}: lies inside the store's folder, which is not trusted; "
                "choose another --key"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = any(name.endswith(SUFFIX) for name in os.listdir(folder))
        except OSError as error:
            raise PadStoreError(f"pad store {path}: {error.strerror}") from None
        if taken:
            raise PadStoreError(
                f"pad store {path}: holds pads of another store already; choose another folder, "
                "or name that store's key file"
            )
        ledger = PadLedger.create(
            key_file,
            plan_digest=plan_digest,
            layout=layout,
            sealed=sealed,
            rng=rng,
            busy_timeout_s=busy_timeout_s,
        )
        return cls(folder, ledger)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        plan_digest: bytes,
        key_file: Path,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Self:
        """The store of this plan; clears away what interrupted processes left.

        Raises   PadStoreError when it is missing, damaged, locked, or of another plan or key file
        """
        ledger = PadLedger.open(key_file, busy_timeout_s=busy_timeout_s)
        if ledger.plan_digest != plan_digest:
            raise PadStoreError(
                f"pad store {path}: holds pads of plan {ledger.plan_digest.hex()[:8]}, not of plan "
                f"{plan_digest.hex()[:8]} (the model, its calibration or its policy differ); "
                "choose another folder and --key"
            )
        store = cls(path.absolute(), ledger)
        store._tidy()
        return store

    @classmethod
    def inspect(
        cls, path: Path, *, key_file: Path, busy_timeout_s: float = BUSY_TIMEOUT_S
    ) -> StoreStatus:
        """The status of a store, whatever its plan.

        Raises   PadStoreError when it is missing, damaged, locked or of another key file
        """
        store = cls(path.absolute(), PadLedger.open(key_file, busy_timeout_s=busy_timeout_s))
        store._tidy()
        return store.status()

    @property
    def plan_digest(self) -> bytes:
        """The plan these pads blind."""
        return self._ledger.plan_digest

    @property
    def known_to(self) -> Sequence[KnownTo]:
        """See PadSource; blocks that another party came to know later are refused from now on."""
        with self._ledger.update() as counters:
            self._compared = counters.known_to
        return self._compared

    @property
    def layout(self) -> PadLayout:
        """Where each node's terms lie in a row."""
        return self._ledger.layout

    def reserve(
        self, rows: int, *, makers: int = 0, known_to: KnownTo | None = None
    ) -> ReservedBlock:
        """A block for a maker; no block is given to two makers, not even after a crash.

        `makers` is the number of parties whose workers make these pads, 0 for the trusted side;
        `known_to` is another party that is given the seed.

        Raises   PadStoreError when it cannot be recorded
        """
        if not 1 <= rows <= BLOCK_ROWS_MAX:
            raise RangeError(
                f"pad store {self.folder}: a block has 1 to {BLOCK_ROWS_MAX} pad sets, not {rows}"
            )
        with self._ledger.update() as counters:
            number = counters.next_make
            counters.next_make += 1
            counters.rows_reserved += rows
            if makers:
                counters.makers = min(counters.makers or makers, makers)
            if known_to is not None and known_to not in counters.known_to:
                counters.known_to = (*counters.known_to, known_to)
            self._made_by = counters.makers, counters.known_to
        return ReservedBlock(number, rows, self._seed(number))

    def put_block(
        self,
        block: ReservedBlock,
        terms: UInt32[np.ndarray, "rows words"],
        *,
        masked: bool = False,
    ) -> None:
        """Store the terms of a block from `reserve`; in a store that masks, this masks them in
        place, unless they are `masked` under the block's key already.

        Durable on return. A block whose turn has passed, because a later one was opened first, is
        dropped: its pad sets count as missing.

        Raises   ShapeError for other terms than the layout's, PadStoreError when the disk is full
                 or the block was not reserved; then nothing is left behind
        """
        wanted = (block.rows, self.layout.words)
        if terms.dtype != np.uint32 or terms.shape != wanted:
            raise ShapeError(
                f"block {block.number}: terms must be uint32 {wanted}, got {terms.dtype} "
                f"{terms.shape}"
            )
        if masked and self._files.sealed:
            raise PadStoreError(
                f"pad store {self.folder}: takes no masked terms, for its plan does not check them"
            )
        with self._ledger.update() as counters:
            if not 0 <= block.number < counters.next_make:
                raise PadStoreError(
                    f"pad store {self.folder}: block {block.number} was not reserved"
                )
            passed = block.number < counters.next_use
        if passed:
            return
        if not self._files.sealed and not masked:
            add_masks(terms, self.layout, block.keys.mask_key, first_id=block.first_id)
        self._files.write(block.number, terms)

    def take(self, count: int) -> list[PadSet]:
        """The next `count` pad sets, in order of their ids; all or none.

        A block that is opened counts as used, durably, before a pad set of it is returned. Of a
        damaged block no more is read: it is set aside and will not be offered again.

        Secret   the terms; the caller overwrites them after use, or hands them to `recycle`
        Raises   PadsExhausted when there are fewer, PadStoreError naming the file when one is
                 damaged or the key file cannot be written; then none was taken
        """
        if count < 0:
            raise RangeError(f"pad store {self.folder}: cannot take {count} pads")
        with self._lock:
            if self._process != this_process():
                # The blocks that were open when the process was forked are the parent's.
                self._process, self._opened = this_process(), None
            if self._opened is None:
                self._opened = OpenedBlocks(self._files, self._open_next)
            return self._opened.take(count)

    def blame(self, pads: Sequence[PadSet]) -> str:
        """See PadSource: masked terms have no tag."""
        return "" if self._files.sealed else "the pads of the store are"

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """Keep the memory of spent pads for the next `take`, which is then faster.

        The pads are empty afterwards, and views of their terms must not be used any more.
        """
        opened = self._opened
        if opened is not None:
            opened.recycle(pads)

    def erase(self) -> None:
        """Overwrite and release the memory of spent pads, and give back the pad sets of opened
        blocks that were not handed out.
        """
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is None or self._process != this_process():
                return
            left = opened.close()
        # Without the key file they stay used, and are burnt.
        with suppress(PadStoreError), self._ledger.update() as counters:
            for block in left:
                counters.give_back(block.number, block.reader.rows, first=block.next_taken)
        for block in left:
            block.reader.close()

    def status(self) -> StoreStatus:
        """How many pad sets there are; by the size of their files, of which nothing is read."""
        with self._ledger.update() as counters:
            numbers = self._numbers()
        ready = sum(
            max(self._files.rows(number) - counters.given_back.get(number, 0), 0)
            for number in numbers
            if counters.may_open(number)
        )
        return StoreStatus(
            ready=ready,
            used=counters.rows_opened,
            missing=max(counters.rows_reserved - counters.rows_opened - ready, 0),
            ready_bytes=ready * self._files.record_bytes,
            pad_bytes=self._files.record_bytes,
            plan_digest=self._ledger.plan_digest,
            store_id=self._ledger.store_id,
            made_by=_who(counters.makers, counters.known_to),
        )

    def _seed(self, number: int) -> bytes:
        info = _SEEDS + self.plan_digest + number.to_bytes(8, "big")
        return derive(self._ledger.store_key, info=info)

    def _open_next(self) -> OpenedBlock | None:
        """Open the next block, and count it as used, durably."""
        reader = None
        try:
            with self._ledger.update() as counters:
                self._made_by = counters.makers, counters.known_to
                self._refuse_new(counters.known_to)
                for number in counters.to_open():
                    if not os.path.lexists(self._files.path(number)):
                        continue
                    reader = self._files.open(number)
                    first = counters.open(number, reader.rows)
                    break
        except BaseException:
            if reader is not None:
                reader.close()
            raise
        if reader is None:
            return None
        block = ReservedBlock(number, reader.rows, self._seed(number))
        return OpenedBlock(number, block.first_id, block.keys, reader, reader.rows, first, first)

    def _refuse_new(self, known_to: Sequence[KnownTo]) -> None:
        """Refuse makers whose party was not compared with that of any worker."""
        if self._compared is None:
            return
        for maker in known_to:
            if maker not in self._compared:
                raise PadStoreError(
                    f"pad store {self.folder}: maker {maker.address or 'of this machine'} made "
                    "pads since the session was opened; open a new session"
                )

    def _tidy(self) -> None:
        """Refuse a folder or key file that do not belong together, and clear away leftovers."""
        # While the write lock is held, no block is reserved or opened.
        with self._ledger.update() as counters:
            numbers = self._numbers()
            for number in numbers[-1:]:
                self._check_owner(number, counters)
            for number in numbers:
                if number < counters.next_use and not counters.may_open(number):
                    self._files.remove_unless_open(number)
            self._files.remove_leftovers()

    def _check_owner(self, newest: int, counters: PadCounters) -> None:
        owner, own = self._files.owner(newest), self._ledger.store_id
        if owner not in (None, own):
            raise PadStoreError(
                f"pad store {self.folder}: block {newest} belongs to another store than key file "
                f"{self._ledger.path}; choose the right one"
            )
        if owner == own and newest >= counters.next_make:
            raise PadStoreError(
                f"pad store {self.folder}: block {newest} is newer than key file "
                f"{self._ledger.path}, which was put back from an older copy; delete both and make "
                "new pads"
            )

    def _numbers(self) -> list[int]:
        try:
            return self._files.blocks()
        except OSError as error:
            reason = "does not exist" if error.errno == errno.ENOENT else error.strerror
            raise PadStoreError(f"pad store {self.folder}: {reason}") from None


def _who(makers: int, known_to: Sequence[KnownTo]) -> str:
    """Who made pads besides the trusted side; empty: nobody else."""
    if known_to and makers != 1:
        return "makers"
    if makers == 1:
        return "workers of one party, who can compute every pad"
    return f"{makers} workers" if makers else ""
