"""How verifiers of evidence stand against changed bytes, another verifier, and noise.

Every byte of the signed part of every real vector is flipped; a thousand mutations of SGX and TDX
quotes are judged by a second verifier too; and mutated evidence and collateral may raise nothing
but the library's own errors.
"""

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.environment import environment
from cloister.attest.check_tree import Check
from cloister.attest.collateral import Collateral
from cloister.attest.verify import verify
from cloister.cli.console import err
from cloister.errors import CloisterError

TESTS = Path(__file__).parents[1] / "tests"


def measure(
    mutations: Annotated[int, typer.Option(min=1, help="Of each SGX and TDX quote.")] = 1000,
    seconds: Annotated[float, typer.Option(min=1, help="Of noise.")] = 300.0,
    seed: int = 1,
) -> dict[str, object]:
    """Numbers of changes that were made, and of those that went unnoticed or were judged apart."""
    sys.path.insert(0, str(TESTS))
    from attest import cases  # noqa: PLC0415  (tests are no package)
    from attest import test_second_opinion as second  # noqa: PLC0415

    flips: dict[str, dict[str, int]] = {}
    for case in cases.GENUINE:
        err().print(f"{case.name} ...")
        flips[case.name] = _flip_all(case)
    apart = {
        quote: _judge(quote, collateral, mutations, random.Random(f"{seed} {quote}"), second)
        for quote, collateral in second.PAIRS
    }
    return {
        "flips": flips,
        "unnoticed": sum(row["unnoticed"] for row in flips.values()),
        "mutations": mutations,
        "judged_apart": apart,
        "noise": _noise(cases.GENUINE, second.mutated, seconds, random.Random(seed)),
        **environment(),
    }


def _flip_all(case) -> dict[str, int]:
    given, flipped, unnoticed = case.given(), 0, 0
    for _, changed in case.flips():
        flipped += 1
        try:
            verify(changed, given, now=case.at)
            unnoticed += 1
        except CloisterError:
            pass
    return {"bytes": flipped, "unnoticed": unnoticed}


def _judge(quote: str, collateral: str, count: int, draw: random.Random, second) -> int:
    data, given = (second.VECTORS / quote).read_bytes(), second.VECTORS / collateral
    apart = 0
    for _ in range(count):
        changed = second.mutated(data, draw)
        ours, theirs = (f(changed, given, second.NOW) for f in (second.ours, second.theirs))
        apart += ours != theirs
    return apart


def _noise(
    genuine, mutated: Callable[[bytes, random.Random], bytes], seconds: float, draw: random.Random
) -> dict[str, int]:
    """Mutated evidence with the collateral of any vector; other errors end the benchmark."""
    ends, tried, accepted = time.monotonic() + seconds, 0, 0
    given = [case.given() for case in genuine] + [Collateral()]
    while time.monotonic() < ends:
        case = draw.choice(genuine)
        try:
            verify(mutated(case.data, draw), draw.choice(given), now=case.at, check=Check("noise"))
            accepted += 1
        except CloisterError:
            pass
        tried += 1
    return {"tried": tried, "accepted": accepted}


def faults(found: dict[str, object]) -> int:
    """Flips that nobody noticed, and verdicts that differ."""
    return found["unnoticed"] + sum(found["judged_apart"].values())
