"""`cloister pads`: one-time pads made before they are needed."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloister.base.rng import SystemRandom
from cloister.base.sizes import human_bytes
from cloister.cli import maker_options, options
from cloister.cli.console import emit_json, err, note, out, progress
from cloister.errors import InputError
from cloister.plan.plan import Plan
from cloister.plan.plan_choice import is_plan_file
from cloister.plan.protection import outer_policy
from cloister.ring.pad_block import BLOCK_ROWS_MAX
from cloister.trusted.pads import factory, stored_plan
from cloister.trusted.pads.makers import open_links, require_checked
from cloister.trusted.pads.store import PadStore
from cloister.wire.grpc.connect import connect
from cloister.wire.link import WorkerLink

app = typer.Typer(help="Make one-time pads ahead of time, and count them.", no_args_is_help=True)

Count = Annotated[
    int, typer.Option("--count", min=1, help="Unused pad sets the store holds afterwards.")
]
Workers = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        metavar="HOST:PORT",
        help="Two or more workers that do not collude make the pads. Default: made here.",
    ),
]
OneParty = Annotated[
    bool,
    typer.Option(
        "--insecure-one-party",
        help="For tests: let workers of one machine make the pads; its owner can compute them.",
    ),
]
MakerTimeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0.001, help="Seconds a worker may take per layer. Default: 120."),
]
BlockRows = Annotated[
    int | None,
    typer.Option(
        "--block-rows",
        min=1,
        max=BLOCK_ROWS_MAX,
        help="Pad sets made together, in one file. A process that dies burns the rest of the block "
        "it uses. Default: 256 MiB of them, at most 1024.",
    ),
]
RateLimit = Annotated[
    str | None,
    typer.Option(
        "--rate", metavar="25%|100/h", help="At most this share of the time, or pads per hour."
    ),
]


@app.command(
    epilog="Example: cloister pads make model.plan pads --key pads.key --count 1000",
)
@options.grouped
def make(
    model: options.ModelOrPlan,
    folder: options.PadFolder,
    key: options.PadKey,
    count: Count,
    given: options.ModelInputs,
    digest: options.PinnedDigest = None,
    worker: Workers = None,
    insecure_one_party: OneParty = False,
    maker: maker_options.MakerAddresses = None,
    maker_certificate: maker_options.MakerCertificates = None,
    insecure_plaintext: maker_options.InsecurePlaintext = False,
    rate: RateLimit = None,
    block_rows: BlockRows = None,
    timeout: MakerTimeout = None,
    threads: options.Threads = 1,
) -> None:
    """Fill a store until it holds COUNT unused pad sets, one per future input.

    Pad sets are made in blocks. An interrupted command keeps the blocks that it made; run again, it
    goes on.

    A worker sees one uniform share of each pad. All workers together, or a listener on the traffic
    to all of them, could compute the pads: choose workers of different owners, and encrypted
    tunnels.

    A maker knows the pads that it makes, and no worker of a later run may be of its party. Plans
    that check every blinded layer refuse its lies.
    """
    limit = None if rate is None else options.rate(rate)
    addresses = maker_options.maker_addresses(maker, maker_certificate, insecure_plaintext)
    if addresses:
        options.refuse_given("--maker makes the pads; leave it out", {"--worker": worker})
    elif not worker:
        options.refuse_given("goes with --worker or --maker", {"--timeout": timeout})
    timeout_s = timeout or factory.DEFAULT_TIMEOUT_S
    links = _links(worker or [], timeout_s=timeout_s, insecure_one_party=insecure_one_party)
    makers = []
    if addresses:
        makers = open_links(addresses, timeout_s=timeout_s, insecure_plaintext=insecure_plaintext)
    stored_plan.refuse_planted(folder, key_file=key)
    plan, origin, kept = _plan(model, folder, key, given, digest)
    if makers:
        require_checked(plan)
    rng = SystemRandom()
    store = stored_plan.open_or_create(plan, folder, key_file=key, rng=rng)
    if not kept:
        stored_plan.save_plan(plan, folder, key_file=key, rng=rng)
    if makers:
        _tell_of_makers(insecure_plaintext=insecure_plaintext)
    with (
        factory.open_maker(
            plan,
            links,
            makers=makers,
            threads=threads,
            timeout_s=timeout_s,
            insecure_one_party=insecure_one_party,
            insecure_plaintext=insecure_plaintext,
        ) as made_by,
        progress("pads") as update,
    ):
        made = factory.fill(
            store, made_by, count=count, block_rows=block_rows, rate=limit, progress=update
        )
    out().print(f"{made} pad sets made, {store.status().ready} ready in {folder}; {origin}")


def _plan(
    model: str, folder: Path, key: Path, given: options.ModelInputs, digest: str | None
) -> tuple[Plan, str, bool]:
    """The plan, one line that says where it is from, and whether the store keeps it already."""
    if is_plan_file(model):
        return *given.load_plan(model, digest=digest), False
    if given.policy is not None and outer_policy(given.policy) is not None:
        raise InputError(
            f"--policy {given.policy}: hides the end of a model; make its plan with `cloister plan "
            "--last N`, and give that"
        )
    stored = None if given.calibration else stored_plan.known_plan(folder, key_file=key)
    made = given.plan(given.load(model), stored=stored, digest=digest)
    return *made, stored is not None


def _links(workers: list[str], *, timeout_s: float, insecure_one_party: bool) -> list[WorkerLink]:
    """Links to the workers, none of which is connected yet, if the workers may make pads.

    Raises   InputError
    """
    if not workers:
        if insecure_one_party:
            raise InputError("--insecure-one-party: goes with --worker")
        return []
    links: list[WorkerLink] = [connect(address, timeout_s=timeout_s) for address in workers]
    if factory.count_parties(links, insecure_one_party=insecure_one_party) < 2:
        err().print(
            "warning: these workers are one machine, whose owner can compute the pads",
            style="yellow",
        )
    note(
        "a listener on the traffic to all of these workers can compute the pads; it is not "
        "encrypted, so use encrypted tunnels"
    )
    return links


def _tell_of_makers(*, insecure_plaintext: bool) -> None:
    note("the makers know these pads: no worker of a run with them may be of their party")
    if insecure_plaintext:
        err().print(
            "warning: makers are reached without encryption; a listener knows the pads",
            style="yellow",
        )


@app.command(epilog="Example: cloister pads status pads --key pads.key")
def status(
    folder: options.PadFolder,
    key: options.PadKey,
    json: options.Json = False,
) -> None:
    """Count a store's pad sets."""
    found = PadStore.inspect(folder, key_file=key)
    if json:
        emit_json(asdict(found))
        return
    console = out()
    console.print(
        f"{found.ready} pad sets ready ({human_bytes(found.ready_bytes)}), {found.used} used, "
        f"{found.missing} missing"
    )
    if found.missing:
        console.print(
            "missing: reserved, and without a file: being made, cut off, deleted or damaged"
        )
    console.print(
        f"plan {found.plan_digest.hex()[:16]}; made by {found.made_by or 'the trusted side'}"
    )
