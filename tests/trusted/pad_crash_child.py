"""Does things to a pad store in processes of its own, so that a test can kill them.

Started as `pad_crash_child.py FOLDER KEY LOG`; reads one task per line and answers with the id of
the process that does it, then with how that process ended. Forking a process that has everything
imported makes a kill cost milliseconds.
"""

import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np

from cloister.errors import PadsExhausted, PadStoreError
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.store import PadStore

DIGEST = bytes(range(32))
SHAPES = {0: (5, 4, 3), 2: (1, 1, 7)}
LAYOUT = PadLayout.of_shapes(SHAPES)
TRACED = ("store.py", "pad_file.py", "pad_ledger.py", "files.py", "sqlite.py")


def contents(pad_id: int, shapes: dict[int, tuple[int, ...]] = SHAPES) -> dict[int, np.ndarray]:
    """What the tests store under a pad id: different for every id, node and element."""
    return {
        index: (np.arange(np.prod(shape), dtype=np.uint32) * 2654435761 + 97 * pad_id + index)
        .astype(np.uint32)
        .reshape(shape)
        for index, shape in shapes.items()
    }


def note(log: Path, kind: str, pad_id: int) -> None:
    """One line that survives the death of this process."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{kind} {pad_id}\n".encode())
    os.close(file)


def make(store: PadStore, log: Path, count: int) -> None:
    for pad_id in store.reserve(count):
        note(log, "made", pad_id)
        store.put(pad_id, contents(pad_id))


def use(store: PadStore, log: Path, count: int) -> None:
    pads = store.take(count)
    for pad in pads:
        note(log, "used", pad.pad_id)
        wanted = contents(pad.pad_id)
        found = LAYOUT.views(pad.terms)
        if not all(np.array_equal(found[i], wanted[i]) for i in wanted):
            note(log, "wrong", pad.pad_id)
    store.recycle(pads)


def forever(store: PadStore, log: Path) -> None:
    """Make and use until killed."""
    while True:
        make(store, log, 3)
        use(store, log, 2)


def drain(store: PadStore, log: Path) -> None:
    """Use what is there, one by one."""
    while True:
        try:
            use(store, log, 1)
        except PadsExhausted:
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

    sys.settrace(trace)


def fill_up(store: PadStore) -> None:
    """Store a pad that is larger than this process may write."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    (pad_id,) = store.reserve(1)
    try:
        store.put(pad_id, contents(pad_id, {0: (100, 100, 1)}))
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
