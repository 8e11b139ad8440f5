"""Hostile evidence, bundles, tickets, handshakes and requests for minutes; findings are kept."""

import itertools
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import ROOT
from benchmarks.environment import environment
from cloister.cli.console import err

sys.path.append(str(ROOT / "tests"))

from fuzz.attested import TARGETS
from fuzz.case import attack

ROUNDS = 100


def measure(
    target: Annotated[str, typer.Option("--target", metavar="|".join(TARGETS))],
    minutes: Annotated[float, typer.Option("--minutes")] = 5.0,
    seed: Annotated[int, typer.Option("--seed")] = 2,
    keep: Annotated[Path, typer.Option("--keep", metavar="FOLDER")] = Path("build/fuzz"),
) -> dict[str, object]:
    """Numbers of cases and of findings, and one line on each kind of finding.

    A finding is an error that is not the library's, more than a second of processor time, more than
    200 MB of memory, or acceptance of what has to be refused.
    """
    warnings.simplefilter("ignore")
    if target not in TARGETS:
        raise typer.BadParameter(f"--target {target}: choose {', '.join(TARGETS)}")
    tried, accepted, found = Counter(), Counter(), Counter()
    lines: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, TARGETS[target](Path(folder)) as make:
        ends = time.monotonic() + 60 * minutes
        for start in itertools.count(0, ROUNDS):
            tally = attack(make, seed=seed, numbers=range(start, start + ROUNDS))
            tried += tally.tried
            accepted += tally.accepted
            for finding, case, place in tally.found:
                found[finding.kind] += 1
                if finding.kind not in lines:
                    keep.mkdir(parents=True, exist_ok=True)
                    kept = keep / f"{target}-{len(lines) + 1}.bin"
                    kept.write_bytes(case.data)
                    lines[finding.kind] = f"{case.how}: {finding}; seed and number {place}; {kept}"
                    err().print(lines[finding.kind], markup=False)
            if time.monotonic() > ends:
                break
    return {
        "target": target,
        "cases": tried.total(),
        "accepted": accepted.total(),
        "findings": found.total(),
        "kinds": [{"kind": k, "cases": tried[k], "accepted": accepted[k]} for k in sorted(tried)],
        "found": list(lines.values()),
        **environment(),
    }


def faults(found: dict[str, object]) -> int:
    """Findings."""
    return found["findings"]
