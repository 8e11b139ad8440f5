"""The blocks of a store that this process has opened, and their rows, read ahead of their use.

A block counts as opened, durably, before a row of it is read, and no process opens it again unless
this one gives it back, with the first row that it did not hand out. So handing out a row writes
nothing, and a process that dies burns the rows it has not handed out: at most those of one block
and of one request.

A thread reads the rows of the next request while this one is computed: past the page cache, into
memory that is used again.

An exception may come between any two lines, such as KeyboardInterrupt. So a row counts as read
before it is ready, and as handed out before it is: an interrupt burns rows, and repeats none.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8, UInt32

from cloister.base.private_memory import private_memory
from cloister.errors import CloisterError, PadsExhausted
from cloister.ring.pad_block import BlockKeys
from cloister.trusted.pads.block_file import BlockFiles, BlockReader
from cloister.trusted.pads.source import PadSet, reclaim

_CHUNK_BYTES = 1 << 20
"""Small rows are read several at a time."""


@dataclass(eq=False)
class OpenedBlock:
    """One block: rows below `next_read` were read, those below `next_taken` were handed out."""

    number: int
    first_id: int
    keys: BlockKeys
    reader: BlockReader
    rows: int
    next_read: int
    next_taken: int


@dataclass(eq=False)
class _Chunk:
    """Memory of several rows, and how many of them are in use."""

    memory: UInt8[np.ndarray, "rows nbytes"]
    in_use: int = 0

    def terms(self, row: int, words: int) -> UInt32[np.ndarray, " words"]:
        """The terms that one row begins with."""
        terms: np.ndarray = self.memory[row].view(np.uint32)[:words]
        return terms


class OpenedBlocks:
    """Hands out rows in order, each once. `take` and `close` are for one thread at a time.

    open_next   opens a store's next block, durably; None: there is none. Raises PadStoreError.
    """

    def __init__(self, files: BlockFiles, open_next: Callable[[], OpenedBlock | None]) -> None:
        self._files = files
        self._open_next = open_next
        self._blocks: deque[OpenedBlock] = deque()
        self._ready: deque[tuple[OpenedBlock, PadSet]] = deque()
        self._chunks: dict[int, _Chunk] = {}  # in use, by pad id
        self._spare: list[_Chunk] = []
        self._memory = threading.Lock()
        # Two threads would read a row twice: an interrupted `take` may leave one that still reads.
        self._reading = threading.Lock()
        if files.sealed:
            self._shape = (1, files.layout.words * np.dtype(np.uint32).itemsize)
            self._record = private_memory(files.record_bytes)[None]
        else:
            self._shape = (max(1, _CHUNK_BYTES // files.record_bytes), files.record_bytes)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pads")
        self._ahead: Future[None] | None = None

    def take(self, count: int) -> list[PadSet]:
        """The next rows; all or none.

        Raises   PadsExhausted, PadStoreError
        """
        self._settle()
        with self._reading:
            self._read(count)
            if len(self._ready) < count:
                raise PadsExhausted(
                    f"pad store {self._files.folder}: {len(self._ready)} unused pads left, {count} "
                    "needed; make more with `cloister pads make`"
                )
            rows = [self._ready[i] for i in range(count)]
            for block, pad in rows:
                block.next_taken = pad.pad_id - block.first_id + 1
            for _ in rows:
                self._ready.popleft()
            self._drop_spent()
        if count:
            self._ahead = self._thread.submit(self._read_ahead, count)
        return [pad for _, pad in rows]

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """Keep the memory of spent rows for the next ones; for any thread."""
        reclaim(pads)
        with self._memory:
            for pad in pads:
                chunk = self._chunks.pop(pad.pad_id, None)
                if chunk is None:
                    continue
                chunk.in_use -= 1
                if chunk.in_use == 0:
                    self._spare.append(chunk)

    def close(self) -> list[OpenedBlock]:
        """Overwrite the memory that is not in use; the blocks with rows that were not handed out,
        whose files stay open.
        """
        with suppress(CloisterError):
            self._settle()
        self._thread.shutdown()
        self.recycle([pad for _, pad in self._ready])
        self._ready.clear()
        for chunk in self._spare:
            chunk.memory.fill(0)
        self._spare.clear()
        self._drop_spent()
        left = list(self._blocks)
        self._blocks.clear()
        return left

    def _settle(self) -> None:
        """Wait until nothing is read ahead any more.

        Raises   PadStoreError of what was read
        """
        if self._ahead is None:
            return
        try:
            self._ahead.result()
        finally:
            # An interrupt ends the waiting, not the reading.
            if self._ahead.done():
                self._ahead = None

    def _read_ahead(self, count: int) -> None:
        with self._reading:
            self._read(count)

    def _read(self, count: int) -> None:
        """Have `count` rows ready, or all that there are."""
        while len(self._ready) < count:
            block = self._blocks[-1] if self._blocks else None
            if block is None or block.next_read == block.rows:
                block = self._open_next()
                if block is None:
                    return
                self._blocks.append(block)
            self._read_chunk(block)

    def _read_chunk(self, block: OpenedBlock) -> None:
        with self._memory:
            chunk = self._spare.pop() if self._spare else None
        if chunk is None:
            rows, nbytes = self._shape
            chunk = _Chunk(private_memory(rows * nbytes).reshape(rows, nbytes))
        first = block.next_read
        rows = min(len(chunk.memory), block.rows - first)
        try:
            self._read_into(chunk, block, rows)
        except BaseException as error:
            if isinstance(error, CloisterError):
                # No row of this block is read any more.
                block.rows = first
                self._drop_spent()
            chunk.memory.fill(0)
            self._spare.append(chunk)
            raise
        block.next_read = first + rows
        chunk.in_use = rows
        mask_key = None if self._files.sealed else block.keys.mask_key
        for row, pad_id in enumerate(range(block.first_id + first, block.first_id + first + rows)):
            terms = chunk.terms(row, self._files.layout.words)
            self._chunks[pad_id] = chunk
            self._ready.append((block, PadSet(pad_id, block.keys.pad_key, terms, mask_key)))

    def _read_into(self, chunk: _Chunk, block: OpenedBlock, rows: int) -> None:
        if self._files.sealed:
            block.reader.read(block.next_read, self._record)
            terms = chunk.terms(0, self._files.layout.words)
            block.reader.unseal(block.next_read, self._record[0], terms)
        else:
            block.reader.read(block.next_read, chunk.memory[:rows])

    def _drop_spent(self) -> None:
        for block in [one for one in self._blocks if one.next_taken == one.rows]:
            self._blocks.remove(block)
            block.reader.close()
            self._files.remove(block.number)
