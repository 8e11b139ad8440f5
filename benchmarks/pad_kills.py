"""kill -9 at random moments of making and using pads: is any pad used twice, does the store open?

    python benchmarks/pad_kills.py [--kills 200] [--json]

A child makes and uses pads without end and notes every id it was given before it uses it; it is
killed after a random time and started anew on the same store.
"""

import argparse
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from cloister.base.rng import SystemRandom
from cloister.errors import CloisterError
from cloister.trusted.pads.store import PadStore

DIGEST = bytes(32)
PAD = {0: np.arange(3000, dtype=np.uint32).reshape(1, 1, 3000)}


def make_and_use(folder: Path, key: Path, log: int) -> None:
    """Until killed."""
    store = PadStore.open(folder, plan_digest=DIGEST, key_file=key)
    while True:
        for pad_id in store.reserve(2):
            store.put(pad_id, PAD)
        for pad in store.take(1):
            os.write(log, f"{pad.pad_id}\n".encode())


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


def measure(kills: int, place: Path) -> dict[str, object]:
    folder, key = place / "pads", place / "key"
    PadStore.create(folder, plan_digest=DIGEST, key_file=key, rng=SystemRandom())
    log = os.open(place / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    refused = 0
    for i in range(kills):
        killed_after(secrets.randbelow(40) / 1000, folder, key, log)
        try:
            status = PadStore.open(folder, plan_digest=DIGEST, key_file=key).status()
        except CloisterError:
            refused += 1
        print(f"\r{i + 1}/{kills} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    used = Counter((place / "log").read_text().split())
    return {
        "kills": kills,
        "pads_used": len(used),
        "pads_used_twice": sum(count > 1 for count in used.values()),
        "times_the_store_did_not_open": refused,
        "pads_ready": status.ready,
        "pads_lost": status.lost,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measure(options.kills, Path(place))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name.replace('_', ' '):30} {value}")
    sys.exit(bool(found["pads_used_twice"] or found["times_the_store_did_not_open"]))


if __name__ == "__main__":
    main()
