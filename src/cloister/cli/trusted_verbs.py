"""`cloister trusted`: a machine that proves itself, then runs plans or one bundle for callers."""

import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from cloister.attest.report_data import REPORT_DATA_BYTES
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.base.identity import create_certificate
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_keys import BundleKey, load_content_key, load_vendor
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.cli import hidden_end, options
from cloister.cli.attester_options import SimulatedMachineKey, attester_of
from cloister.cli.console import note
from cloister.cli.license_options import RELEASED, License
from cloister.cli.serving import serve_until_interrupted
from cloister.errors import InputError
from cloister.trusted.engines.sandbox import hide_memory
from cloister.trusted.hosted_session import BundleKeys, HostSettings
from cloister.trusted.runtime_service import RuntimeLimits, RuntimeService, ServedBundle
from cloister.trusted.session import DEFAULT_BATCH, DEFAULT_TIMEOUT_S

app = typer.Typer(
    help="Be the trusted side of callers elsewhere, as a machine that proves itself.",
    no_args_is_help=True,
)
LIMITS = "What callers may take"
GIB = 2**30

BundleFile = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        metavar="model.bundle",
        help="Run this bundle alone. Default: the plans that callers send.",
        rich_help_panel=hidden_end.HIDING,
    ),
]
ContentKey = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="The content key of --bundle.",
        rich_help_panel=hidden_end.HIDING,
    ),
]
Sessions = Annotated[
    int, typer.Option("--sessions", min=1, help="Of all callers.", rich_help_panel=LIMITS)
]
SessionMemory = Annotated[
    float,
    typer.Option(
        "--session-gib", min=0.5, metavar="GIB", help="Memory of a session.", rich_help_panel=LIMITS
    ),
]
PlanMemory = Annotated[
    float,
    typer.Option(
        "--plan-gib", min=0.001, metavar="GIB", help="Of one plan.", rich_help_panel=LIMITS
    ),
]
PlansMemory = Annotated[
    float,
    typer.Option(
        "--plans-gib", min=0.001, metavar="GIB", help="Of all plans.", rich_help_panel=LIMITS
    ),
]
CallTime = Annotated[
    float,
    typer.Option(
        "--call-s", min=1, metavar="SECONDS", max=600, help="Of one call.", rich_help_panel=LIMITS
    ),
]


@app.callback()
def _group() -> None:
    """Be the trusted side of callers elsewhere, as a machine that proves itself."""


@app.command(epilog="Example: cloister trusted serve --listen 0.0.0.0:8443 --worker gpu:7000")
@options.grouped
def serve(
    listen: options.Listen,
    execution: options.Execution,
    trust: hidden_end.BundleTrust,
    bought: License,
    bundle: BundleFile = None,
    key: ContentKey = None,
    engine: hidden_end.Engine = None,
    counter: hidden_end.CounterFile = None,
    sessions: Sessions = 8,
    session_gib: SessionMemory = 4.0,
    plan_gib: PlanMemory = 4.0,
    plans_gib: PlansMemory = 8.0,
    call_s: CallTime = 600.0,
    insecure_simulated: SimulatedMachineKey = None,
) -> None:
    """Prove this machine to callers, then run their models on their inputs, until interrupted.

    The process starts itself anew with an empty environment. Its arguments, and the id of --bundle,
    are its manifest, which the evidence binds: callers see it, and may accept this manifest alone.

    Outputs of a bundle may be bought: all callers spend the outputs of one --ticket, and get
    receipts. With --broker, the vendor's key broker releases the key of the bundle to this machine.
    """
    rng = SystemRandom()
    settings = HostSettings(
        workers=tuple(execution.worker or ()),
        threads=execution.threads,
        worker_threads=execution.worker_threads or 1,
        batch=execution.batch or DEFAULT_BATCH,
        lanes=execution.lanes,
        timeout_s=execution.timeout or DEFAULT_TIMEOUT_S,
        memory_bytes=int(session_gib * GIB),
        run_s=call_s,
    )
    limits = RuntimeLimits(sessions, int(plan_gib * GIB), int(plans_gib * GIB))
    with contextlib.ExitStack() as stack:
        served = None
        if bundle is None:
            trust.refuse_any()
            bought.refuse_any("goes with --bundle")
            options.refuse_given(
                "goes with --bundle", {"--key": key, "--engine": engine, "--counter": counter}
            )
            manifest = RuntimeManifest.of_this_process(version("cloister"))
        else:
            manifest, served = stack.enter_context(
                _served(bundle, trust, bought, key, engine, counter, insecure_simulated)
            )
        attester = attester_of(insecure_simulated, rng=rng)
        # A machine that cannot prove itself says so here, and not to its first caller.
        attester.evidence(bytes(REPORT_DATA_BYTES))
        hide_memory()
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        create_certificate(Path(folder), "cloister trusted")
        start = partial(
            RuntimeService, listen, folder=Path(folder), attester=attester, manifest=manifest,
            settings=settings, limits=limits, bundle=served, rng=rng,
        )  # fmt: skip
        serve_until_interrupted(
            start,
            "trusted",
            f"evidence {attester.format} ({attester.name})",
            f"manifest {manifest.digest.hex()}",
        )


@contextlib.contextmanager
def _served(
    path: Path,
    trust: hidden_end.BundleTrust,
    bought: License,
    key: Path | None,
    engine: hidden_end.EngineName | None,
    counter: Path | None,
    machine: Path | None,
) -> Iterator[tuple[RuntimeManifest, ServedBundle]]:
    """The manifest of a bundle's runtime, and what opens and meters the bundle.

    machine   the key of a machine that is played

    Raises   InputError for options that are missing, BundleError, and what the broker raises
    """
    missing = InputError(
        f"--bundle {path}: give --vendor FILE, whose key signed it, and what opens it: --key FILE, "
        "or --broker URL"
    )
    if trust.vendor is None:
        raise missing
    vendor = load_vendor(trust.vendor)
    found = SealedBundle.verify(path, vendor=vendor, at_least=trust.at_least or 1)
    bundle_id, public = found.header.bundle_id, vendor.public_bytes_raw()
    with contextlib.ExitStack() as stack:
        client = bought.client(str(path), vendor=trust.vendor, key=key, machine=machine)
        # Before it holds a key: a meter that others lock could keep it waiting with one.
        hide_memory()
        if client is not None:
            stack.callback(client.close)
            released = client.release()
            opens = released.bundle_key
            note(RELEASED.format(entry=released.entry, digest=released.digest.hex()))
        elif key is not None:
            opens = BundleKey.derive(load_content_key(key), bundle_id=bundle_id)
        else:
            raise missing
        meter = bought.open(found.header, vendor=trust.vendor, key=key, client=client)
        manifest = RuntimeManifest.of_this_process(
            version("cloister"),
            bundle=bundle_id.hex(),
            vendor=public.hex(),
            license="" if meter is None else meter.ticket.license,
        )
        counts = hidden_end.open_counter(found.plan, counter)
        keys = BundleKeys(
            path.absolute(),
            bundle_id,
            opens.key,
            public,
            engine or hidden_end.EngineName.NATIVE,
            None if counts is None else counts.path,
        )
        yield manifest, ServedBundle(found.plan, keys, meter)
