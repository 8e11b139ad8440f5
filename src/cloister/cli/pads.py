"""`cloister pads`: one-time pads made before they are needed."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli import options
from cloister.cli.console import emit_json, human_bytes, out, progress
from cloister.cli.planning import RECIPE_FILE, recipe_for
from cloister.crypto.csprng import SystemRandom
from cloister.errors import PlanError
from cloister.graph.sources import load
from cloister.plan.plan import Plan
from cloister.trusted.blinded import PadMaker
from cloister.trusted.padstore import PadStore

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
) -> None:
    """Fill a store until it holds COUNT unused pad sets, one per future input.

    Interrupted, it keeps what is made; run again, it goes on.
    """
    graph = load(model)
    known = store / RECIPE_FILE
    recipe, origin = recipe_for(
        graph,
        policy=policy,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        calibration=[known] if known.is_file() and not calibration else calibration,
        inputs=None,
        preprocessing=options.preprocessing(
            mean=mean, std=std, scale=scale, layout=layout, channels=channels, resize=resize
        ),
    )
    plan = recipe.plan(graph)
    if not plan.hidden_nodes:
        raise PlanError(f"policy {plan.policy!r} blinds nothing, so it needs no pads")
    pads = _open_or_create(plan, store, pad_key)
    if not known.is_file():
        recipe.save(known)
    made = _fill(pads, PadMaker(plan, threads=threads), count)
    console = out()
    console.print(f"{made} pad sets made, {pads.status().ready} ready in {store}; {origin}")


def _open_or_create(plan: Plan, store: Path, pad_key: Path) -> PadStore:
    if pad_key.exists():
        return PadStore.open(store, plan_digest=plan.digest, key_file=pad_key)
    return PadStore.create(store, plan_digest=plan.digest, key_file=pad_key, rng=SystemRandom())


def _fill(pads: PadStore, maker: PadMaker, count: int) -> int:
    missing = max(0, count - pads.status().ready)
    with progress("pads") as update:
        for done in range(missing):
            for pad_id in pads.reserve(1):
                pads.put(pad_id, maker.make(pads.pad_key, pad_id))
            update(done + 1, missing)
    return missing


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
