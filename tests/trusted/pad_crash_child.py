"""Does things to a pad store in processes of its own, so that a test can kill them.

Started as `pad_crash_child.py FOLDER KEY LOG`; reads one task per line and answers with the id of
the process that does it, then with how that process ended. Forking a process that has everything
imported makes a kill cost milliseconds.
"""

import os
import resource
import signal
import sys
import threading
from pathlib import Path

import numpy as np

from cloister.errors import PadsExhausted, PadStoreError
from cloister.trusted.pads.masked_terms import remove_mask
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import PadSet
from cloister.trusted.pads.store import PadStore

DIGEST = bytes(range(32))
LAYOUT = PadLayout.of_shapes({0: (5, 4, 3), 2: (1, 1, 7)})
ROWS = 3
"""Of the blocks that these processes make."""
TRACED = ("store.py", "opened_blocks.py", "block_file.py", "pad_ledger.py", "files.py", "sqlite.py")


def contents(first_id: int, rows: int = 1, layout: PadLayout = LAYOUT) -> np.ndarray:
    """What the tests store from a pad id on: different for every id, node and element."""
    terms = np.zeros((rows, layout.words), np.uint32)
    for index, part in layout.views(terms).items():
        for row, values in enumerate(part):
            elements = np.arange(values.size, dtype=np.uint32).reshape(values.shape)
            # 64 bits first: the pad id of a block is beyond 16 bits.
            offset = np.uint32((97 * (first_id + row) + index) & 0xFFFFFFFF)
            values[...] = elements * np.uint32(2654435761) + offset
    return terms


def right(pad: PadSet) -> bool:
    """Whether a pad set has what was stored; its mask is removed."""
    remove_mask(pad, LAYOUT)
    return pad.terms.dtype == np.uint32 and np.array_equal(pad.terms, contents(pad.pad_id)[0])


def note(log: Path, kind: str, pad_id: int) -> None:
    """One line that survives the death of this process."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{kind} {pad_id}\n".encode())
    os.close(file)


def make(store: PadStore, log: Path, count: int) -> None:
    for _ in range(count):
        block = store.reserve(ROWS)
        note(log, "made", block.number)
        store.put_block(block, contents(block.first_id, ROWS))


def use(store: PadStore, log: Path, count: int) -> None:
    pads = store.take(count)
    for pad in pads:
        note(log, "used", pad.pad_id)
        if not right(pad):
            note(log, "wrong", pad.pad_id)
    store.recycle(pads)


def forever(store: PadStore, log: Path) -> None:
    """Make and use until killed; the rest of a block is given back now and then."""
    while True:
        # More than is used: a process that lives long must not run out.
        make(store, log, 2)
        use(store, log, 2)
        use(store, log, 1)
        use(store, log, 2)
        store.erase()


def drain(store: PadStore, log: Path) -> None:
    """Use what is there, one by one."""
    while True:
        try:
            use(store, log, 1)
        except PadsExhausted:
            store.erase()
            return


def die_at_line(count: int) -> None:
    """Kill this process when it is about to run the count-th line of the store's code."""
    left = count

    def trace(frame, event, _argument):
        nonlocal left
        if os.path.basename(frame.f_code.co_filename) not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    # The thread that reads ahead too.
    threading.settrace(trace)
    sys.settrace(trace)


def fill_up(store: PadStore) -> None:
    """Store a block that is larger than this process may write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    block = store.reserve(10)
    try:
        store.put_block(block, contents(block.first_id, 10))
    except PadStoreError as error:
        sys.exit(0 if "free space" in str(error) else 3)
    sys.exit(4)


def perform(task: str, folder: Path, key: Path, log: Path) -> None:
    name, _, argument = task.partition(" ")
    store = None if name == "line" else PadStore.open(folder, plan_digest=DIGEST, key_file=key)
    if name == "forever":
        forever(store, log)
    elif name == "drain":
        drain(store, log)
    elif name == "full":
        fill_up(store)
    elif name == "line":
        die_at_line(int(argument))
        store = PadStore.open(folder, plan_digest=DIGEST, key_file=key)
        make(store, log, 1)
        use(store, log, 1)
        store.erase()
        use(store, log, 1)
        sys.settrace(None)


def main() -> None:
    folder, key, log = (Path(argument) for argument in sys.argv[1:])
    running = 0
    for line in sys.stdin:
        task = line.strip()
        if task == "wait":
            while running:
                _, status = os.wait()
                running -= 1
                sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
                sys.stdout.flush()
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                perform(task, folder, key, log)
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                os._exit(code)
        running += 1
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
