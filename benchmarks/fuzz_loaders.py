"""Damaged files for minutes: those that raise anything but the library's own errors are kept."""

import itertools
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import ROOT
from cloister.cli.console import err

sys.path.append(str(ROOT / "tests"))

from fuzz.loaders import LOADERS
from fuzz.run import ForeignError, attack

ROUNDS = 200


def measure(
    minutes: Annotated[float, typer.Option("--minutes")] = 10.0,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="LOADER")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 2,
    keep: Annotated[Path, typer.Option("--keep", metavar="FOLDER")] = Path("build/fuzz"),
) -> dict[str, object]:
    """Numbers of files and of foreign errors, and one line on each kind."""
    warnings.simplefilter("ignore")
    ends = time.monotonic() + 60 * minutes
    files = found = 0
    kinds: dict[str, str] = {}
    rounds = ((number, name) for number in itertools.count(seed) for name in only or LOADERS)
    for number, name in itertools.takewhile(lambda _: time.monotonic() < ends, rounds):
        try:
            with tempfile.TemporaryDirectory() as folder:
                attack(LOADERS[name], Path(folder), seed=number, rounds=ROUNDS)
        except ForeignError as error:
            found += 1
            cause = error.__cause__
            frame = traceback.extract_tb(cause.__traceback__)[-1]
            kind = f"{name.split()[0]} {type(cause).__name__} {frame.filename}:{frame.name}"
            if kind not in kinds:
                keep.mkdir(parents=True, exist_ok=True)
                kept = keep / f"{len(kinds) + 1}.bin"
                kept.write_bytes(error.data)
                kinds[kind] = f"{name}: {error}; {frame.filename}:{frame.lineno}; {kept}"
                err().print(kinds[kind])
        files += ROUNDS
    return {"files": files, "foreign_errors": found, "kinds": list(kinds.values())}


def faults(found: dict[str, object]) -> int:
    """Errors that are not the library's."""
    return found["foreign_errors"]
