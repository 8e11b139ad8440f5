"""`cloister plan`: make a plan, show it and save it."""

from pathlib import Path
from typing import Annotated

import typer

import cloister
from cloister.cli import options
from cloister.cli.console import emit_json, out
from cloister.cli.images import read_inputs
from cloister.cli.planning import plan_for
from cloister.errors import InputError
from cloister.plan.plan import SUFFIX


def plan(
    model: options.ModelFile,
    to: Annotated[
        Path, typer.Option("--out", metavar=f"FILE{SUFFIX}", help="Where the plan is written.")
    ],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="INPUT...", help="Inputs to calibrate on, without --calibration."),
    ] = None,
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
    json: options.Json = False,
) -> None:
    """Decide what happens to every node of a model, and save the decision with its integers.

    The file holds all that is computed and protected: it runs on another machine with the same
    results, and without the model. Whoever can write it chooses the plan: pin it by its digest, or
    state its policy when it is run.
    """
    if to.suffix != SUFFIX or not to.parent.is_dir():
        raise InputError(f"--out {to}: name a {SUFFIX} file in an existing folder")
    graph = cloister.load(model)
    preprocessing = options.preprocessing(
        mean=mean, std=std, scale=scale, layout=layout, channels=channels, resize=resize
    )
    made, origin = plan_for(
        graph,
        policy=policy,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        calibration=calibration,
        inputs=read_inputs(graph, inputs, preprocessing) if inputs else None,
        preprocessing=preprocessing,
    )
    made.save(to)
    claims = made.claims()
    if json:
        emit_json(
            {
                "plan": str(to),
                "plan_digest": made.digest,
                "calibration": origin,
                "claims": claims.to_dict(),
            }
        )
        return
    console = out()
    console.print(f"{to}: plan {made.digest.hex()}, {to.stat().st_size} bytes; {origin}")
    console.print()
    console.print(str(claims))
