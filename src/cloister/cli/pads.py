"""`cloister pads`: one-time pads made before they are needed."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import cloister
from cloister.base.rng import SystemRandom
from cloister.cli import options
from cloister.cli.console import emit_json, err, human_bytes, out, progress
from cloister.cli.planning import is_plan_file, plan_for, plan_in_file
from cloister.errors import InputError, PlanError
from cloister.plan.plan import Plan
from cloister.trusted.pads.factory import (
    DEFAULT_TIMEOUT_S,
    Maker,
    Rate,
    WorkerMaker,
    count_parties,
    fill,
)
from cloister.trusted.pads.maker import PadMaker
from cloister.trusted.pads.store import PadStore
from cloister.trusted.pads.stored_plan import has_plan, load_plan, refuse_plan, save_plan
from cloister.wire.grpc.connect import connect
from cloister.wire.link import WorkerLink

app = typer.Typer(help="Make one-time pads ahead of time, and count them.")


@app.command()
def make(
    model: options.ModelFile,
    count: Annotated[
        int, typer.Option("--count", min=1, help="Unused pad sets the store holds afterwards.")
    ],
    store: options.PadStoreFolder,
    pad_key: options.PadKeyFile,
    policy: options.PolicyName = None,
    calibration: options.CalibrationFiles = None,
    weight_bits: options.WeightBits = None,
    activation_bits: options.ActivationBits = None,
    mean: options.Mean = "0",
    std: options.Std = "1",
    scale: options.Scale = "1/255",
    layout: options.ModelLayout = None,
    channels: options.ChannelOrder = None,
    resize: options.Resize = None,
    threads: options.Threads = 1,
    worker: Annotated[
        list[str] | None,
        typer.Option(
            "--worker",
            metavar="HOST:PORT",
            help="Two or more workers that do not collude make the pads. Default: made here.",
        ),
    ] = None,
    insecure_one_party: Annotated[
        bool,
        typer.Option(
            "--insecure-one-party",
            help="For tests: let workers of one machine make the pads; its owner can compute them.",
        ),
    ] = False,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="25%|100/h", help="At most this share of the time, or pads per hour."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds a worker may take per layer.")
    ] = DEFAULT_TIMEOUT_S,
) -> None:
    """Fill a store until it holds COUNT unused pad sets, one per future input.

    Interrupted, it keeps what is made; run again, it goes on.

    Workers see one uniform share of each pad. All of them together, or whoever reads the traffic
    to all of them, could compute the pads: choose workers of different owners, and encrypted ways.
    """
    limit = None if rate is None else _rate(rate)
    links = _links(worker or [], timeout_s=timeout, insecure_one_party=insecure_one_party)
    stored = _stored(store, pad_key, known=not calibration and not is_plan_file(model))
    if is_plan_file(model):
        options.refuse_planning(calibration, weight_bits, activation_bits)
        plan, origin = plan_in_file(Path(model), policy=policy, digest=None)
    else:
        plan, origin = plan_for(
            cloister.load(model),
            policy=policy,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            calibration=calibration,
            inputs=None,
            preprocessing=options.preprocessing(
                mean=mean, std=std, scale=scale, layout=layout, channels=channels, resize=resize
            ),
            stored=stored,
        )
    if not plan.hidden_nodes:
        raise PlanError(f"policy {plan.policy!r} blinds nothing, so it needs no pads")
    pads = _open_or_create(plan, store, pad_key)
    if stored is None:
        save_plan(plan, store, key_file=pad_key, rng=SystemRandom())
    with (
        _maker(
            plan, links, threads=threads, timeout_s=timeout, insecure_one_party=insecure_one_party
        ) as maker,
        progress("pads") as update,
    ):
        made = fill(pads, maker, count=count, rate=limit, progress=update)
    console = out()
    console.print(f"{made} pad sets made, {pads.status().ready} ready in {store}; {origin}")


@contextmanager
def _maker(
    plan: Plan,
    links: Sequence[WorkerLink],
    *,
    threads: int,
    timeout_s: float,
    insecure_one_party: bool,
) -> Iterator[Maker]:
    if not links:
        yield PadMaker(plan, threads=threads)
        return
    maker = WorkerMaker(
        plan,
        links,
        rng=SystemRandom(),
        timeout_s=timeout_s,
        insecure_one_party=insecure_one_party,
    )
    try:
        yield maker
    finally:
        maker.close()


def _links(
    workers: Sequence[str], *, timeout_s: float, insecure_one_party: bool
) -> list[WorkerLink]:
    """Links to the workers, none of which is connected yet, if the workers may make pads.

    Raises   InputError
    """
    if not workers:
        if insecure_one_party:
            raise InputError("--insecure-one-party: goes with --worker")
        return []
    links: list[WorkerLink] = [connect(address, timeout_s=timeout_s) for address in workers]
    if count_parties(links, insecure_one_party=insecure_one_party) < 2:
        err().print(
            "warning: these workers are one machine, whose owner can compute the pads",
            style="yellow",
        )
    err().print(
        "note: whoever reads the traffic to all of these workers can compute the pads; it is "
        "not encrypted, so use encrypted tunnels",
        style="yellow",
    )
    return links


def _rate(text: str) -> Rate:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%|/h)", text)
    if match is None:
        raise InputError(f"--rate {text}: give a share of the time, as 25%, or pads, as 100/h")
    number = float(match[1])
    return Rate(share=number / 100) if match[2] == "%" else Rate(per_hour=number)


def _stored(store: Path, pad_key: Path, *, known: bool) -> Plan | None:
    """The plan of an existing store, if it has one and `known` says that it is wanted.

    Raises   PadStoreError when a plan is there that the key file does not vouch for
    """
    if not pad_key.exists():
        refuse_plan(store)
        return None
    return load_plan(store, key_file=pad_key) if known and has_plan(store) else None


def _open_or_create(plan: Plan, store: Path, pad_key: Path) -> PadStore:
    if pad_key.exists():
        return PadStore.open(store, plan_digest=plan.digest, key_file=pad_key)
    return PadStore.create(store, plan_digest=plan.digest, key_file=pad_key, rng=SystemRandom())


@app.command()
def status(
    store: options.PadStoreFolder,
    pad_key: options.PadKeyFile,
    json: options.Json = False,
) -> None:
    """Count a store's pad sets."""
    found = PadStore.inspect(store, key_file=pad_key)
    if json:
        emit_json(asdict(found))
        return
    console = out()
    console.print(
        f"{found.ready} pad sets ready ({human_bytes(found.ready_bytes)}), {found.used} used, "
        f"{found.lost} lost"
    )
    console.print(f"plan {found.plan_digest.hex()[:16]}")
