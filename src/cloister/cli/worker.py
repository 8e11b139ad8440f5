"""`cloister worker`: the untrusted side, serving linear layers to trusted runtimes."""

from typing import Annotated

import typer

from cloister.worker.serve import serve


def worker(
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Address to serve.")],
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
    serve(listen, device=device, threads=threads, budget_bytes=budget_bytes)
