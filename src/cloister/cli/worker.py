"""`cloister worker`: the untrusted side, serving linear layers to trusted runtimes."""

from typing import Annotated

import typer

from cloister.worker.main import serve


def worker(
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Address to serve.")],
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda", help="Where.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
) -> None:
    """Serve linear layers to trusted runtimes until interrupted."""
    serve(listen, device=device, threads=threads)
