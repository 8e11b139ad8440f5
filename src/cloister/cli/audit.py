"""`cloister audit`: attacks on what an untrusted party received."""

import importlib
from pathlib import Path
from typing import Annotated

import typer

from cloister.audit.training.lattice import LARGEST_LATTICE
from cloister.cli import options
from cloister.errors import InputError

DEFAULT_RANGE = (-127.0, 127.0)
"""What the default encoding of eight bits can hold."""
app = typer.Typer(help="Attack what an untrusted party received.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Attack what an untrusted party received."""


@app.command("encrypted")
def encrypted(
    transcript: Annotated[
        Path,
        typer.Argument(
            metavar="TRANSCRIPT",
            help="Log of `cloister train --release-log` or `--request-log`, or of `cloister "
            "ciphertexts serve --log`.",
        ),
    ],
    truth: Annotated[
        list[Path] | None,
        typer.Option(
            "--truth",
            metavar="FILE.npz",
            help="The data, for scoring: what `cloister data encrypt --order` wrote, once for each "
            "part; or plain data with its scale and offset, and --order.",
        ),
    ] = None,
    order: Annotated[
        list[Path] | None,
        typer.Option(
            "--order", metavar="FILE.npz", help="Which sample is which, for plain data as --truth."
        ),
    ] = None,
    public: Annotated[
        Path | None,
        typer.Option(
            "--public", metavar="FILE.npz", help="Similar data the attacker has: x, as in --truth."
        ),
    ] = None,
    value_range: Annotated[
        tuple[float, float],
        typer.Option("--range", metavar="LOW HIGH", help="Range of the encoded integers."),
    ] = DEFAULT_RANGE,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Samples to attack.")] = 16,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Releases joined at most.")] = 256,
    lattice: Annotated[
        int,
        typer.Option(
            "--lattice",
            min=0,
            max=LARGEST_LATTICE,
            help="Elements up to which integer decoding is tried; it takes up to a minute.",
        ),
    ] = LARGEST_LATTICE,
    value_bits: Annotated[
        int,
        typer.Option(
            "--value-bits",
            min=1,
            max=32,
            help="Bits of a value as the data set's owner set them; attacks then know the noise. "
            "32: the values are exact, as in mode paper.",
        ),
    ] = 32,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures.")
    ] = None,
    tail_ok: Annotated[
        bool, typer.Option("--tail-ok", help="Leave out a last record that was cut off.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Attack what encrypted training sent to the server, a ciphertext host or the authority."""
    # The attacks need SciPy, which an installation that only runs models does not have.
    try:
        attacks = importlib.import_module("cloister.cli.audit_encrypted")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "scipy":
            raise
        raise InputError(
            "the attacks need SciPy; install it with: pip install 'cloister[audit]'"
        ) from error
    attacks.audit_encrypted(
        attacks.Request(
            transcript=transcript,
            truth=truth or [],
            order=order or [],
            public=public,
            value_range=value_range,
            samples=samples,
            steps=steps,
            lattice=lattice,
            value_bits=value_bits,
            html=html,
            tail_ok=tail_ok,
            json=json,
        )
    )
