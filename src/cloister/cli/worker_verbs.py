"""`cloister worker`: the untrusted side, serving linear layers to trusted runtimes."""

from typing import Annotated

import typer

from cloister.cli import options
from cloister.worker.serve import serve as serve_worker

app = typer.Typer(help="Compute for trusted runtimes, as the untrusted side.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Compute for trusted runtimes, as the untrusted side."""


@app.command(epilog="Example: cloister worker serve --listen 0.0.0.0:7000 --device cuda")
def serve(
    listen: options.Listen,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
    memory_gib: Annotated[
        float | None,
        typer.Option(
            "--memory-gib",
            min=0.001,
            metavar="GIB",
            help="For all clients together. Default: 3/4 of the machine's, at most 32.",
        ),
    ] = None,
) -> None:
    """Serve linear layers to trusted runtimes until interrupted."""
    budget_bytes = None if memory_gib is None else int(memory_gib * 2**30)
    serve_worker(listen, device=device, threads=threads, budget_bytes=budget_bytes)
