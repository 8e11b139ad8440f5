"""Damaged files for minutes: what raises anything but the library's own errors is kept and named.

python benchmarks/fuzz_loaders.py --minutes 10 [--only NAME] [--seed 5] [--keep FOLDER]
"""

import argparse
import itertools
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz.loaders import LOADERS
from fuzz.run import ForeignError, attack

ROUNDS = 200


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", action="append", choices=list(LOADERS), default=[])
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    ends = time.monotonic() + 60 * options.minutes
    files = found = 0
    told: set[str] = set()
    rounds = (
        (seed, name) for seed in itertools.count(options.seed) for name in options.only or LOADERS
    )
    for seed, name in itertools.takewhile(lambda _: time.monotonic() < ends, rounds):
        try:
            with tempfile.TemporaryDirectory() as folder:
                attack(LOADERS[name], Path(folder), seed=seed, rounds=ROUNDS)
        except ForeignError as error:
            found += 1
            cause = error.__cause__
            frame = traceback.extract_tb(cause.__traceback__)[-1]
            kind = f"{name.split()[0]} {type(cause).__name__} {frame.filename}:{frame.name}"
            if kind not in told:
                told.add(kind)
                options.keep.mkdir(parents=True, exist_ok=True)
                kept = options.keep / f"{len(told)}.bin"
                kept.write_bytes(error.data)
                print(f"{name}: {error}; {frame.filename}:{frame.lineno}; {kept}", flush=True)
        files += ROUNDS
    print(f"{files:,} files, {found} foreign errors of {len(told)} kinds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
