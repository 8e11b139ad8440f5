"""`cloister ciphertexts`: the untrusted server of `cloister train --unmask-to trusted`."""

import contextlib
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli import options
from cloister.cli.console import err, out
from cloister.data.dataset import EncryptedDataset
from cloister.training import ciphertext_service
from cloister.training.ciphertexts import LocalCiphertextServer
from cloister.wire.request_log import ReleaseLog

app = typer.Typer(help="Compute on encrypted data sets for a trusted runtime; holds no key.")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")],
) -> None:
    """Make a ciphertext server's certificate, and the file its trusted runtime needs."""
    path = ciphertext_service.init(folder)
    out().print(f"{path}  give this file to the trusted runtime, and to nobody else")


@app.command()
def serve(
    datasets: Annotated[
        list[Path], typer.Argument(metavar="DATA.cloister...", help="Encrypted data sets.")
    ],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The server's folder.")],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")],
    log: Annotated[
        Path | None,
        typer.Option(
            "--log", metavar="FILE", help="Keep what this server is asked, for cloister audit."
        ),
    ] = None,
    threads: options.Threads = 1,
) -> None:
    """Answer a trusted runtime over HTTPS until interrupted."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    held = LocalCiphertextServer(*map(EncryptedDataset.open, datasets), threads=threads)
    with contextlib.ExitStack() as stack:
        kept = None if log is None else stack.enter_context(ReleaseLog(log))
        serving = contextlib.closing(
            ciphertext_service.serve(held, folder=folder, listen=listen, log=kept)
        )
        server = stack.enter_context(serving)
        console = out()
        console.print(f"ciphertext server: serving on {server.url}")
        console.file.flush()
        stop.wait()
    err().print("ciphertext server: stopped")
