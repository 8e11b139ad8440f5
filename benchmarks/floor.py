"""What no trusted side can be faster than on this machine, by counting bytes and instructions.

    python -m benchmarks floor [--model vgg16]... [--ceilings ceilings.json] [--json]

The ceilings are those of this machine, which g++ compiles and runs benchmarks/ceilings.cpp for, or
those of a file that it printed.

Every pass of a plan is counted, for one input and one core:

bytes         replies come from the last-level cache at best, because another core wrote them;
              `A r` comes from memory; requests, and float32 values that are kept and read again,
              go no further than the last-level cache
instructions  512-bit ones: those that need one of the two multipliers (IFMA, VNNI, VAES, vmulps),
              and all that compute, of which a core can start four in a cycle

The floor takes every ceiling as reached and bytes as moved while instructions run, so it is the
larger of the two. Loads, stores, addresses, the sums at the end of pixels and rows, cache misses
while one tile waits for another, and the exchanges with the worker come on top.
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import networks, options
from cloister.errors import InputError
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Fused

SOURCE = Path(__file__).parent / "ceilings.cpp"
FLAGS = ("-O3", "-std=c++20", "-march=native")
LANES = 16
REPLY = {"multipliers": 1, "all": 5}  # scale; convert, scale, bias, two clamps
UNBLIND = {"multipliers": 0, "all": 1}
REPLY_CHECK = {"multipliers": 4, "all": 7}  # two halves, low and high; sign, widened twice
REQUEST = {"multipliers": 1, "all": 5}  # scale, clamp, convert; compare and count what clips
PAD = {"multipliers": 14, "all": 17}  # AES-256; counter, key whitening, addition
REQUEST_CHECK = {"multipliers": 2, "all": 2}  # of one term: four digits of two integers at once
TAP = {"multipliers": 1, "all": 2}  # of a depthwise window


@dataclass
class Count:
    """Of one plan and one input."""

    replies: int = 0
    unblinding: int = 0
    requests: int = 0
    kept: int = 0
    multipliers: float = 0.0
    all: float = 0.0

    def add(self, cost, elements, times=1):
        """Instructions for so many elements."""
        self.multipliers += cost["multipliers"] * times * elements / LANES
        self.all += cost["all"] * times * elements / LANES


def elements(size):
    return size[0] * size[1] * size[2]


def count(plan):
    """Bytes and instructions of all passes of a plan."""
    found = Count()
    for step in compile_plan(plan).steps:
        if not isinstance(step, Fused):
            continue
        before, after = elements(step.size), elements(step.out_size)
        if step.node is not None:
            protection = plan.protection_of(plan.linear_nodes[step.node])
            found.replies += 4 * before
            found.add(REPLY, before)
            if protection.hidden:
                found.unblinding += 4 * before
                found.add(UNBLIND, before)
            if protection.checked:
                found.add(REPLY_CHECK, before)
        if step.epilogue.residual is not None:
            found.kept += 4 * before
        if step.stored:
            found.kept += 4 * after
        if step.epilogue.depthwise is not None:
            window = step.epilogue.window
            found.add(TAP, after, window.kernel[0] * window.kernel[1])
        for index in step.sinks:
            node = plan.linear_nodes[index]
            protection = plan.protection_of(node)
            found.requests += (4 if protection.hidden else 2) * after
            found.add(REQUEST, after)
            if protection.hidden:
                found.add(PAD, after)
            if protection.checked:
                found.add(REQUEST_CHECK, after, node.linear.geometry.kernel[1])
    return found


def floor(counted, ceilings):
    """Milliseconds for the bytes and for the instructions."""
    rates = ceilings["gb_per_s"]
    moved = (
        counted.replies / rates["L3"]["read"]
        + counted.unblinding / rates["memory"]["read"]
        + counted.requests / rates["L3"]["write"]
        + counted.kept / rates["L3"]["read"]
    )
    cycles = max(
        counted.multipliers / ceilings["per_cycle"]["ifma"],
        counted.all / ceilings["per_cycle"]["add"],
    )
    return 1e-6 * moved, 1e-6 * cycles / ceilings["ghz"]


@cache
def ceilings_here() -> dict[str, Any]:
    """What benchmarks/ceilings.cpp measures on this machine, once in a run."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "ceilings")
        try:
            subprocess.run(["g++", *FLAGS, str(SOURCE), "-o", program], check=True)
            printed = subprocess.run([program], check=True, capture_output=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"{SOURCE.name}: needs g++ and AVX-512 ({error}); or give --ceilings FILE.json"
            ) from None
    return json.loads(printed)


def milliseconds(plan):
    """The floor of one plan on this machine."""
    return max(floor(count(plan), ceilings_here()))


def measure(
    ceilings: Annotated[Path | None, typer.Option("--ceilings", metavar="FILE.json")] = None,
    model: options.Models = ["vgg16", "mobilenet_v1", "resnet50", "resnet152"],  # noqa: B006
) -> dict[str, object]:
    """The floor of each model under each policy that outsources layers with protection."""
    rates = json.loads(ceilings.read_text()) if ceilings else ceilings_here()
    rows = []
    for name in model:
        for policy in ("verified", "blinded", "slalom"):
            counted = count(networks.planned(name, policy)[0])
            moved = counted.replies + counted.unblinding + counted.requests + counted.kept
            moved_ms, computed_ms = floor(counted, rates)
            rows.append({
                "model": name, "policy": policy, "mb": 1e-6 * moved,
                "million_instructions": 1e-6 * counted.all, "bytes_ms": moved_ms,
                "instructions_ms": computed_ms, "floor_ms": max(moved_ms, computed_ms),
            })  # fmt: skip
    return {"ceilings": rates, "floors": rows}
