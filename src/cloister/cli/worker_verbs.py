"""`cloister worker`: the untrusted side, serving linear layers to trusted runtimes."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cloister.base.identity import CERTIFICATE_FILE
from cloister.base.tls_identity import TlsIdentity
from cloister.cli import options
from cloister.cli.console import out
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
    tls: Annotated[
        Path | None,
        typer.Option(
            "--tls",
            metavar="DIR",
            help="Encrypt, with the key and certificate in this folder; made there once.",
        ),
    ] = None,
) -> None:
    """Serve linear layers to trusted runtimes until interrupted.

    A maker of pads needs --tls: clients send it seeds, which must stay secret.
    """
    budget_bytes = None if memory_gib is None else int(memory_gib * 2**30)
    identity = None if tls is None else TlsIdentity.open_or_create(tls)
    serve_worker(
        listen,
        device=device,
        threads=threads,
        budget_bytes=budget_bytes,
        identity=identity,
        ready=None if identity is None or tls is None else partial(_say_ready, identity, tls),
    )


def _say_ready(identity: TlsIdentity, folder: Path, address: str) -> None:
    console = out()
    console.print(f"worker: serving on {address}, encrypted")
    console.print(f"clients need {folder / CERTIFICATE_FILE} (--maker-certificate)")
    console.print(f"SHA-256 {identity.fingerprint}")
    console.file.flush()
