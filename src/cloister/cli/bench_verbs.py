"""`cloister bench`: protected inference beside plain ONNX Runtime, and what suits the processor."""

from typing import Annotated

import typer

from cloister.cli import options
from cloister.cli.console import emit_json, out, table
from cloister.cli.speed import OrtBaseline, machine, measure_session, random_input
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import load
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted import tuning

TUNE_S = 1.0
"""Longer than a session may take, so that a busy machine counts less."""

app = typer.Typer(help="Measure Cloister on your model.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure Cloister on your model."""


@app.command(epilog="Example: cloister bench inference model.onnx --threads 4")
@options.grouped
def inference(
    model: options.ModelFile,
    given: options.ChosenPolicy,
    threads: options.Threads = 1,
    worker_threads: Annotated[
        int, typer.Option("--worker-threads", min=1, help="Threads of the worker's process.")
    ] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per call.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")] = 5,
    json: options.Json = False,
) -> None:
    """Compare trusted time per random input with the time of ONNX Runtime on the same cores."""
    options.refuse_plan(model)
    whole = load(model, dims=options.sizes(given.dim))
    engine = OrtBaseline(model_bytes(whole), threads)
    graph = prepare(whole)
    feeds = random_input(graph, batch)
    chosen = given.split.choose(given.named, graph)
    plan = policies.make(given.named, graph, calibration=feeds, split=chosen.split)
    times = measure_session(
        plan,
        {"onnxruntime": lambda: engine.run(feeds)},
        feeds,
        threads=threads,
        worker_threads=worker_threads,
        repeats=repeats,
    )
    found = {
        "model": model,
        "policy": plan.policy,
        "split": chosen.line or None,
        "threads": threads,
        "worker_threads": worker_threads,
        "batch": batch,
        "repeats": repeats,
        **times,
        **machine(),
    }
    if json:
        emit_json(found)
        return
    console = out()
    console.print(
        f"{model}, policy {plan.policy}, {threads} threads, batch {batch}, {repeats} runs"
    )
    if chosen.line:
        console.print(chosen.line)
    console.print(f"{found['cpu']}, {found['isa']}")
    rows = [
        ("plain, ONNX Runtime", found["baseline_ms"]),
        ("trusted side", found["trusted_ms"]),
        ("pads, beforehand", found["offline_ms"]),
    ]
    console.print(table(("CPU ms per input", "median"), rows))
    console.print(f"waiting for the worker {found['worker_ms']:.4g} ms")
    console.print(f"ratio of plain to trusted time {found['ratio']:.4g}")


@app.command(epilog="Example: cloister bench tune --json")
def tune(json: options.Json = False) -> None:
    """Measure which parameters of the kernels suit this processor, and keep them for sessions."""
    measured = tuning.calibrate(budget_s=TUNE_S)
    chosen = tuning.best(measured)
    kept = tuning.keep(chosen)
    if json:
        emit_json({
            "processor": chosen.processor,
            "cores": chosen.cores,
            "isa": chosen.isa,
            "kept": kept,
            "candidates": [
                {**_parameters(one.choice), "ms": one.ms, "chosen": one.choice == chosen}
                for one in measured
            ],
        })  # fmt: skip
        return
    console = out()
    console.print(f"{chosen.processor}, {chosen.cores} cores, {chosen.isa}")
    rows = [
        (*_parameters(one.choice).values(), round(one.ms, 4), "chosen" * (one.choice == chosen))
        for one in measured
    ]
    console.print(table(("tile", "tiles ahead", "streams from", "ms", ""), rows))
    console.print(f"kept in {kept}", soft_wrap=True)


def _parameters(choice: tuning.Choice) -> dict[str, int]:
    return {
        "tile": choice.tile,
        "far_tiles": choice.far_tiles,
        "stream_from": choice.stream_from,
    }
