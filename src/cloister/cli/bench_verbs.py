"""`cloister bench`: protected inference of a model beside plain ONNX Runtime."""

from typing import Annotated

import typer

from cloister.cli import options
from cloister.cli.console import emit_json, out, table
from cloister.cli.speed import OrtBaseline, machine, measure_session, random_input
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.read import load
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies

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
