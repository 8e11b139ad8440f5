"""Trusted time per input against the fastest plain engines, by turns on the same cores.

The fastest of ONNX Runtime and PyTorch float32 is the baseline; ONNX Runtime with 8-bit weights
and activations runs along as a second, stricter one. `cloister.cli.speed` says what is timed. The
process whose peak memory is measured is one of its own.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import onnx
import typer

from benchmarks import networks, options
from benchmarks.engines import INT8, float_engines, int8_engine
from benchmarks.environment import environment
from benchmarks.peak import measure_peak
from cloister.cli.console import err
from cloister.cli.speed import measure_session, random_input
from cloister.graph.onnx.load import load
from cloister.plan import policies

ALL = "all"


def measure(
    model: Annotated[
        list[str], typer.Option("--model", metavar="NAME|FILE.onnx", help="Repeatable; or all.")
    ] = ["vgg16"],  # noqa: B006
    policy: Annotated[
        list[str],
        typer.Option("--policy", metavar="|".join((*policies.NAMES, ALL)), help="Repeatable."),
    ] = ["slalom"],  # noqa: B006
    threads: options.Threads = 1,
    worker_threads: options.WorkerThreads = 1,
    batch: options.Batch = 1,
    repeats: options.Repeats = 5,
    int8: Annotated[bool, typer.Option(help="Measure 8-bit ONNX Runtime too.")] = True,
    memory: Annotated[bool, typer.Option(help="Measure the trusted peak memory too.")] = True,
    pads: Annotated[
        Path | None,
        typer.Option(
            "--pads", metavar="DIR", help="Measure pads from a store too, which is made in DIR."
        ),
    ] = None,
) -> dict[str, object]:
    """One result, or several, for each model and policy."""
    setting = {
        "threads": threads, "worker_threads": worker_threads, "batch": batch, "repeats": repeats,
    }  # fmt: skip
    wanted = policies.NAMES if ALL in policy else policy
    found = [
        row
        for name in (networks.NAMES if ALL in model else model)
        for row in _measure(name, wanted, setting, int8=int8, memory=memory, pads=pads)
    ]
    return found[0] if len(found) == 1 else {"results": found}


def _measure(
    name: str,
    wanted: list[str],
    setting: dict[str, int],
    *,
    int8: bool,
    memory: bool,
    pads: Path | None,
) -> Iterator[dict[str, object]]:
    """One result per policy; the engines are made once and timed anew beside each."""
    threads, batch = setting["threads"], setting["batch"]
    proto = networks.build(name)
    with TemporaryDirectory() as folder:
        file, saved = Path(folder) / "model.onnx", Path(folder) / "model.plan"
        onnx.save(proto, file)
        graph = load(file)
        feeds = random_input(graph, batch)
        engines = float_engines(proto, graph, feeds, threads)
        rough = int8_engine(proto, feeds, threads) if int8 else {}
        for policy in wanted:
            err().print(f"{name} {policy} ...")
            plan = policies.make(policy, graph, calibration=feeds)
            times = measure_session(
                plan, engines, feeds, threads=threads,
                worker_threads=setting["worker_threads"], repeats=setting["repeats"], beside=rough,
                stores=pads,
            )  # fmt: skip
            int8_ms = times["engines"][INT8]["ms"] if rough else None
            peak = {}
            if memory:
                plan.save(saved)
                peak = measure_peak(file, saved, batch=batch, threads=threads)
                del peak["stages"]
            yield {
                "model": name,
                "weights": "file" if name.endswith(".onnx") else "random, seeded",
                "policy": policy,
                **setting,
                **times,
                "int8_ms": int8_ms,
                "int8_ratio": int8_ms / times["trusted_ms"] if rough else None,
                **peak,
                **environment(),
            }
