"""`cloister audit`: attacks on the messages that an untrusted party received."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cloister.audit import training
from cloister.audit.architecture.architecture_audit import (
    DEFAULT_CALLS,
    DEFAULT_OBSERVATIONS,
    audit_architectures,
)
from cloister.audit.architecture.tell_apart import FOLDS
from cloister.audit.input.request_audit import audit_requests, requests_page
from cloister.audit.training.attack_settings import DEFAULT_RANGE, AttackSettings
from cloister.audit.training.lattice import LARGEST_LATTICE
from cloister.authority.noise import EXACT_BITS
from cloister.base import files
from cloister.base.rng import SystemRandom
from cloister.bundle.compiled_module import CompiledModule
from cloister.cli import options
from cloister.cli.bundle_verbs import POWER
from cloister.cli.console import emit_json, err, out, progress, table
from cloister.errors import InputError
from cloister.trusted.engines.padding_profile import PaddingProfile
from cloister.wire.transcript import Transcript

app = typer.Typer(
    help="Attack the messages that an untrusted party received.", no_args_is_help=True
)

TranscriptFile = Annotated[
    Path, typer.Argument(metavar="FILE.npz", help="What `cloister run --transcript` wrote.")
]
LogFile = Annotated[
    Path,
    typer.Argument(
        metavar="LOG",
        help="Log of `cloister train --release-log` or `--request-log`, or of `cloister data "
        "serve --log`.",
    ),
]
TruthFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--truth",
        metavar="FILE.npz",
        help="The data, for scoring: the file of `cloister data encrypt --order`, once for each "
        "part; or plain data with its scale and offset, and --order.",
    ),
]
OrderFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--order", metavar="FILE.npz", help="Which sample is which, for plain data as --truth."
    ),
]
PublicFile = Annotated[
    Path | None,
    typer.Option(
        "--public", metavar="FILE.npz", help="Similar data the attacker has: x, as in --truth."
    ),
]
INTEGERS = ",".join(f"{end:g}" for end in DEFAULT_RANGE)
ValueRange = Annotated[
    str,
    typer.Option("--range", metavar="LOW,HIGH", help="Range of the encoded integers."),
]
Samples = Annotated[int, typer.Option("--samples", min=1, help="Samples to attack.")]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Releases joined at most.")]
Lattice = Annotated[
    int,
    typer.Option(
        "--lattice",
        min=0,
        max=LARGEST_LATTICE,
        help="Elements up to which integer decoding is tried; it takes up to a minute.",
    ),
]
ValueBits = Annotated[
    int,
    typer.Option(
        "--value-bits",
        min=1,
        max=EXACT_BITS,
        help="Bits of a value as the data set's owner set them: attacks then know the noise. 32: "
        "the values are exact, as under --privacy paper.",
    ),
]
Page = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page with pictures.")
]
TailOk = Annotated[bool, typer.Option("--tail-ok", help="Leave out a record that was cut off.")]

Modules = Annotated[
    list[Path],
    typer.Argument(metavar="MODULE MODULE...", help="Folders of `cloister compile --out`."),
]
WhichEngine = Annotated[
    Literal["native", "wasm"], typer.Option("--engine", help="What runs the modules.")
]
Observations = Annotated[
    int, typer.Option("--observations", min=FOLDS, help="Starts of each module's engine.")
]
Calls = Annotated[int, typer.Option("--calls", min=1, help="Calls at each start.")]
PadTo = Annotated[
    str,
    typer.Option(
        "--pad-to",
        metavar=f"{POWER}|BYTES",
        help="Size of a bundle, and of a module in memory, with padding.",
    ),
]
GridMs = Annotated[
    float, typer.Option("--grid-ms", help="With padding, answers come at multiples of this.")
]


@app.command(epilog="Example: cloister audit transcript run.npz --out page.html")
def transcript(path: TranscriptFile, page: Page = None, json: options.Json = False) -> None:
    """Attack the messages to workers during inference: find values, and pads that were used
    twice.
    """
    recorded = Transcript.load(path)
    found = audit_requests(recorded)
    if page is not None:
        _write(page, requests_page(recorded, found))
    if json:
        emit_json([one.to_dict() for one in found])
        return
    rows = [
        (
            one.target_id, one.dtype, one.inputs, one.nbytes,
            None if one.uniformity is None else one.uniformity.p_text, one.verdict,
        )
        for one in found
    ]  # fmt: skip
    columns = ("node", "numbers", "inputs", "bytes", "chi-square p", "verdict")
    out().print(table(columns, rows))


@app.command("training", epilog="Example: cloister audit training release.log --truth truth.npz")
def training_log(
    log: LogFile,
    truth: TruthFiles = None,
    order: OrderFiles = None,
    public: PublicFile = None,
    value_range: ValueRange = INTEGERS,
    samples: Samples = AttackSettings.samples,
    steps: Steps = AttackSettings.steps,
    lattice: Lattice = LARGEST_LATTICE,
    value_bits: ValueBits = EXACT_BITS,
    page: Page = None,
    tail_ok: TailOk = False,
    json: options.Json = False,
) -> None:
    """Attack the messages of encrypted training to the server, a ciphertext host or the
    authority.
    """
    ends = options.value_range(value_range)
    audit = training.audit_log(
        log, truth=truth or (), order=order or (), public=public, tail_ok=tail_ok,
        settings=AttackSettings(ends, samples, steps, lattice, value_bits),
    )  # fmt: skip
    if page is not None:
        _write(page, audit.page())
    if json:
        emit_json(audit.to_dict())
        return
    columns = ("attack", "verdict", "score", "best guess", "exact", "worked with")
    out().print(table(columns, audit.rows()))
    out().print(f"\nverdict: {audit.verdict}. {audit.conclusion}", soft_wrap=True)
    out().print(audit.thresholds, soft_wrap=True)


@app.command(epilog="Example: cloister audit architecture wide deep --grid-ms 5")
def architecture(
    modules: Modules,
    engine: WhichEngine = "native",
    observations: Observations = DEFAULT_OBSERVATIONS,
    calls: Calls = DEFAULT_CALLS,
    pad_to: PadTo = POWER,
    grid_ms: GridMs = PaddingProfile.grid_ms,
    json: options.Json = False,
) -> None:
    """Tell hidden modules apart by what the owner of a machine sees: sizes, times and fuel, with
    and without padding.
    """
    if pad_to != POWER and not (pad_to.isascii() and pad_to.isdecimal()):
        raise InputError(f"--pad-to {pad_to}: give {POWER} or a number of bytes")
    padding = PaddingProfile(None if pad_to == POWER else int(pad_to), grid_ms)
    loaded = {str(path): CompiledModule.load(path) for path in modules}
    with progress("starts") as update:
        audit = audit_architectures(
            loaded, engine, padding=padding, rng=SystemRandom(), observations=observations,
            calls=calls, progress=update,
        )  # fmt: skip
    if json:
        emit_json(audit.to_dict())
        return
    columns = ("what is seen", "accuracy (95 % interval)", "with padding")
    out().print(table(columns, audit.rows()))
    out().print(f"\na guess has {audit.chance:.2f}. {audit.conclusion}", soft_wrap=True)


def _write(page: Path, text: str) -> None:
    # It shows samples.
    files.replace(page, text.encode(), private=True)
    err().print(f"page written to {page}", soft_wrap=True)
