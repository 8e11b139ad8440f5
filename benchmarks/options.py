"""Options that several benchmarks share."""

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import Threads
from cloister.plan import policies

__all__ = [
    "Batch",
    "Data",
    "Maker",
    "Model",
    "Models",
    "Policy",
    "Repeats",
    "Threads",
    "WorkerThreads",
]

_MODELS = {"metavar": "NAME|FILE.onnx", "help": "A built network (vgg16, ...) or a file."}
Model = Annotated[str, typer.Option("--model", **_MODELS)]
Models = Annotated[list[str], typer.Option("--model", **_MODELS)]
Policy = Annotated[str, typer.Option("--policy", metavar="|".join(policies.NAMES))]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Inputs per call.")]
Repeats = Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")]
WorkerThreads = Annotated[
    int, typer.Option("--worker-threads", min=1, help="Threads of each worker's process.")
]
Maker = Annotated[bool, typer.Option("--maker", help="One maker, which is given seeds.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", envvar="CLOISTER_DATA", help="Models and data."),
]
