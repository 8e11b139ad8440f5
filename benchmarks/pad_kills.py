"""kill -9 at random moments of making and using pads: is any pad used twice, does the store open?

A child makes blocks of pad sets, uses them and gives the rest back, without end, and notes every id
it was given before it uses it; it is killed after a random time and started anew on the same store.
"""

import os
import secrets
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cloister.base.rng import SystemRandom
from cloister.cli.console import progress
from cloister.errors import CloisterError
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.store import PadStore

DIGEST = bytes(32)
LAYOUT = PadLayout.of_shapes({0: (1, 1, 3000)})
ROWS = 5


def make_and_use(folder: Path, key: Path, log: int) -> None:
    """Until killed."""
    store = PadStore.open(folder, plan_digest=DIGEST, key_file=key)
    while True:
        for _ in range(2):
            store.put_block(store.reserve(ROWS), np.zeros((ROWS, LAYOUT.words), np.uint32))
        for count in (1, 2, 1):
            pads = store.take(count)
            for pad in pads:
                os.write(log, f"{pad.pad_id}\n".encode())
            store.recycle(pads)
        store.erase()


def killed_after(delay_s: float, folder: Path, key: Path, log: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            make_and_use(folder, key, log)
        finally:
            os._exit(1)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def measure(kills: Annotated[int, typer.Option("--kills", min=1)] = 200) -> dict[str, object]:
    """Pads used, and how often anything went wrong."""
    with tempfile.TemporaryDirectory() as place:
        return _measure(kills, Path(place))


def _measure(kills: int, place: Path) -> dict[str, object]:
    folder, key = place / "pads", place / "key"
    PadStore.create(
        folder, plan_digest=DIGEST, layout=LAYOUT, sealed=False, key_file=key, rng=SystemRandom()
    )
    log = os.open(place / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    refused = 0
    with progress("kills") as update:
        for i in range(kills):
            killed_after(secrets.randbelow(80) / 1000, folder, key, log)
            try:
                status = PadStore.open(folder, plan_digest=DIGEST, key_file=key).status()
            except CloisterError:
                refused += 1
            update(i + 1, kills)
    used = Counter((place / "log").read_text().split())
    return {
        "kills": kills,
        "rows_of_a_block": ROWS,
        "pads_used": len(used),
        "pads_used_twice": sum(count > 1 for count in used.values()),
        "times_the_store_did_not_open": refused,
        "pads_ready": status.ready,
        "pads_used_or_burnt": status.used,
        "pads_missing": status.missing,
    }


def faults(found: dict[str, object]) -> int:
    """Pads used twice, and stores that did not open."""
    return found["pads_used_twice"] + found["times_the_store_did_not_open"]
