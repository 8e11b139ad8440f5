"""The store that keeps pads which were made ahead of time between runs.

A store has two parts. The *folder* holds one sealed file per pad (pad_file.py) and may lie on
storage that is not trusted. The *key file* (pad_ledger.py) lies on trusted storage and holds the
counters that are the truth: pad ids are used in strictly increasing order, and an id counts as
used, durably, before it is handed out. So a folder that is copied, restored, cut or edited can cost
pads, but never have one used twice. A process that is killed at any instruction loses at most the
pads it was making or had just taken.

The pad `r` itself is nowhere on disk: it is the AES-256-CTR keystream under `pad_key`, which is
derived from the store's key. Only `A r` is stored.
"""

import errno
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from cloister.base.hkdf import derive
from cloister.base.rng import Csprng
from cloister.errors import PadsExhausted, PadStoreError, RangeError, ShapeError
from cloister.trusted.pads.pad_file import SUFFIX, PadFiles, file_bytes
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.pad_ledger import BUSY_TIMEOUT_S, MemoryLayout, PadCounters, PadLedger
from cloister.trusted.pads.source import PadSet, erase, reclaim

_SEALING = b"cloister pad sealing v1"
_STREAM = b"cloister pad stream v1"


@dataclass(frozen=True)
class StoreStatus:
    """How full a store is.

    ready        pads that can be taken
    used         pads that were handed out
    lost         pads whose turn passed without use: never finished, missing or damaged
    ready_bytes  size of the ready pads on disk
    pad_bytes    size of one pad on disk; 0 before the first one is there
    """

    ready: int
    used: int
    lost: int
    ready_bytes: int
    pad_bytes: int
    plan_digest: bytes
    store_id: bytes


@dataclass(eq=False)
class PadStore:
    """A store of pads, shared by any number of threads and processes.

    `take` of several processes never returns the same pad. Memory: the pads taken, plus one node's
    array. `PadStore.create` and `PadStore.open` make objects of this class.
    """

    folder: Path
    _ledger: PadLedger = field(repr=False)
    _spare: list[np.ndarray] = field(default_factory=list, repr=False)
    _spare_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def kind(self) -> str:
        """`store`, and how many workers, who must not have colluded, made its pads."""
        with self._ledger.update() as counters:
            makers = counters.makers
        if makers == 1:
            return "store, made by workers of one party, who can compute every pad"
        return f"store, made by {makers} workers" if makers else "store"

    def __post_init__(self) -> None:
        ledger = self._ledger
        sealing_key = derive(ledger.store_key, info=_SEALING + ledger.plan_digest)
        self._files = PadFiles(self.folder, sealing_key, ledger.store_id, ledger.plan_digest)
        self._pad_key = derive(ledger.store_key, info=_STREAM + ledger.plan_digest)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        plan_digest: bytes,
        key_file: Path,
        rng: Csprng,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
    ) -> Self:
        """An empty store for one plan.

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
            key_file, plan_digest=plan_digest, rng=rng, busy_timeout_s=busy_timeout_s
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
    def pad_key(self) -> bytes:
        """Key of the keystream that is `r` in every pad; not the key that seals. Secret."""
        return self._pad_key

    @property
    def plan_digest(self) -> bytes:
        """The plan these pads blind."""
        return self._ledger.plan_digest

    def reserve(self, count: int, *, makers: int = 0) -> range:
        """Ids for a maker; no id is given to two makers, not even after a crash.

        `makers` is the number of parties whose workers make these pads, 0 for the trusted side.

        Raises   PadStoreError when they cannot be recorded
        """
        if count < 0:
            raise RangeError(f"pad store {self.folder}: cannot reserve {count} pads")
        with self._ledger.update() as counters:
            first = counters.next_make
            counters.next_make += count
            if makers:
                counters.makers = min(counters.makers or makers, makers)
        return range(first, first + count)

    def put(self, pad_id: int, unblinding: Mapping[int, np.ndarray]) -> None:
        """Store a pad under an id from `reserve`: `A r` as uint32 arrays by node index.

        Durable on return. An id whose turn has passed, because a later one was taken first, is
        dropped: its pad counts as lost.

        Raises   ShapeError for arrays unlike those of the other pads, PadStoreError when the disk
                 is full or the id was not reserved; then nothing is left behind
        """
        layout = _layout(unblinding)
        with self._ledger.update() as counters:
            if not 0 <= pad_id < counters.next_make:
                raise PadStoreError(f"pad store {self.folder}: pad {pad_id} was not reserved")
            if counters.layout is None:
                counters.layout = layout
            elif counters.layout != layout:
                raise ShapeError(f"pad {pad_id}: has other nodes or shapes than the store's pads")
            passed = pad_id < counters.next_use
        if not passed:
            self._files.write(pad_id, layout, unblinding)

    def take(self, count: int) -> list[PadSet]:
        """The next `count` pads, in order of their ids; all or none.

        They are read and their seals opened first, then counted as used, durably, and only then
        returned; their files are deleted. A damaged pad is set aside and will not be offered again.

        Secret   the terms; the caller overwrites them after use, or hands them to `recycle`
        Raises   PadsExhausted when there are fewer, PadStoreError naming the file when one is
                 damaged or the key file cannot be written; then none was taken
        """
        if count < 0:
            raise RangeError(f"pad store {self.folder}: cannot take {count} pads")
        pads: list[PadSet] = []
        try:
            with self._ledger.update() as counters:
                for pad_id in self._next_ids(counters, count):
                    pads.append(self._read(pad_id, counters.layout or ()))
                    counters.next_use = pad_id + 1
                counters.used += count
        except BaseException:
            self.recycle(pads)
            raise
        for pad in pads:
            self._files.remove(pad.pad_id)
        return pads

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """Keep the memory of spent pads for the next `take`, which is then faster.

        The pads are empty afterwards, and views of their terms must not be used any more.
        """
        spare = reclaim(pads)
        with self._spare_lock:
            self._spare += spare

    def erase(self) -> None:
        """Overwrite and release the memory of spent pads."""
        with self._spare_lock:
            spare, self._spare = self._spare, []
        erase(spare)

    def status(self) -> StoreStatus:
        """How full the store is."""
        with self._ledger.update() as counters:
            ids = self._ids()
        ready = sum(counters.next_use <= pad_id < counters.next_make for pad_id in ids)
        pad_bytes = file_bytes(counters.layout) if counters.layout is not None else 0
        return StoreStatus(
            ready=ready,
            used=counters.used,
            lost=counters.next_use - counters.used,
            ready_bytes=ready * pad_bytes,
            pad_bytes=pad_bytes,
            plan_digest=self._ledger.plan_digest,
            store_id=self._ledger.store_id,
        )

    def _next_ids(self, counters: PadCounters, count: int) -> list[int]:
        found: list[int] = []
        # Without a layout no pad was ever stored, so a file in the folder was planted.
        end = counters.next_make if counters.layout else counters.next_use
        for pad_id in range(counters.next_use, end):
            if len(found) == count:
                break
            if os.path.lexists(self._files.path(pad_id)):
                found.append(pad_id)
        if len(found) < count:
            raise PadsExhausted(
                f"pad store {self.folder}: {len(found)} unused pads left, {count} needed; make "
                "more with `cloister pads make`"
            )
        return found

    def _read(self, pad_id: int, layout: MemoryLayout) -> PadSet:
        words = PadLayout.of_shapes(dict(layout))
        with self._spare_lock:
            terms = self._spare.pop() if self._spare else np.zeros(words.words, np.uint32)
        try:
            self._files.read_into(pad_id, layout, words.views(terms))
        except BaseException:
            terms.fill(0)
            raise
        return PadSet(pad_id, self._pad_key, terms)

    def _tidy(self) -> None:
        """Refuse a folder or key file that do not belong together, and clear away leftovers."""
        # While the write lock is held, no id is reserved or taken.
        with self._ledger.update() as counters:
            ids = self._ids()
            for pad_id in ids[-1:]:
                self._check_owner(pad_id, counters)
            for pad_id in ids:
                if pad_id < counters.next_use:
                    self._files.remove(pad_id)
            self._files.remove_leftovers()

    def _check_owner(self, newest: int, counters: PadCounters) -> None:
        owner, own = self._files.owner(newest), self._ledger.store_id
        if owner not in (None, own):
            raise PadStoreError(
                f"pad store {self.folder}: pad {newest} belongs to another store than key file "
                f"{self._ledger.path}; choose the right one"
            )
        if owner == own and newest >= counters.next_make:
            raise PadStoreError(
                f"pad store {self.folder}: pad {newest} is newer than key file "
                f"{self._ledger.path}, which was put back from an older copy; delete both and make "
                "new pads"
            )

    def _ids(self) -> list[int]:
        try:
            return self._files.ids()
        except OSError as error:
            reason = "does not exist" if error.errno == errno.ENOENT else error.strerror
            raise PadStoreError(f"pad store {self.folder}: {reason}") from None


def _layout(unblinding: Mapping[int, np.ndarray]) -> MemoryLayout:
    if not unblinding:
        raise ShapeError("a pad without any node blinds nothing")
    for index, array in unblinding.items():
        if array.dtype != np.uint32 or array.size == 0:
            raise ShapeError(f"pad of node {index}: must be uint32 and not empty")
    return tuple((index, unblinding[index].shape) for index in sorted(unblinding))
